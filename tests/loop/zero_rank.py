"""One rank of the ZeRO comparison: `python zero_rank.py OUT`, with RANK, WORLD_SIZE and MASTER_PORT set.

Updates the same tiny model from the same batches under every ZeRO stage and writes what rank 0 saw as JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rl4dlm.diffusion.seeds import derive_seed  # noqa: E402
from rl4dlm.learner.engine import PlainNetworks, mix_reference  # noqa: E402
from rl4dlm.learner.update import RankUpdate  # noqa: E402
from rl4dlm.loss.reduce import merge_metrics  # noqa: E402
from rl4dlm.models import (  # noqa: E402
    add_lora,
    build_char_tokenizer,
    create,
    denoiser,
    merged_state_dict,
    reference,
    trainable_state,
)
from rl4dlm.recipe.algorithms import GDPOConfig  # noqa: E402
from rl4dlm.recipe.sections import LoraSettings, ModelInit, TrainerConfig  # noqa: E402
from rl4dlm.trainers import make_method  # noqa: E402
from rl4dlm.types import TrainBatch  # noqa: E402
from rl4dlm.workers import engine as ds  # noqa: E402

CANVAS, ROWS, UPDATES = 6, 12, 4
INIT = ModelInit(d_model=32, n_layers=2, n_heads=2, mlp_hidden_size=64, max_sequence_length=32)
METHOD = GDPOConfig(num_nodes=2, num_iterations=2, epsilon=0.2, beta=0.05)


def fixed_batch(update: int) -> TrainBatch:
    """Random sequences with random advantages, prompts of several lengths; the same on every rank."""
    rng = np.random.default_rng(update)
    prompts = tuple(rng.integers(0, 10, rng.integers(2, 6)).astype(np.int32) for _ in range(ROWS))
    return TrainBatch(
        prompt_ids=prompts,
        completion_ids=rng.integers(0, 10, (ROWS, CANVAS)).astype(np.int32),
        loss_mask=np.ones((ROWS, CANVAS), dtype=bool),
        advantage=rng.normal(size=ROWS).astype(np.float32),
        seed=np.array([derive_seed(update, row) for row in range(ROWS)]),
        group=np.repeat(np.arange(ROWS // 3), 3).astype(np.int32),
        policy_version=update,
    )


def settings(stage: int, **changes: object) -> TrainerConfig:
    return TrainerConfig(
        learning_rate=3e-3,
        zero_stage=stage,
        num_minibatches=2,
        micro_batch_tokens=60,
        weight_decay=0.1,
        **changes,
    )


def run(trainer: TrainerConfig, rank: int, world_size: int, *, plain: bool) -> dict[str, object]:
    """Four updates; per update its metrics, and at the end the weights."""
    loaded = create(INIT, build_char_tokenizer("0123456789=+"), seed=1)
    frozen = create(INIT, build_char_tokenizer("0123456789=+"), seed=1)
    if trainer.bf16:
        loaded.module.bfloat16()
        frozen.module.bfloat16()
    module = loaded.module
    extra = {}
    networks = PlainNetworks() if plain else ds.DeepSpeedNetworks(trainer, rank, world_size, "cpu")
    kept = None
    if trainer.lora is not None:
        module = add_lora(module, trainer.lora, loaded.family)
        extra["as_reference"] = lambda: reference(module)
    else:
        kept = networks.freeze(frozen.module, trainer)
        extra["reference"] = denoiser(frozen, model=kept)
    if trainer.gradient_checkpointing:
        loaded.module.gradient_checkpointing_enable()
    engine = networks.train(module, trainer)
    part = RankUpdate(
        engine=engine,
        denoiser=denoiser(loaded, model=engine),
        method=make_method(METHOD),
        rank=rank,
        world_size=world_size,
        token_budget=trainer.micro_batch_tokens,
        num_minibatches=trainer.num_minibatches,
        **extra,
    )
    curve = []
    for update in range(UPDATES):
        curve.append(_summed(part.run(fixed_batch(update)), world_size))
        if update == 1 and kept is not None:
            mix_reference(engine, kept, alpha=0.6)
    with engine.whole():
        weights = {k: v.float().clone() for k, v in merged_state_dict(engine.module).items()}
        synced = sorted(trainable_state(engine.module))
    return {"curve": curve, "weights": weights, "synced": synced}


def _summed(metrics: dict[str, float], world_size: int) -> dict[str, float]:
    parts: list[dict[str, float]] = [metrics]
    if world_size > 1:
        parts = [{} for _ in range(world_size)]
        torch.distributed.all_gather_object(parts, metrics)
    return merge_metrics(parts)


CASES = {
    "stage0": settings(0),
    "stage1": settings(1),
    "stage2": settings(2),
    "stage3": settings(3),
    "stage2_checkpointing": settings(2, gradient_checkpointing=True),
    "stage2_offload": settings(2, offload_optimizer=True),
    "stage2_lora": settings(2, lora=LoraSettings(r=4, lora_alpha=8)),
    "stage3_lora": settings(3, lora=LoraSettings(r=4, lora_alpha=8)),
    "stage1_bf16": settings(1, bf16=True),
    "stage2_bf16": settings(2, bf16=True),
    "stage3_bf16": settings(3, bf16=True),
}


def fingerprint(weights: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(weights[name].numpy().tobytes())
    return digest.hexdigest()


def main(out: str) -> None:
    torch.set_num_threads(1)
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    ds.join_process_group(rank, world_size, "127.0.0.1", int(os.environ["MASTER_PORT"]), "cpu", 60)
    results = {}
    for name, trainer in CASES.items():
        result = run(trainer, rank, world_size, plain=False)
        weights = result.pop("weights")
        results[name] = {**result, "fingerprint": fingerprint(weights)}
        torch.save(weights, f"{out}.{name}.pt") if rank == 0 else None
    Path(f"{out}.{rank}.json").write_text(json.dumps(results))
    ds.leave_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
