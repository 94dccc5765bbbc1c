"""Masked Diffusion Policy Optimization (MDPO, arXiv:2508.13148): every denoising step is an action that is
rewarded.

A state is the canvas x_i before step i, its action the whole prediction xhat_i, one token at each masked
position j in S_i, with the exact law prod_j p(xhat_ij | q, x_i): what is committed is chosen afterwards, by
the transition. r_i is the reward of xhat_i as a complete answer, compared within the group at the same step:

    a_i  = (r_i - r_{i-1}) + mean over j > i of r_j,    A_i = (a_i - group mean) / group std
    loss = mean over completions, mean over the K most informative steps i, of
           sum over j in S_i of c_ij (-lambda_i min(rho_ij A_i, clip(rho_ij) A_i) + beta k2_ij) / |S_i|

with lambda_i = L / |S_i|, c_ij the sampler's confidence, log-probabilities at the sampler's temperature.
Departures from the released code: old values are defined for every mu, in evaluation mode; steps are chosen
per prompt group; a completion that ends early keeps its last reward in the steps that it did not take.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rl4dlm.advantage.stepwise import StepChoice, choose_steps
from rl4dlm.likelihood.predictions import VisitedStates, inverse_mask_rate, prediction_weights
from rl4dlm.likelihood.states import States, rectangle
from rl4dlm.likelihood.trajectory import DrawnTokens
from rl4dlm.recipe.algorithms import MDPOConfig
from rl4dlm.rollout.partial import predicted_texts, rewarded_steps
from rl4dlm.trainers.credit import compared_in_group
from rl4dlm.trainers.estimates import TokenLogp, in_places
from rl4dlm.trainers.method import (
    BatchRows,
    Likelihood,
    Method,
    Metrics,
    Recorded,
    Setting,
    StatePlan,
    StepSize,
    UsableRollouts,
)
from rl4dlm.trainers.tokens import ClippedTokens
from rl4dlm.types import Rollout, TrainBatch


@dataclass(frozen=True)
class ChosenSteps(DrawnTokens):
    """The chosen states, what was predicted there, and its weights; arrays `[batch, K, completion]`."""

    canvas: np.ndarray
    prediction: np.ndarray
    target: np.ndarray
    token_weight: np.ndarray
    """c_ij / |S_i|, over the chosen steps."""
    step_share: np.ndarray
    """`[batch, K]`: each step's share in the row's mean; 0 where a row has no such step."""


def mdpo(config: MDPOConfig, setting: Setting) -> Method[MDPOConfig]:
    """The K most informative steps of every group; the estimate is `[rows, K, completion]`, nats per
    predicted token; the loss by `tokens.py`."""
    estimate = in_places(config.sample_train_steps, separable=True, judged_in_states=True)
    score = TokenLogp(setting.spec, setting.law_temperature)
    likelihood = Likelihood(chosen_states(setting), estimate, score)

    def rewarded(rollout: Rollout) -> np.ndarray:
        return rewarded_steps(rollout.num_steps, config.reward_stride)

    def predicted(rollout: Rollout) -> list[np.ndarray]:
        """The predicted answers of every `reward_stride`-th step and of the last."""
        return predicted_texts(rollout, rewarded(rollout), setting.spec)

    return Method(
        config,
        setting,
        likelihood,
        ClippedTokens(config, over_predictions),
        compared_in_group(config, decodes=predicted, decoded_steps=rewarded),
        record=lambda usable: chosen_steps(usable, config, setting),
        # The predictions' own log-probabilities: recorded ones are of the same states and tokens.
        replay=None if config.importance_bound is None else likelihood,
    )


def over_predictions(rows: BatchRows, step: StepSize) -> Tensor:
    """c_ij / |S_i|, over the chosen steps and the completions."""
    return rows.live * rows.tensor(rows.recorded(ChosenSteps).token_weight) / step.num_rows


def chosen_states(setting: Setting) -> StatePlan:
    """The chosen states as they were visited, the same in every pass; the loss is a sum over predictions."""
    mask_id = setting.spec.mask_id

    def count(batch: TrainBatch) -> np.ndarray:
        return (batch.recorded(ChosenSteps).step_share > 0).sum(1)

    def predictions(batch: TrainBatch) -> np.ndarray:
        return batch.recorded(ChosenSteps).target.sum((1, 2))

    def make(batch: TrainBatch, rows: list[int], inner: int) -> States:
        chosen = batch.recorded(ChosenSteps).take(rows)
        canvas, target = torch.from_numpy(chosen.canvas), torch.from_numpy(chosen.target)
        label, share = torch.from_numpy(chosen.prediction).long(), torch.from_numpy(chosen.step_share)
        masked = canvas == mask_id
        states = rectangle(masked, target.double(), target=target, canvas=canvas.long(), label=label)
        return states.take((share > 0).flatten())

    return StatePlan(count, make, tokens=predictions)


def chosen_steps(usable: UsableRollouts, config: MDPOConfig, setting: Setting) -> Recorded:
    """The chosen states with their predictions, confidences, advantages and shares."""
    assert usable.step_rewards is not None, "MDPO needs the rewards of partial decodes"
    choice = choose_steps(
        usable.step_rewards,
        usable.group,
        config.sample_train_steps,
        config.adv_kind,
        scale_rewards=config.scale_rewards,
        baseline=config.baseline,
        keep_zero=config.keeps_reference,
    )
    visited, mask_id = _visited(usable.rollouts, choice, config, setting), setting.spec.mask_id
    rate = inverse_mask_rate(visited, mask_id) if config.lambda_mode == "inv_mask_frac" else 1.0
    confident = prediction_weights(visited, by_confidence=config.weighs_by_confidence)
    record = ChosenSteps(
        rollout_logp=visited.logp,
        canvas=visited.canvas,
        prediction=visited.prediction,
        target=visited.target,
        token_weight=choice.share[..., None] * confident,
        step_share=choice.share,
    )
    # The clipped objective is linear in the advantage's size, so lambda may ride on it.
    advantage = (choice.advantage * rate)[..., None].astype(np.float32)
    return Recorded(record, advantage, _step_metrics(usable.step_rewards, choice, visited))


def _visited(
    rollouts: Sequence[Rollout], choice: StepChoice, config: MDPOConfig, setting: Setting
) -> VisitedStates:
    visited = VisitedStates.empty(*choice.step.shape, len(rollouts[0].completion_ids))
    for row, place in zip(*np.nonzero(choice.share), strict=True):
        rollout = rollouts[row]
        steps = rewarded_steps(rollout.num_steps, config.reward_stride)
        step, beyond = int(steps[choice.step[row, place]]), config.train_beyond_block
        visited.write((row, place), rollout, step, setting.spec.mask_id, beyond)
    return visited


def _step_metrics(step_rewards: Sequence[np.ndarray], choice: StepChoice, visited: VisitedStates) -> Metrics:
    """Rewards on the way; how often an answer was better before it was finished; what is trained on."""
    chosen, tokens = choice.share > 0, visited.target
    return {
        "reward/step_mean": float(np.mean([row.mean(dtype=np.float64) for row in step_rewards])),
        "diffusion/backslide_rate": float(np.mean([row.max() > row[-1] for row in step_rewards])),
        "advantage/step_abs_mean": float(np.abs(choice.advantage[chosen]).mean()) if chosen.any() else 0.0,
        "confidence/mean": float(visited.confidence[tokens].mean()) if tokens.any() else 0.0,
    }
