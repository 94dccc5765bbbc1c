"""Token log-probabilities given what the sampler saw when it drew each token: TraceRL's, and importance
weights'.

The recorded step map says which tokens were hidden at each step; `shrink` consecutive steps are merged
(TraceRL, arXiv:2509.06949). Full-attention models read one masked canvas per (shrunk) step, block-causal
ones a doubled sequence per round of steps, one of every block.
"""

from __future__ import annotations

import numpy as np

from rl4dlm.likelihood.states import States
from rl4dlm.likelihood.trajectory import (
    Trajectories,
    TrajectoryRecord,
    count_states,
    record_trajectories,
    trajectory_states,
)
from rl4dlm.recipe.algorithms import Corrected
from rl4dlm.trainers.estimates import ONE_STATE_EACH, TokenLogp
from rl4dlm.trainers.method import Likelihood, Setting, StatePlan, UsableRollouts
from rl4dlm.types import TrainBatch


def record_trajectory(usable: UsableRollouts, setting: Setting) -> TrajectoryRecord:
    """The recorded trajectories of a batch's rollouts."""
    return record_trajectories(usable.rollouts, setting.spec)


def trajectories_of(batch: TrainBatch, rows: list[int] | None = None) -> Trajectories:
    """What is known of some rows' trajectories; None: of all."""
    record, actions = batch.recorded(TrajectoryRecord), batch.loss_mask
    if rows is None:
        return record.trajectories(actions)
    return record.take(rows).trajectories(actions[rows])


def visited_states(shrink: int) -> StatePlan:
    """The states that the sampler visited, the same in every pass; each action is scored once."""

    def count(batch: TrainBatch) -> np.ndarray:
        return count_states(trajectories_of(batch), shrink)

    def make(batch: TrainBatch, rows: list[int], inner: int) -> States:
        return trajectory_states(trajectories_of(batch, rows), shrink)

    return StatePlan(count, make)


def trajectory_likelihood(setting: Setting, states: StatePlan | None = None) -> Likelihood:
    """Log-probabilities at the rollouts' temperature in visited states; None: in all of them."""
    score = TokenLogp(setting.spec, setting.law_temperature)
    return Likelihood(states or visited_states(1), ONE_STATE_EACH, score)


def replayed(config: Corrected, setting: Setting) -> Likelihood | None:
    """What importance weights compare with the sampler's record; None where tokens have none."""
    return None if config.importance_bound is None else trajectory_likelihood(setting)
