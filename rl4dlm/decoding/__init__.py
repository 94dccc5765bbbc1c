"""The parts of a sampler as pure functions on per-row state, and the strategies composed of them."""

from __future__ import annotations

from rl4dlm.decoding.layout import block_span, num_blocks
from rl4dlm.decoding.learned import PolicyFeatures, UnmaskPolicy, action_logp, register_policy
from rl4dlm.decoding.spec import SamplerSpec
from rl4dlm.decoding.step import Decision, StepInput, Strategy
from rl4dlm.decoding.stopping import completion_length, ends_row
from rl4dlm.decoding.strategies import STRATEGIES, decide, proposals

__all__ = [
    "STRATEGIES",
    "Decision",
    "PolicyFeatures",
    "SamplerSpec",
    "StepInput",
    "Strategy",
    "UnmaskPolicy",
    "action_logp",
    "block_span",
    "completion_length",
    "decide",
    "ends_row",
    "num_blocks",
    "proposals",
    "register_policy",
]
