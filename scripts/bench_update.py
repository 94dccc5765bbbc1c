"""What an update costs beside its model: times on the CPU, in the process's own seconds.

    python scripts/bench_update.py [--only overhead head padding] [--json] [--threads 1]

`overhead`: the very forward and backward passes of an update run alone, plus the optimizer, as a share of the
whole update, by method on the body-heavy shape. `head`: an update that scores hidden positions in chunks of
the vocabulary against one that makes float32 logits of every position, on the head-heavy shape. `padding`:
share of padding in micro-batches by a budget of tokens, and in batches of as many rows in the data's order.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from bench_rollout import SHAPES, random_model, show, wide_console
from torch import Tensor, nn

from rl4dlm.decoding import SamplerSpec
from rl4dlm.diffusion.seeds import derive_seed
from rl4dlm.learner.engine import PlainEngine
from rl4dlm.learner.update import RankUpdate
from rl4dlm.recipe.algorithms import (
    AGRPOConfig,
    AlgorithmConfig,
    DiffuGRPOConfig,
    ESPOConfig,
    GDPOConfig,
    MethodConfig,
    SPGConfig,
    TraceRLConfig,
)
from rl4dlm.recipe.sections import TrainerConfig
from rl4dlm.rollout import Engine, Request
from rl4dlm.rollout.groups import group_rollouts
from rl4dlm.trainers import make_method
from rl4dlm.trainers.method import Method, Setting
from rl4dlm.trainers.passes import micro_batches
from rl4dlm.trainers.prepare import prepare_batch
from rl4dlm.types import Denoiser, Prompt, RolloutGroup, Scores, TrainBatch

Row = dict[str, Any]
CANVAS, BUDGET = 64, 4096
METHODS: dict[str, AlgorithmConfig] = {
    "gdpo": GDPOConfig(num_nodes=2, num_iterations=2),
    "espo": ESPOConfig(),
    "spg": SPGConfig(),
    "diffu_grpo": DiffuGRPOConfig(),
    "tracerl": TraceRLConfig(),
    "agrpo": AGRPOConfig(num_steps=4),
}


class Watched(nn.Module):
    """A model that keeps its calls, so that they can be run again by themselves."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.calls = model, list[tuple[Any, Any, bool]]()

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """See `rl4dlm.types.Denoiser`."""
        self.calls.append((args, kwargs, torch.is_grad_enabled()))
        return self.model(*args, **kwargs)

    def run_alone(self) -> None:
        """All calls once more, each with the backward pass that it had."""
        for args, kwargs, learns in self.calls:
            with torch.set_grad_enabled(learns):
                out = self.model(*args, **kwargs)
            if learns:
                out.sum().backward()


