"""What the forwards of a rollout are made of, counted rather than timed, on the CPU.

    python scripts/bench_forwards.py [--json]

`launches`: operations that a GPU is given one by one per forward, and how many are left when the model's
layers are recorded and replayed (`rollout.cuda_graphs`), at the depths of LLaDA-8B and SDAR-8B, tiny widths,
16 rows. An operation that writes something is about one launch; that of a replay itself is not counted.
`padding`: the share of positions that are padding, prompts of 40 to 200 tokens in groups of 4, canvas 64.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from bench_rollout import SHAPES, random_model, show, some_requests, wide_console
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from rl4dlm.decoding import SamplerSpec
from rl4dlm.rollout import Engine, Graphs, Request

_VIEWS = (
    *("view", "expand", "slice", "select", "transpose", "permute", "squeeze", "unsqueeze", "flatten", "t."),
    *("unflatten", "split", "chunk", "detach", "alias", "as_strided", "reshape", "empty", "unsafe_view"),
)
CASES = [("llada_tiny", 32, "none"), ("llada_tiny", 32, "dual"), ("sdar_tiny", 36, "block")]


class Launches(TorchDispatchMode):
    """Counts operations that write something."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).removeprefix("aten.").lstrip("_")
        self.count += not name.startswith(_VIEWS)
        return func(*args, **(kwargs or {}))


def record_nothing(run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """A recording that computes nothing when it is replayed: what is counted then is everything else."""
    return lambda: None, run()


def count_launches(name: str, layers: int, cache: str, slots: int = 16) -> dict[str, Any]:
    """Operations per forward in the engine's steady state, without and with recorded layers."""
    shape = replace(SHAPES[name], layers=layers)
    denoiser, block = random_model(shape), shape.block_length or 32
    spec, wanted = SamplerSpec(64, block, 32, eos_policy="none", cache=cache), some_requests(slots, 64)
    counts = []
    for graphs in (None, Graphs(record_nothing)):
        engine = Engine(denoiser, spec, slots, graphs)
        for _ in range(3):  # all shapes that occur are recorded
            engine.generate(wanted, policy_version=0)
        with Launches() as launches:
            rollouts = engine.generate(wanted, policy_version=0)
        counts.append(launches.count / rollouts[0].num_forwards)
    plain, replayed = counts
    found = {"attention": shape.attention, "layers": layers, "cache": cache, "operations": plain}
    return found | {"left when replayed": replayed, "factor": plain / replayed}


class Padding(nn.Module):
    """A model that counts its positions, and those of them that are padding."""

    def __init__(self, model: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model, self.positions, self.padded = model, 0, 0

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        """See `rl4dlm.types.Denoiser`."""
        self.positions += input_ids.numel()
        self.padded += 0 if attention_mask is None else int((~attention_mask).sum())
        return self.model(input_ids, attention_mask, **kwargs)


def count_padding(slots: int, num_prompts: int = 128) -> dict[str, Any]:
    """Share of padding in the engine, and in batches of as many rows in the order in which they came."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(40, 201, size=num_prompts).repeat(4)
    wanted = [Request(i, 0, i, (40,) * int(length)) for i, length in enumerate(lengths)]
    base = random_model(replace(SHAPES["llada_tiny"], width=16, layers=1, heads=2, kv_heads=2, mlp=16))
    spec, counted = SamplerSpec(64, 32, 16, eos_policy="none"), Padding(base.model)
    Engine(replace(base, model=counted), spec, slots).generate(wanted, policy_version=0)
    batches = lengths.reshape(-1, slots)
    whole = batches.shape[1] * (batches.max(axis=1) + spec.gen_len)
    real = batches.sum(axis=1) + batches.shape[1] * spec.gen_len
    return {
        "rows": slots,
        "engine": counted.padded / counted.positions,
        "batches in order": 1 - float(real.sum() / whole.sum()),
    }


def main() -> int:
    """Count all cases; the exit status."""
    parser = argparse.ArgumentParser(description="What the forwards of a rollout are made of.")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    asked = parser.parse_args()
    launches = [count_launches(*case) for case in CASES]
    padding = [count_padding(slots) for slots in (16, 64)]
    if asked.json:
        print(json.dumps({"launches": launches, "padding": padding}))
    else:
        show(wide_console(), "Operations that a GPU is given one by one, per forward", launches)
        show(wide_console(), "Share of positions that are padding", padding)
    return 0


if __name__ == "__main__":
    sys.exit(main())
