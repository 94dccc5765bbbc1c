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
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from rl4dlm.advantage.stepwise import StepChoice, choose_steps
from rl4dlm.likelihood.predictions import VisitedStates, inverse_mask_rate, prediction_weights
from rl4dlm.likelihood.states import States, rectangle
from rl4dlm.recipe.algorithms import MDPOConfig
from rl4dlm.rollout.partial import predicted_texts, rewarded_steps
from rl4dlm.trainers.base import Metrics, MicroBatch, Replay, Setting, StepSize
from rl4dlm.trainers.state_trainer import Rows, place_states
from rl4dlm.trainers.token_trainer import ADVANTAGE, TokenTrainer
from rl4dlm.types import Rollout, RolloutGroup, TrainBatch, flatten


class MDPO(TokenTrainer):
    """The method as a `Trainer`; its estimate is `[rows, K, completion]`, nats per predicted token."""

    scores_steps = True
    separable = True

    def __init__(self, config: MDPOConfig, setting: Setting | None = None) -> None:
        super().__init__(config, setting)
        # Greedy rollouts are recorded at temperature 1.
        self.temperature = self.setting.temperature or 1.0

    @property
    def replay(self) -> Replay | None:
        """The predictions' own log-probabilities: recorded ones are of the same states and tokens."""
        corrects = self.config.importance_correction != "none"
        return Replay(self, self.config.importance_cap) if corrects else None

    def partial_decodes(self, groups: Sequence[RolloutGroup]) -> list[list[np.ndarray]]:
        """The predicted answers of every `reward_stride`-th step and of the last."""
        return [predicted_texts(row, self._rewarded(row), self.setting.spec) for row in flatten(groups)]

    def extra(
        self,
        rollouts: Sequence[Rollout],
        reward: np.ndarray,
        group: np.ndarray,
        step_rewards: Sequence[np.ndarray] | None,
    ) -> tuple[dict[str, np.ndarray], Metrics]:
        """The chosen states with their predictions, confidences, advantages and shares."""
        assert step_rewards is not None, "MDPO needs the rewards of partial decodes"
        choice = choose_steps(
            step_rewards,
            group,
            self.config.sample_train_steps,
            self.config.adv_kind,
            scale_rewards=self.config.scale_rewards,
            baseline=self.config.baseline,
            keep_zero=self.needs_reference,
        )
        visited, mask_id = self._visited(rollouts, choice), self.setting.spec.mask_id
        rate = inverse_mask_rate(visited, mask_id) if self.config.lambda_mode == "inv_mask_frac" else 1.0
        confident = self.config.token_weights == "confidence"
        arrays = {
            "canvas": visited.canvas,
            "prediction": visited.prediction,
            "target": visited.target,
            "rollout_logp": visited.logp,
            "step_share": choice.share,
            "token_weight": choice.share[..., None] * prediction_weights(visited, by_confidence=confident),
            # The clipped objective is linear in the advantage's size, so lambda may ride on it.
            ADVANTAGE: (choice.advantage * rate)[..., None].astype(np.float32),
        }
        return arrays, _step_metrics(step_rewards, choice, visited)

    def rewards_by_step(
        self, groups: Sequence[RolloutGroup], step_rewards: Sequence[np.ndarray]
    ) -> list[np.ndarray] | None:
        """At the verified steps."""
        by_step = []
        for rollout, rewards in zip(flatten(groups), step_rewards, strict=True):
            row: np.ndarray = np.full(rollout.num_steps, np.nan, dtype=np.float32)
            row[self._rewarded(rollout)] = rewards
            by_step.append(row)
        return by_step

    def _rewarded(self, rollout: Rollout) -> np.ndarray:
        return rewarded_steps(rollout.num_steps, self.config.reward_stride)

    def _visited(self, rollouts: Sequence[Rollout], choice: StepChoice) -> VisitedStates:
        visited = VisitedStates.empty(*choice.step.shape, len(rollouts[0].completion_ids))
        for row, place in zip(*np.nonzero(choice.share), strict=True):
            rollout = rollouts[row]
            step = int(self._rewarded(rollout)[choice.step[row, place]])
            beyond, mask_id = self.config.train_beyond_block, self.setting.spec.mask_id
            visited.write((row, place), rollout, step, mask_id, beyond)
        return visited

    def num_states(self, batch: TrainBatch) -> np.ndarray:
        """The chosen steps that each row took."""
        return (batch.extra["step_share"] > 0).sum(1)

    def has_loss(self, batch: TrainBatch) -> np.ndarray:
        """Rows with a step whose advantage is not 0, or that a KL term is felt at."""
        return self.num_states(batch) > 0

    def step_size(self, batch: TrainBatch, rows: Sequence[int] | np.ndarray) -> StepSize:
        """Tokens are predictions of chosen steps."""
        targets = batch.extra["target"][np.asarray(rows, dtype=np.int64)].sum()
        num_tokens = max(1.0, float(targets))
        return replace(super().step_size(batch, rows), num_tokens=num_tokens, num_counted_tokens=num_tokens)

    def states(self, batch: TrainBatch, rows: Sequence[int], inner: int) -> States:
        """The chosen states as they were visited, the same in every pass."""
        names = ("canvas", "prediction", "target", "step_share")
        canvas, label, target, share = (torch.from_numpy(batch.extra[name][list(rows)]) for name in names)
        masked = canvas == self.setting.spec.mask_id
        states = rectangle(masked, target.double(), target=target, canvas=canvas.long(), label=label.long())
        return states.take((share > 0).flatten())

    def combine(self, logp: Tensor, states: States, num_rows: int) -> Tensor:
        """Every state's own log-probabilities, `[rows, K, completion]`."""
        return place_states(logp, states, num_rows, self.config.sample_train_steps)

    def weights(self, rows: Rows, step: StepSize) -> Tensor:
        """c_ij / |S_i|, over the chosen steps and the completions."""
        return rows.live * rows.extra["token_weight"] / step.num_rows

    def _rows(self, batch: TrainBatch, micro: MicroBatch, states: States, value: Tensor, inner: int) -> Rows:
        """Judged are the targets of this pass, each in its state: `[rows, K, completion]`."""
        live = self.combine(states.target.to(value), states, len(micro.rows)) > 0
        rows = super()._rows(batch, micro, states, value, inner)
        return replace(rows, live=live, stands_for=live.to(value))


def _step_metrics(step_rewards: Sequence[np.ndarray], choice: StepChoice, visited: VisitedStates) -> Metrics:
    """Rewards on the way; how often an answer was better before it was finished; what is trained on."""
    chosen, tokens = choice.share > 0, visited.target
    return {
        "reward/step_mean": float(np.mean([row.mean(dtype=np.float64) for row in step_rewards])),
        "diffusion/backslide_rate": float(np.mean([row.max() > row[-1] for row in step_rewards])),
        "advantage/step_abs_mean": float(np.abs(choice.advantage[chosen]).mean()) if chosen.any() else 0.0,
        "confidence/mean": float(visited.confidence[tokens].mean()) if tokens.any() else 0.0,
    }
