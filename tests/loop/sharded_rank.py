"""One rank that loads models: `python sharded_rank.py OUT CASE=FOLDER ...`, with RANK and WORLD_SIZE set.

Reports how the model lies on this rank, what it read from disk, and what the model is after one step.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from rl4dlm.learner.engine import TrainingEngine, whole_shape
from rl4dlm.models import add_lora, load, merged_state_dict
from rl4dlm.models.weights import TensorReader
from rl4dlm.recipe.sections import LoraSettings, TrainerConfig
from rl4dlm.workers import engine as ds
from rl4dlm.workers.sharded import assemble_sharded

IDS = torch.tensor([[3, 1, 13, 4, 13, 5, 9, 2], [0, 13, 8, 8, 13, 1, 2, 13]])
CASES = {
    "full": TrainerConfig(zero_stage=3, learning_rate=1e-2, weight_decay=0.1),
    "lora": TrainerConfig(zero_stage=3, learning_rate=1e-2, lora=LoraSettings(r=2, lora_alpha=4)),
    "bf16": TrainerConfig(zero_stage=3, learning_rate=1e-2, bf16=True),
}


def step(folder: str, trainer: TrainerConfig, assemble: Any) -> tuple[TrainingEngine, torch.Tensor]:
    """Load, one optimizer step; the engine and the scores before it."""
    dtype = torch.bfloat16 if trainer.bf16 else torch.float32
    loaded = load(folder, dtype=dtype, assemble=assemble)
    module = loaded.module
    if trainer.lora is not None:
        module = add_lora(module, trainer.lora, loaded.family, seed=1)
    engine = ds.DeepSpeedEngine(module, trainer)
    scores = engine(IDS, labels=IDS.clamp_max(10))
    engine.backward(-scores.mean())
    engine.step()
    return engine, scores.detach()


def report(folder: str, trainer: TrainerConfig) -> dict[str, Any]:
    """How the model lies here, what was read, and how far it is from one loaded whole, before and after a
    step."""
    read: list[str] = []
    real = TensorReader.read
    TensorReader.read = lambda self, name: read.append(name) or real(self, name)
    module = load(folder, assemble=assemble_sharded(trainer)).module
    TensorReader.read = real
    sharded, scores = step(folder, trainer, assemble_sharded(trainer))
    whole, expected = step(folder, trainer, None)
    before = load(folder).module.state_dict()
    with sharded.whole(), whole.whole():
        ours, theirs = merged_state_dict(sharded.module), merged_state_dict(whole.module)
        return {
            "read": len(read),
            "held": sum(p.ds_tensor.numel() for p in module.parameters()),
            "whole": sum(p.numel() for p in module.parameters()),
            "total": sum(whole_shape(p).numel() for p in module.parameters()),
            "names": sorted(ours) == sorted(theirs),
            "score_gap": float((scores - expected).abs().max()),
            "weight_gap": max(float((ours[n].float() - theirs[n].float()).abs().max()) for n in theirs),
            "moved": max(float((ours[n].float() - before[n]).abs().max()) for n in ours),
        }


def main(out: str, *cases: str) -> None:
    torch.set_num_threads(1)
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    ds.join_process_group(rank, world_size, "127.0.0.1", int(os.environ["MASTER_PORT"]), "cpu", 60)
    reports = {}
    for argument in cases:
        case, _, folder = argument.partition("=")
        reports[case] = report(folder, CASES[case])
    Path(f"{out}.{rank}.json").write_text(json.dumps(reports))
    ds.leave_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
