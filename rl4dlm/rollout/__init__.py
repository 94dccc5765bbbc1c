"""Rollouts: the engine that samples, the plain loop that it must equal, and the trajectory record."""

from __future__ import annotations

from rl4dlm.rollout.engine import Engine, StepView
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
from rl4dlm.rollout.reference import generate_reference
from rl4dlm.rollout.request import Request

__all__ = [
    "Engine",
    "Request",
    "StepView",
    "check_trace",
    "commits_of",
    "from_table",
    "generate_reference",
    "prediction_at",
    "state_before",
    "step_prediction",
    "to_table",
    "write_parquet",
]
