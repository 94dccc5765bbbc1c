"""Methods with one clipped ratio per token: what TraceRL, diffu-GRPO and their relatives share.

    rho_i = exp(l_i - l_i_old)
    loss  = - sum over actions i of a_i w_i min(rho_i A_i, clip(rho_i) A_i)
            + sum over actions i of a_i (beta KL_i(theta, ref) + trust_beta k3_i(theta, old))

with l_i the method's log-probability of token i, A_i the completion's advantage or the token's own, a_i the
weight that the aggregation gives it (times the number of actions that it stands for, where a method scores
a sample of them), and w_i an importance weight against the policy that drew the rollout (1
without `importance_correction`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rl4dlm.likelihood.states import States
from rl4dlm.likelihood.trajectory import trajectory_arrays
from rl4dlm.loss.kl import KL_ESTIMATORS, k3
from rl4dlm.loss.reduce import token_weights
from rl4dlm.loss.surrogate import Surrogate, clipped_surrogate
from rl4dlm.trainers.base import Metrics, Replay, StepSize
from rl4dlm.trainers.state_trainer import Rows, StateTrainer, stack_metrics, sum_states
from rl4dlm.types import Rollout

ADVANTAGE = "token_advantage"
"""Name in `TrainBatch.extra` of an advantage per token, `[batch, completion]` (a value model's)."""
IMPORTANCE = "importance"
"""Name in `TrainBatch.extra` of the weights w_i, `[batch, completion]`."""


class TokenTrainer(StateTrainer):
    """A `StateTrainer` whose estimate is one log-probability per token, `[rows, completion]` nats.

    Its settings have `epsilon`, `epsilon_high`, `log_ratio_clamp`, `aggregation` and `importance_correction`,
    and, where the method has them, `beta` with `kl_estimator`, and `trust_beta`.
    """

    @property
    def replay(self) -> Replay | None:
        """See `Trainer.replay`."""
        if self.config.importance_correction == "none":
            return None
        from rl4dlm.trainers.trajectory_trainer import TrajectoryTrainer

        return Replay(TrajectoryTrainer(self.config, self.setting), self.config.importance_cap)

    def combine(self, logp: Tensor, states: States, num_rows: int) -> Tensor:
        """The weighted sum over states at each position."""
        return sum_states(states.weight.to(logp) * logp, states, num_rows)

    def extra(
        self,
        rollouts: Sequence[Rollout],
        reward: np.ndarray,
        group: np.ndarray,
        step_rewards: Sequence[np.ndarray] | None,
    ) -> tuple[dict[str, np.ndarray], Metrics]:
        """The recorded trajectories, where importance weights are computed from them."""
        return {} if self.replay is None else trajectory_arrays(rollouts), {}

    def weights(self, rows: Rows, step: StepSize) -> Tensor:
        """The share a_i of each token in the loss, `[rows, completion]`."""
        return rows.stands_for * token_weights(
            self.config.aggregation,
            rows.live,
            num_rows=step.num_rows,
            num_tokens=step.num_tokens,
            row_tokens=rows.num_tokens,
        )

    def objective(
        self, value: Tensor, rows: Rows, old: Tensor | None, ref: Tensor | None, step: StepSize
    ) -> tuple[Tensor, Metrics]:
        """See `StateTrainer.objective`."""
        share, live = self.weights(rows, step), rows.live
        log_ratio = _where(live, value - (value.detach() if old is None else old))
        surrogate = self._surrogate(log_ratio, rows)
        policy_loss = -(share * _where(live, surrogate.gain * _importance(rows))).sum()
        kl = (share * self._kl(value, ref, live, log_ratio)).sum()
        trust = (share * self._trust(log_ratio)).sum()
        loss = policy_loss + getattr(self.config, "beta", 0.0) * kl
        loss = loss + getattr(self.config, "trust_beta", 0.0) * trust
        return loss, self._metrics(policy_loss, kl, trust, surrogate, value, rows, step)

    def _surrogate(self, log_ratio: Tensor, rows: Rows) -> Surrogate:
        config = self.config
        return clipped_surrogate(
            log_ratio,
            rows.extra.get(ADVANTAGE, rows.advantage[:, None]),
            clip_low=config.epsilon,
            clip_high=config.epsilon if config.epsilon_high is None else config.epsilon_high,
            log_ratio_clamp=config.log_ratio_clamp,
        )

    def _kl(self, value: Tensor, ref: Tensor | None, live: Tensor, log_ratio: Tensor) -> Tensor:
        """KL to the reference per token; 0 without one."""
        if not self.needs_reference:
            return torch.zeros_like(value)
        assert ref is not None, "a KL term needs the reference policy's log-probabilities"
        clamp = self.config.log_ratio_clamp
        return _where(live, KL_ESTIMATORS[self.config.kl_estimator]((value - ref).clamp(-clamp, clamp)))

    def _trust(self, log_ratio: Tensor) -> Tensor:
        """k3 between current and old policy per token: TraceRL's "KL", zero where the ratio is 1."""
        clamp = self.config.log_ratio_clamp
        return k3(log_ratio.clamp(-clamp, clamp))

    def _metrics(
        self,
        policy_loss: Tensor,
        kl: Tensor,
        trust: Tensor,
        surrogate: Surrogate,
        value: Tensor,
        rows: Rows,
        step: StepSize,
    ) -> Metrics:
        """Shares of the step's metrics: over all actions; ratio and log-probability over those run."""
        live = rows.live
        low, high = (rows.stands_for * clipped for clipped in _clipped(surrogate, live))
        ratio = surrogate.ratio.masked_select(live)
        counted = rows.stands_for.masked_select(live) / step.num_counted_tokens
        values = {
            "loss/policy": policy_loss,
            "clip_ratio/low_mean": low.sum() / step.num_tokens,
            "clip_ratio/high_mean": high.sum() / step.num_tokens,
            "clip_ratio/region_mean": (low + high).sum() / step.num_tokens,
            "ratio/mean": (counted * ratio).sum(),
            "logp/mean": (counted * value.detach().masked_select(live)).sum(),
        }
        if ratio.numel():
            values |= {"ratio/max": ratio.max(), "ratio/min": ratio.min()}
        if self.needs_reference:
            values["kl"] = kl
        if getattr(self.config, "trust_beta", 0.0):
            values["trust_kl"] = trust
        if IMPORTANCE in rows.extra:
            values["importance/mean"] = (counted * _importance(rows).masked_select(live)).sum()
        return stack_metrics(values)


def _where(live: Tensor, values: Tensor) -> Tensor:
    """Zero elsewhere; positions that are not scored may hold anything."""
    return torch.where(live, values, torch.zeros_like(values))


def _importance(rows: Rows) -> Tensor:
    """The weights w_i, of the estimate's shape, or 1."""
    return rows.extra.get(IMPORTANCE, rows.advantage.new_ones(()))


def _clipped(surrogate: Surrogate, live: Tensor) -> tuple[Tensor, Tensor]:
    return surrogate.clipped_low & live, surrogate.clipped_high & live
