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

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from rl4dlm.diffusion.masking import state_uniform
from rl4dlm.likelihood.states import States
from rl4dlm.likelihood.step_sampling import inclusion_probabilities, systematic_sample
from rl4dlm.likelihood.trajectory import Trajectories, count_states
from rl4dlm.recipe.algorithms import AGRPOConfig
from rl4dlm.trainers.base import Metrics, Setting, StepSize
from rl4dlm.trainers.state_trainer import Rows
from rl4dlm.trainers.trajectory_trainer import TrajectoryTrainer
from rl4dlm.types import Rollout, TrainBatch

_UNIFORM_SHARE = 0.5  # of the probability under `surprisal`: bounds the weights


class AGRPO(TrajectoryTrainer):
    """The method as a `Trainer`; holds settings only."""

    def __init__(self, config: AGRPOConfig, setting: Setting | None = None) -> None:
        super().__init__(config, setting)
        self.needs_old = config.ratio_against == "update"

    def extra(
        self,
        rollouts: Sequence[Rollout],
        reward: np.ndarray,
        group: np.ndarray,
        step_rewards: Sequence[np.ndarray] | None,
    ) -> tuple[dict[str, np.ndarray], Metrics]:
        """The recorded trajectories, and how many states each has."""
        arrays, metrics = super().extra(rollouts, reward, group, step_rewards)
        trainable = self.action_mask(rollouts)
        whole = Trajectories(arrays["step_map"], arrays["drawn"], trainable, arrays["block"])
        return {**arrays, "num_steps": count_states(whole, self.shrink)}, metrics

    def num_states(self, batch: TrainBatch) -> np.ndarray:
        """M, or all of a shorter trajectory."""
        return np.minimum(batch.extra["num_steps"], self.config.num_steps)

    def states(self, batch: TrainBatch, rows: Sequence[int], inner: int) -> States:
        """The pass's sample of the visited states."""
        every = super().states(batch, rows, inner)
        probability = self._probabilities(batch, list(rows), every)
        uniform = state_uniform(torch.tensor(batch.seed[list(rows)]), 1, inner)[:, 0].tolist()
        keep: np.ndarray = np.zeros(len(every), dtype=bool)
        number: np.ndarray = np.zeros(len(every), dtype=np.int64)
        for index, start in enumerate(uniform):
            mine = (every.row == index).numpy()
            keep[mine] = systematic_sample(probability[mine], start)
            number[mine] = keep[mine].cumsum() - 1
        stands_for = every.target / torch.from_numpy(probability)[:, None]
        numbered = replace(every, number=torch.from_numpy(number), stands_for=stands_for)
        return numbered.take(torch.from_numpy(keep))

    def _probabilities(self, batch: TrainBatch, rows: list[int], every: States) -> np.ndarray:
        """Probability that each state is sampled, float64 `[states]`."""
        row = every.row.numpy()
        size: np.ndarray = np.ones(len(every))
        if self.config.step_sampling == "surprisal":
            recorded = batch.extra["rollout_logp"][np.array(rows)[row]]
            size = (-recorded * every.target.numpy()).sum(1, dtype=np.float64)
            mean = (np.bincount(row, weights=size) / np.maximum(np.bincount(row), 1))[row]
            # A certain row (mean 0) is sampled uniformly.
            size = np.where(mean > 0, (1 - _UNIFORM_SHARE) * size + _UNIFORM_SHARE * mean, 1.0)
        for index in np.unique(row):
            size[row == index] = inclusion_probabilities(size[row == index], self.config.num_steps)
        return size

    def weights(self, rows: Rows, step: StepSize) -> Tensor:
        """`over_steps`: 1/n per token, mean over completions."""
        if self.config.aggregation != "over_steps":
            return super().weights(rows, step)
        return rows.stands_for / (step.num_rows * rows.extra["num_steps"].clamp(min=1)[:, None])

    def objective(
        self, value: Tensor, rows: Rows, old: Tensor | None, ref: Tensor | None, step: StepSize
    ) -> tuple[Tensor, Metrics]:
        """See `StateTrainer.objective`."""
        if self.config.ratio_against == "rollout":
            old = rows.extra["rollout_logp"]
        return super().objective(value, rows, old, ref, step)

    def _kl(self, value: Tensor, ref: Tensor | None, live: Tensor, log_ratio: Tensor) -> Tensor:
        """KL to the reference per token, weighted by the ratio: its expectation is under the policy."""
        clamp = self.config.log_ratio_clamp
        return super()._kl(value, ref, live, log_ratio) * log_ratio.clamp(-clamp, clamp).exp()
