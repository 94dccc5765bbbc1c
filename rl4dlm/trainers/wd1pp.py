"""wd1 on the predictions of every denoising step (wd1++, arXiv:2507.08838).

    loss = mean over groups of (1/G) sum over completions g of (w-_g - w+_g)
           mean over K of g's steps i of (L / |S_i|) sum over j in S_i of log p(xhat_ij | q, x_i)

with x_i the canvas that the sampler saw at step i, S_i what it hides, xhat_i the tokens that the sampler
would have written there, and w+-_g as in `wd1.py`: each prediction is raised or lowered with the completion
that it led to. Log-probabilities are untempered, since with the weights L / |S_i| this is an estimate of the
ELBO kind. The published text does not say which steps are used; here K are drawn for every completion.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from rl4dlm.diffusion.seeds import derive_seed
from rl4dlm.likelihood.predictions import VisitedStates, inverse_mask_rate
from rl4dlm.likelihood.states import States, rectangle
from rl4dlm.trainers.base import Metrics
from rl4dlm.trainers.wd1 import WeightedLikelihood
from rl4dlm.types import Rollout, TrainBatch


class WD1Plus(WeightedLikelihood):
    """The method as a `Trainer`; holds settings only."""

    sums_group = False

    def extra(
        self,
        rollouts: Sequence[Rollout],
        reward: np.ndarray,
        group: np.ndarray,
        step_rewards: Sequence[np.ndarray] | None,
    ) -> tuple[dict[str, np.ndarray], Metrics]:
        """The drawn states of every rollout, `[batch, K, completion]`, and their weights `[batch, K]`."""
        mask_id, most = self.setting.spec.mask_id, self.config.sample_train_steps
        visited = VisitedStates.empty(len(rollouts), most, len(rollouts[0].completion_ids))
        share: np.ndarray = np.zeros((len(rollouts), most))
        for row, rollout in enumerate(rollouts):
            steps = draw_steps(rollout, most)
            share[row, : len(steps)] = 1 / len(steps)
            for place, step in enumerate(steps):
                visited.write((row, place), rollout, int(step), mask_id, beyond=True)
        arrays = {
            "canvas": visited.canvas,
            "prediction": visited.prediction,
            "target": visited.target & self.action_mask(rollouts)[:, None],
            "step_weight": share * inverse_mask_rate(visited, mask_id),
        }
        return arrays, {}

    def num_states(self, batch: TrainBatch) -> np.ndarray:
        """The drawn steps of each row."""
        return (batch.extra["step_weight"] > 0).sum(1)

    def states(self, batch: TrainBatch, rows: Sequence[int], inner: int) -> States:
        """The drawn states as they were visited, the same in every pass."""
        names = ("canvas", "prediction", "target", "step_weight")
        canvas, label, target, weight = (torch.from_numpy(batch.extra[name][list(rows)]) for name in names)
        states = rectangle(
            canvas == self.setting.spec.mask_id,
            weight[..., None] * target,
            target=target,
            canvas=canvas.long(),
            label=label.long(),
        )
        return states.take((weight > 0).flatten())


def draw_steps(rollout: Rollout, most: int) -> np.ndarray:
    """Up to `most` different steps of a rollout, uniformly, as a function of its seed; int64, ascending."""
    order = np.random.default_rng(derive_seed(rollout.seed, "steps")).permutation(rollout.num_steps)
    return np.sort(order[:most])
