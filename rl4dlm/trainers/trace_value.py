"""The diffusion value model of TraceRL (arXiv:2509.06949): V_j = V(q, tau(1 .. t_j - 1))_j at drawn token j.

Values are read in the very states in which tokens were drawn, so returns and advantages follow the trace
(`advantage/gae.py`). The loss is the clipped regression of PPO, a mean over all tokens of the step. As a
`Trainer` its "likelihood" is the value, `[rows, completion]`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rl4dlm.advantage.gae import TraceAdvantage, trace_gae
from rl4dlm.likelihood.states import States, state_values
from rl4dlm.loss.value import clipped_value_error
from rl4dlm.recipe.algorithms import TraceRLConfig, ValueConfig
from rl4dlm.trainers.base import Metrics, MicroBatch, Replay, Setting, StepSize
from rl4dlm.trainers.state_trainer import Rows, stack_metrics
from rl4dlm.trainers.tracerl import TOKEN_REWARD, enlarged, with_blocks
from rl4dlm.trainers.trajectory_trainer import TrajectoryTrainer
from rl4dlm.types import Denoiser, TrainBatch

RETURN, OLD_VALUE = "token_return", "old_value"
"""Names in `TrainBatch.extra`, `[batch, completion]` each."""


class TraceValue(TrajectoryTrainer):
    """The value model's own method; its "denoiser" is the value model."""

    needs_old = False  # the clip is around values in the batch

    def __init__(self, config: TraceRLConfig, value: ValueConfig, setting: Setting | None = None) -> None:
        super().__init__(config, enlarged(config, setting or Setting()), shrink=config.shrink)
        self.value = value
        self.num_iterations = value.num_iterations
        self.needs_reference = False

    @property
    def replay(self) -> Replay | None:
        """Values are not weighed by importance."""
        return None

    def has_loss(self, batch: TrainBatch) -> np.ndarray:
        """Every completion teaches its value."""
        return np.ones(len(batch), dtype=bool)

    def credit(self, batch: TrainBatch, row: int, value: np.ndarray) -> TraceAdvantage:
        """Returns and advantages of a row.

        Args:
            value: float `[completion]`, of the row's tokens before the update.
        """
        return trace_gae(
            batch.extra[TOKEN_REWARD][row],
            value,
            self.trajectories(batch, [row]).row_steps(0, self.shrink),
            batch.loss_mask[row],
            gamma=self.value.gamma,
            lam=self.value.lam,
        )

    def score(self, denoiser: Denoiser, batch: TrainBatch, micro: MicroBatch, states: States) -> Tensor:
        """Values at the targets, `[states, completion]`."""
        rows = list(micro.rows)
        prompts = [batch.prompt_ids[row] for row in rows]
        model = with_blocks(denoiser, self.setting.spec)
        return state_values(model, prompts, batch.completion_ids[rows], states)

    def objective(
        self, value: Tensor, rows: Rows, old: Tensor | None, ref: Tensor | None, step: StepSize
    ) -> tuple[Tensor, Metrics]:
        """See `StateTrainer.objective`."""
        returns, before = rows.extra[RETURN], rows.extra[OLD_VALUE]
        error = clipped_value_error(value, before, returns, clip=self.value.epsilon)

        def mean(values: Tensor) -> Tensor:
            return torch.where(rows.live, values, torch.zeros_like(values)).sum() / step.num_tokens

        loss, residual = mean(error), returns - before
        metrics = {
            "value/loss": loss,
            "value/mean": mean(value),
            "value/return/mean": mean(returns),
            "value/return/mean_square": mean(returns.square()),
            "value/error/mean": mean(residual),
            "value/error/mean_square": mean(residual.square()),
        }
        return loss, stack_metrics(metrics)
