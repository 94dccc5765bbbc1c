"""How many operations a GPU is given one by one per forward of a rollout, and how many are left when the
model's layers are recorded and replayed (`rollout.cuda_graphs`).

    python scripts/bench_launches.py [--json]

Counted, not timed: the depths of LLaDA-8B and SDAR-8B at tiny widths, 16 rows, on the CPU. An operation that
writes something is about one kernel launch. What a replay itself costs, one launch, is not counted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from bench_rollout import SHAPES, random_model, show, some_requests
from rich.console import Console
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rl4dlm.decoding import SamplerSpec
from rl4dlm.rollout import Engine, Graphs

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


def main() -> int:
    """Count all cases; the exit status."""
    parser = argparse.ArgumentParser(description="Operations per forward, with and without recorded layers.")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    asked = parser.parse_args()
    rows = [count_launches(*case) for case in CASES]
    if asked.json:
        print(json.dumps({"launches": rows}))
    else:
        show(Console(), "Operations that a GPU is given one by one, per forward", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