class Obvious(nn.Module):
    """The same model by the obvious path: float32 logits everywhere, then what was asked for."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        select: Tensor,
        labels: Tensor,
        temperature: float = 1.0,
        **kwargs: Any,
    ) -> Tensor:
        """See `rl4dlm.types.Denoiser`; with labels only."""
        logits = self.model(input_ids, attention_mask, **kwargs)
        logp = (logits / temperature).log_softmax(-1).gather(-1, labels[..., None])[..., 0]
        return logp[select]


def some_groups(denoiser: Denoiser, num_prompts: int, size: int = 4) -> list[RolloutGroup]:
    """Rollouts of random prompts of 40 to 200 tokens, eight steps each."""
    rng = np.random.default_rng(0)
    prompts = [
        Prompt(uid, "", "", tuple(rng.integers(0, 400, length).tolist()))
        for uid, length in enumerate(rng.integers(40, 201, num_prompts))
    ]
    requests = [
        Request(prompt.uid, sample, derive_seed("bench", prompt.uid, sample), prompt.token_ids)
        for prompt in prompts
        for sample in range(size)
    ]
    spec = SamplerSpec(CANVAS, CANVAS, 8, eos_policy="none", remasking="random")
    return group_rollouts(prompts, Engine(denoiser, spec, 16).generate(requests, policy_version=0))


def prepared(trainer: Method[MethodConfig], groups: list[RolloutGroup]) -> TrainBatch:
    """The batch of an update, with random rewards."""
    count = sum(len(group.rollouts) for group in groups)
    reward = np.random.default_rng(1).normal(size=count).astype(np.float32)
    scores = Scores(reward, {"reward": reward}, {}, np.zeros(count, dtype=bool))
    batch, _ = prepare_batch(trainer, groups, scores, policy_version=0, seed=3)
    assert batch is not None
    return batch


def rank_update(
    module: nn.Module, called: nn.Module, denoiser: Denoiser, trainer: Method[MethodConfig]
) -> RankUpdate:
    """The update of a single rank, without DeepSpeed."""
    engine = PlainEngine(module, TrainerConfig())
    return RankUpdate(engine, replace(denoiser, model=called), trainer, 0, 1, BUDGET, 1)


def seconds(run: Callable[[], Any]) -> float:
    """CPU seconds of this process."""
    began = time.process_time()
    run()
    return time.process_time() - began


def bench_overhead(num_prompts: int = 2, shape: str = "body_heavy") -> list[Row]:
    """The passes of an update alone, and the optimizer, as a share of the update."""
    rows: list[Row] = []
    denoiser = random_model(SHAPES[shape])
    groups = some_groups(denoiser, num_prompts)
    setting = Setting(temperature=1.0, spec=denoiser.spec, seed=0, block_length=CANVAS)
    for name, config in METHODS.items():
        trainer = make_method(config, setting)
        module = random_model(SHAPES[shape]).model
        watched = Watched(module)
        update, batch = rank_update(module, watched, denoiser, trainer), prepared(trainer, groups)
        whole = seconds(lambda u=update, b=batch: u.run(b))
        alone = seconds(watched.run_alone)
        steps = trainer.config.num_iterations
        optimizer = seconds(lambda e=update.engine, n=steps: [e.step() for _ in range(n)])
        rows.append(
            {
                "method": name,
                "passes": len(watched.calls),
                "update_s": whole,
                "passes_alone_s": alone,
                "optimizer_s": optimizer,
                "share": (alone + optimizer) / whole,
            }
        )
    return rows


def bench_head(num_prompts: int = 4, shape: str = "head_heavy") -> list[Row]:
    """Scoring what is hidden, in chunks, against logits of everything."""
    denoiser = random_model(SHAPES[shape])
    trainer = make_method(
        METHODS["gdpo"], Setting(temperature=1.0, spec=denoiser.spec, seed=0, block_length=CANVAS)
    )
    batch, found, norms = prepared(trainer, some_groups(denoiser, num_prompts)), {}, {}
    for name in ("hidden positions", "every position"):
        module = random_model(SHAPES[shape]).model
        called = module if name == "hidden positions" else Obvious(module)
        update = rank_update(module, called, denoiser, trainer)
        found[name] = seconds(lambda u=update, n=name: norms.update({n: u.run(batch)["grad_norm"]}))
    fast, slow = found["hidden positions"], found["every position"]
    apart = abs(norms["hidden positions"] / norms["every position"] - 1)
    return [{"hidden_s": fast, "every_s": slow, "speedup": slow / fast, "gradient norms differ by": apart}]


def bench_padding(num_prompts: int = 64) -> list[Row]:
    """Positions that are padding, where prompts differ in length."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(40, 201, num_prompts).repeat(4)
    trainer, count = make_method(METHODS["gdpo"]), len(lengths)
    batch = TrainBatch(
        prompt_ids=tuple(np.zeros(length, np.int32) for length in lengths),
        completion_ids=np.zeros((count, CANVAS), np.int32),
        loss_mask=np.ones((count, CANVAS), dtype=bool),
        advantage=np.ones(count, np.float32),
        seed=np.arange(count),
        group=np.arange(count) // 4,
        policy_version=0,
    )
    whole = real = ordered = 0
    plan = micro_batches(trainer, batch, range(count), BUDGET)
    first = 0
    for micro in plan:
        sizes = lengths[list(micro.rows)] + CANVAS
        whole, real = whole + len(sizes) * int(sizes.max()), real + int(sizes.sum())
        in_order = lengths[first : first + len(sizes)] + CANVAS
        ordered, first = ordered + len(sizes) * int(in_order.max()), first + len(sizes)
    return [
        {
            "micro-batches": len(plan),
            "padding": 1 - real / whole,
            "in the order of the data": 1 - real / ordered,
        }
    ]


SECTIONS: dict[str, tuple[str, Callable[[], list[Row]]]] = {
    "overhead": ("Passes and optimizer alone / the update, body-heavy", bench_overhead),
    "head": ("The head on hidden positions against every position, head-heavy", bench_head),
    "padding": ("Share of positions that are padding", bench_padding),
}


def main() -> int:
    """Run the sections that were asked for; the exit status."""
    parser = argparse.ArgumentParser(description="What an update costs beside its model.")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), help="sections; default: all")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    found = {}
    for name in asked.only or SECTIONS:
        title, run = SECTIONS[name]
        found[name] = run()
        if not asked.json:
            show(wide_console(), title, found[name])
    if asked.json:
        print(json.dumps({"threads": asked.threads, "torch": torch.__version__, "sections": found}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
