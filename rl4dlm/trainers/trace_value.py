"""The diffusion value model of TraceRL (arXiv:2509.06949): V_j = V(q, tau(1 .. t_j - 1))_j at drawn token j.

Values are read in the very states in which tokens were drawn, so returns and advantages follow the trace
(`advantage/gae.py`). The loss is the clipped regression of PPO, a mean over all tokens of the step. As a
`Trainer` its "likelihood" is the value, `[rows, completion]`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rl4dlm.advantage.gae import TraceAdvantage, trace_gae
from rl4dlm.likelihood.states import States, state_values
from rl4dlm.loss.value import clipped_value_error
from rl4dlm.recipe.algorithms import TraceRLConfig, ValueConfig
from rl4dlm.trainers.estimates import ONE_STATE_EACH, TokenLogp, with_blocks
from rl4dlm.trainers.method import BatchRows, Credit, Likelihood, Loss, Method, Objective, Setting, StepSize
from rl4dlm.trainers.tracerl import RewardedTrajectories, enlarged
from rl4dlm.trainers.trajectories import trajectories_of, visited_states
from rl4dlm.types import Denoiser, TrainBatch


@dataclass(frozen=True)
class JudgedTrajectories(RewardedTrajectories):
    """Trajectories with the returns and the values of their tokens before the update, `[batch,
    completion]`."""

    token_return: np.ndarray
    old_value: np.ndarray


def judged(batch: TrainBatch, token_return: np.ndarray, old_value: np.ndarray) -> TrainBatch:
    """The batch that the value model learns from."""
    record = batch.recorded(RewardedTrajectories)
    known = JudgedTrajectories(
        rollout_logp=record.rollout_logp,
        step_map=record.step_map,
        drawn=record.drawn,
        block=record.block,
        token_reward=record.token_reward,
        token_return=token_return,
        old_value=old_value,
    )
    return replace(batch, record=known)


@dataclass(frozen=True)
class TraceValue:
    """A value model's part in a run: what it learns by, and what its values are worth."""

    learns: Method[ValueConfig]
    """Its own method; its "denoiser" is the value model."""
    value: ValueConfig
    credit: Callable[[TrainBatch, int, np.ndarray], TraceAdvantage]
    """(batch, row, values `[completion]` of the row's tokens before the update): returns and advantages."""


def trace_value(config: TraceRLConfig, value: ValueConfig, setting: Setting) -> TraceValue:
    """The value model of TraceRL, on the states that the policy's method scores."""

    def credit(batch: TrainBatch, row: int, values: np.ndarray) -> TraceAdvantage:
        return trace_gae(
            batch.recorded(RewardedTrajectories).token_reward[row],
            values,
            trajectories_of(batch, [row]).row_steps(0, config.shrink),
            batch.loss_mask[row],
            gamma=value.gamma,
            lam=value.lam,
        )

    setting = enlarged(config, setting)
    score = Values(setting.spec, block_length=setting.spec.block_length if config.enlarge else None)
    likelihood = Likelihood(visited_states(config.shrink), ONE_STATE_EACH, score)
    learns = Method(value, setting, likelihood, clipped_regression(value), Credit(_no_advantages))
    return TraceValue(learns, value, credit)


@dataclass(frozen=True)
class Values(TokenLogp):
    """Values at the targets, `[states, completion]`, in place of log-probabilities."""

    def __call__(self, denoiser: Denoiser, batch: TrainBatch, rows: list[int], states: States) -> Tensor:
        """See `Score`."""
        prompts = [batch.prompt_ids[row] for row in rows]
        return state_values(
            with_blocks(denoiser, self.block_length), prompts, batch.completion_ids[rows], states
        )


def clipped_regression(config: ValueConfig) -> Objective:
    """The loss of values `[rows, completion]`: the clip is around values in the batch."""

    def objective(
        value: Tensor, rows: BatchRows, old: Tensor | None, ref: Tensor | None, step: StepSize
    ) -> Loss:
        known = rows.recorded(JudgedTrajectories)
        returns, before = rows.tensor(known.token_return), rows.tensor(known.old_value)
        error = clipped_value_error(value, before, returns, clip=config.epsilon)

        def mean(values: Tensor) -> Tensor:
            return torch.where(rows.live, values, torch.zeros_like(values)).sum() / step.num_tokens

        loss, residual = mean(error), returns - before
        return loss, {
            "value/loss": loss,
            "value/mean": mean(value),
            "value/return/mean": mean(returns),
            "value/return/mean_square": mean(returns.square()),
            "value/error/mean": mean(residual),
            "value/error/mean_square": mean(residual.square()),
        }

    return objective


def _no_advantages(reward: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Values learn from returns alone."""
    return np.zeros(len(reward), dtype=np.float32)
