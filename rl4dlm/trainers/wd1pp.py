"""wd1 on the predictions of every denoising step (wd1++, arXiv:2507.08838).

    loss = mean over groups of (1/G) sum over completions g of (w-_g - w+_g)
           mean over K of g's steps i of (L / |S_i|) sum over j in S_i of log p(xhat_ij | q, x_i)

with x_i the canvas that the sampler saw at step i, S_i what it hides, xhat_i the tokens that the sampler
would have written there, and w+-_g as in `wd1.py`: each prediction is raised or lowered with the completion
that it led to. Log-probabilities are untempered, since with the weights L / |S_i| this is an estimate of the
ELBO kind. The published text does not say which steps are used; here K are drawn for every completion.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from rl4dlm.diffusion.seeds import derive_seed
from rl4dlm.likelihood.predictions import VisitedStates, inverse_mask_rate
from rl4dlm.likelihood.states import States, rectangle
from rl4dlm.recipe.algorithms import WD1PlusConfig
from rl4dlm.trainers.estimates import SUM_OVER_STATES, TokenLogp
from rl4dlm.trainers.method import Credit, Likelihood, Method, Recorded, Setting, StatePlan, UsableRollouts
from rl4dlm.trainers.wd1 import weighted_likelihood, weights
from rl4dlm.types import Record, Rollout, TrainBatch


@dataclass(frozen=True)
class DrawnSteps(Record):
    """The drawn states of every rollout; arrays `[batch, K, completion]`, and their weights `[batch, K]`."""

    canvas: np.ndarray
    prediction: np.ndarray
    target: np.ndarray
    step_weight: np.ndarray


def wd1pp(config: WD1PlusConfig, setting: Setting) -> Method[WD1PlusConfig]:
    """The predictions of K drawn steps; the loss of a group is the mean over its completions."""
    mask_id = setting.spec.mask_id

    def number(batch: TrainBatch) -> np.ndarray:
        return (batch.recorded(DrawnSteps).step_weight > 0).sum(1)

    def visited(batch: TrainBatch, rows: list[int], inner: int) -> States:
        """As they were visited, the same in every pass."""
        drawn = batch.recorded(DrawnSteps).take(rows)
        canvas, target = torch.from_numpy(drawn.canvas), torch.from_numpy(drawn.target)
        share, label = torch.from_numpy(drawn.step_weight), torch.from_numpy(drawn.prediction).long()
        weight, masked = share[..., None] * target, canvas == mask_id
        states = rectangle(masked, weight, target=target, canvas=canvas.long(), label=label)
        return states.take((share > 0).flatten())

    def record(usable: UsableRollouts) -> Recorded:
        return Recorded(_drawn(usable, config.sample_train_steps, mask_id))

    likelihood = Likelihood(StatePlan(number, visited), SUM_OVER_STATES, TokenLogp(setting.spec))
    credit = Credit(weights(config, sums_group=False))
    return Method(config, setting, likelihood, weighted_likelihood, credit, record)


def _drawn(usable: UsableRollouts, most: int, mask_id: int) -> DrawnSteps:
    rollouts = usable.rollouts
    visited = VisitedStates.empty(len(rollouts), most, len(rollouts[0].completion_ids))
    share: np.ndarray = np.zeros((len(rollouts), most))
    for row, rollout in enumerate(rollouts):
        steps = draw_steps(rollout, most)
        share[row, : len(steps)] = 1 / len(steps)
        for place, step in enumerate(steps):
            visited.write((row, place), rollout, int(step), mask_id, beyond=True)
    target = visited.target & usable.actions[:, None]
    return DrawnSteps(visited.canvas, visited.prediction, target, share * inverse_mask_rate(visited, mask_id))


def draw_steps(rollout: Rollout, most: int) -> np.ndarray:
    """Up to `most` different steps of a rollout, uniformly, as a function of its seed; int64, ascending."""
    order = np.random.default_rng(derive_seed(rollout.seed, "steps")).permutation(rollout.num_steps)
    return np.sort(order[:most])
