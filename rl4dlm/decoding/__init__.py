"""The parts of a sampler as pure functions on per-row state, and the strategies composed of them."""

from __future__ import annotations

from rl4dlm.decoding.layout import block_span, num_blocks
from rl4dlm.decoding.spec import SamplerSpec
from rl4dlm.decoding.stopping import completion_length, ends_row
from rl4dlm.decoding.strategies import STRATEGIES, Decision, StepInput, Strategy, decide, proposals

__all__ = [
    "STRATEGIES",
    "Decision",
    "SamplerSpec",
    "StepInput",
    "Strategy",
    "block_span",
    "completion_length",
    "decide",
    "ends_row",
    "num_blocks",
    "proposals",
]
