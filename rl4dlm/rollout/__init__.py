"""Rollouts: the engine that samples, its caches, and the trajectory record."""

from __future__ import annotations

from rl4dlm.recipe.samplers import CACHES
from rl4dlm.rollout.engine import Engine, StepView
from rl4dlm.rollout.graphs import Graphs
from rl4dlm.rollout.record import (
    check_trace,
    commits_of,
    from_table,
    prediction_at,
    state_before,
    step_prediction,
    to_table,
    write_parquet,
)
from rl4dlm.rollout.request import Generate, Request, mix_block_lengths
from rl4dlm.rollout.sampler_checks import check_sampler, sampler_notes

__all__ = [
    "CACHES",
    "Engine",
    "Generate",
    "Graphs",
    "Request",
    "StepView",
    "check_sampler",
    "check_trace",
    "commits_of",
    "from_table",
    "mix_block_lengths",
    "prediction_at",
    "sampler_notes",
    "state_before",
    "step_prediction",
    "to_table",
    "write_parquet",
]
