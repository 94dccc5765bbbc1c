"""AGRPO (arXiv:2510.04019): a few random steps of the recorded trajectory estimate its policy gradient.

    l_j  = log p(y_j | q, canvas before the step that committed j) under the rollout temperature
    loss = - mean over completions of (1/n) sum over sampled steps s of (1 / pi_s)
             sum over tokens j that s committed of min(rho_j A, clip(rho_j) A),     A = r - group mean
    rho_j = exp(l_j - what the sampler recorded)

n is the number of the completion's steps and pi_s the probability that s is sampled: the gradient is 1/n
times the trajectory's, without bias, in M forwards. Exact where the sampler chooses positions before tokens
(`random`, `top_probability`, `ar`). Departures from the released code: steps are spread over each completion
(systematic sampling without repetition) instead of over the batch; `surprisal` weighs steps by -log p of what
they drew, a one-sample estimate of the entropy that the released option uses; steps that commit nothing up to
the first stop id are left out. Not covered: ratios under top-p or top-k, whose support is not recorded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rl4dlm.diffusion.masking import state_uniform
from rl4dlm.likelihood.states import States
from rl4dlm.likelihood.step_sampling import inclusion_probabilities, systematic_sample
from rl4dlm.likelihood.trajectory import DrawnTokens, TrajectoryRecord, count_states
from rl4dlm.recipe.algorithms import AGRPOConfig
from rl4dlm.trainers.credit import compared_in_group
from rl4dlm.trainers.method import (
    BatchRows,
    Loss,
    Method,
    Objective,
    Recorded,
    Setting,
    StatePlan,
    StepSize,
    UsableRollouts,
)
from rl4dlm.trainers.tokens import ClippedTokens, aggregated
from rl4dlm.trainers.trajectories import record_trajectory, replayed, trajectory_likelihood, visited_states
from rl4dlm.types import TrainBatch

_UNIFORM_SHARE = 0.5  # of the probability under `surprisal`: bounds the weights


@dataclass(frozen=True)
class CountedTrajectories(TrajectoryRecord):
    """Recorded trajectories, and how many states each has."""

    num_steps: np.ndarray
    """int64 `[batch]`: n."""


def agrpo(config: AGRPOConfig, setting: Setting) -> Method[AGRPOConfig]:
    """M of the visited states in each pass, whose tokens stand for all; the loss by `tokens.py`."""
    share = over_steps if config.aggregation == "over_steps" else aggregated(config.aggregation)
    objective = ClippedTokens(config, share, kl_times_ratio=True)
    return Method(
        config,
        setting,
        trajectory_likelihood(setting, sampled_states(config)),
        objective if config.needs_old else against_the_rollout(objective),
        compared_in_group(config),
        record=lambda usable: Recorded(_counted(usable, setting)),
        replay=replayed(config, setting),
    )


def against_the_rollout(objective: ClippedTokens) -> Objective:
    """The objective with ratios to what the sampler recorded."""

    def against(
        value: Tensor, rows: BatchRows, old: Tensor | None, ref: Tensor | None, step: StepSize
    ) -> Loss:
        return objective(value, rows, rows.tensor(rows.recorded(DrawnTokens).rollout_logp), ref, step)

    return against


def over_steps(rows: BatchRows, step: StepSize) -> Tensor:
    """1/n per token, mean over completions."""
    steps = rows.tensor(rows.recorded(CountedTrajectories).num_steps)
    return rows.stands_for / (step.num_rows * steps.clamp(min=1)[:, None])


def _counted(usable: UsableRollouts, setting: Setting) -> CountedTrajectories:
    record = record_trajectory(usable, setting)
    number = count_states(record.trajectories(usable.actions), 1)
    return CountedTrajectories(record.rollout_logp, record.step_map, record.drawn, record.block, number)


def sampled_states(config: AGRPOConfig) -> StatePlan:
    """The pass's sample of the visited states: M, or all of a shorter trajectory."""
    every_state = visited_states(1).make

    def count(batch: TrainBatch) -> np.ndarray:
        return np.minimum(batch.recorded(CountedTrajectories).num_steps, config.num_steps)

    def make(batch: TrainBatch, rows: list[int], inner: int) -> States:
        every = every_state(batch, rows, inner)
        probability = _probabilities(config, batch, rows, every)
        uniform = state_uniform(torch.tensor(batch.seed[rows]), 1, inner)[:, 0].tolist()
        keep: np.ndarray = np.zeros(len(every), dtype=bool)
        number: np.ndarray = np.zeros(len(every), dtype=np.int64)
        for index, start in enumerate(uniform):
            mine = (every.row == index).numpy()
            keep[mine] = systematic_sample(probability[mine], start)
            number[mine] = keep[mine].cumsum() - 1
        stands_for = every.target / torch.from_numpy(probability)[:, None]
        numbered = replace(every, number=torch.from_numpy(number), stands_for=stands_for)
        return numbered.take(torch.from_numpy(keep))

    return StatePlan(count, make)


def _probabilities(config: AGRPOConfig, batch: TrainBatch, rows: list[int], every: States) -> np.ndarray:
    """Probability that each state is sampled, float64 `[states]`."""
    row = every.row.numpy()
    size: np.ndarray = np.ones(len(every))
    if config.step_sampling == "surprisal":
        recorded = batch.recorded(DrawnTokens).rollout_logp[np.array(rows)[row]]
        size = (-recorded * every.target.numpy()).sum(1, dtype=np.float64)
        mean = (np.bincount(row, weights=size) / np.maximum(np.bincount(row), 1))[row]
        # A certain row (mean 0) is sampled uniformly.
        size = np.where(mean > 0, (1 - _UNIFORM_SHARE) * size + _UNIFORM_SHARE * mean, 1.0)
    for index in np.unique(row):
        size[row == index] = inclusion_probabilities(size[row == index], config.num_steps)
    return size
