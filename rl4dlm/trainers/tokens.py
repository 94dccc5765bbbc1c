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

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rl4dlm.loss.kl import KL_ESTIMATORS, k3
from rl4dlm.loss.reduce import token_weights
from rl4dlm.loss.surrogate import Surrogate, clipped_surrogate
from rl4dlm.recipe.algorithms import Clipped, Referenced, TokenLevel
from rl4dlm.trainers.credit import compared_in_group
from rl4dlm.trainers.estimates import PER_TOKEN, TokenLogp
from rl4dlm.trainers.method import (
    BatchRows,
    Likelihood,
    Loss,
    Method,
    Recorded,
    Setting,
    StatePlan,
    StepSize,
    UsableRollouts,
)
from rl4dlm.trainers.trajectories import record_trajectory, replayed

Share = Callable[[BatchRows, StepSize], Tensor]
"""The share a_i of each judged position in the loss, of the estimate's shape."""


def token_method(config: TokenLevel, setting: Setting, states: StatePlan) -> Method[TokenLevel]:
    """A method whose estimate is one log-probability per token, from these states."""
    replay = replayed(config, setting)
    return Method(
        config,
        setting,
        Likelihood(states, PER_TOKEN, TokenLogp(setting.spec)),
        ClippedTokens(config, aggregated(config.aggregation)),
        compared_in_group(config),
        record=None if replay is None else recorder(setting),
        replay=replay,
    )


def recorder(setting: Setting) -> Callable[[UsableRollouts], Recorded]:
    """What importance weights need of a batch: its recorded trajectories."""
    return lambda usable: Recorded(record_trajectory(usable, setting))


def aggregated(aggregation: str) -> Share:
    """`token_mean`, `seq_mean` or `canvas` (`loss/reduce.py`), times the actions that a token stands for."""

    def share(rows: BatchRows, step: StepSize) -> Tensor:
        return rows.stands_for * token_weights(
            aggregation,
            rows.live,
            num_rows=step.num_rows,
            num_tokens=step.num_tokens,
            row_tokens=rows.num_tokens,
        )

    return share


@dataclass(frozen=True)
class ClippedTokens:
    """The objective of an estimate `[rows, completion]` (or `[rows, K, completion]`), nats per token."""

    config: Clipped
    share: Share
    trust_beta: float = 0.0
    """Weight of k3 between current and old policy per token: TraceRL's "KL", zero where the ratio is 1."""
    kl_times_ratio: bool = False
    """Weigh the KL to the reference by the ratio: its expectation is under the policy (AGRPO)."""

    def __call__(
        self, value: Tensor, rows: BatchRows, old: Tensor | None, ref: Tensor | None, step: StepSize
    ) -> Loss:
        """See `Objective`."""
        config, share, live = self.config, self.share(rows, step), rows.live
        weight = rows.advantage.new_ones(()) if rows.importance is None else rows.importance
        log_ratio = _where(live, value - (value.detach() if old is None else old))
        surrogate = clipped_surrogate(
            log_ratio,
            rows.advantage[:, None] if rows.token_advantage is None else rows.token_advantage,
            clip_low=config.epsilon,
            clip_high=config.clip_high,
            log_ratio_clamp=config.log_ratio_clamp,
        )
        loss = -(share * _where(live, surrogate.gain * weight)).sum()
        metrics = _metrics(loss, surrogate, value.detach(), rows, step)
        if isinstance(config, Referenced) and config.keeps_reference:
            metrics["kl"] = (share * self._kl(config, value, ref, live, log_ratio)).sum()
            loss = loss + config.beta * metrics["kl"]
        if self.trust_beta:
            clamp = config.log_ratio_clamp
            metrics["trust_kl"] = (share * k3(log_ratio.clamp(-clamp, clamp))).sum()
            loss = loss + self.trust_beta * metrics["trust_kl"]
        return loss, metrics

    def _kl(
        self, config: Referenced, value: Tensor, ref: Tensor | None, live: Tensor, log_ratio: Tensor
    ) -> Tensor:
        """KL to the reference per token."""
        assert ref is not None, "a KL term needs the reference policy's log-probabilities"
        clamp = self.config.log_ratio_clamp
        kl = _where(live, KL_ESTIMATORS[config.kl_estimator]((value - ref).clamp(-clamp, clamp)))
        return kl * log_ratio.clamp(-clamp, clamp).exp() if self.kl_times_ratio else kl


def _metrics(
    policy_loss: Tensor, surrogate: Surrogate, value: Tensor, rows: BatchRows, step: StepSize
) -> dict[str, Tensor]:
    """Shares of the step's metrics: over all actions; ratio and log-probability over those run."""
    live = rows.live
    low = rows.stands_for * (surrogate.clipped_low & live)
    high = rows.stands_for * (surrogate.clipped_high & live)
    ratio = surrogate.ratio.masked_select(live)
    counted = rows.stands_for.masked_select(live) / step.num_counted_tokens
    values = {
        "loss/policy": policy_loss,
        "clip_ratio/low_mean": low.sum() / step.num_tokens,
        "clip_ratio/high_mean": high.sum() / step.num_tokens,
        "clip_ratio/region_mean": (low + high).sum() / step.num_tokens,
        "ratio/mean": (counted * ratio).sum(),
        "logp/mean": (counted * value.masked_select(live)).sum(),
    }
    if ratio.numel():
        values |= {"ratio/max": ratio.max(), "ratio/min": ratio.min()}
    if rows.importance is not None:
        values["importance/mean"] = (counted * rows.importance.masked_select(live)).sum()
    return values


def _where(live: Tensor, values: Tensor) -> Tensor:
    """Zero elsewhere; positions that are not scored may hold anything."""
    return torch.where(live, values, torch.zeros_like(values))
