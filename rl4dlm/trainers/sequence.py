"""Methods with one clipped ratio per completion: what GDPO and ESPO share.

rho_g = exp((Lhat_theta - Lhat_old) / L)      `sequence_norm`; without the division `sequence`
loss  = - mean over completions g of min(rho_g A_g, clip(rho_g) A_g) + beta KL(Lhat_theta, Lhat_ref)
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from rl4dlm.loss.kl import KL_ESTIMATORS
from rl4dlm.loss.reduce import mean_over_rows
from rl4dlm.loss.surrogate import Surrogate, clipped_surrogate
from rl4dlm.recipe.algorithms import SequenceLevel
from rl4dlm.trainers.credit import compared_in_group
from rl4dlm.trainers.estimates import PER_SEQUENCE, TokenLogp
from rl4dlm.trainers.method import (
    BatchRows,
    Likelihood,
    Loss,
    Method,
    Objective,
    Recorded,
    Setting,
    StatePlan,
    StepSize,
    UsableRollouts,
)

KL = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(current estimate, reference's, tokens of each row), `[rows]` each: KL of each row, `[rows]`."""


def sequence_method(
    config: SequenceLevel,
    setting: Setting,
    states: StatePlan,
    *,
    kl: KL | None = None,
    record: Callable[[UsableRollouts], Recorded] | None = None,
) -> Method[SequenceLevel]:
    """A method whose estimate is one likelihood per completion, from these states.

    Args:
        kl: to the reference; None: on the difference of log-likelihoods per token.
        record: see `Method`.
    """
    likelihood = Likelihood(states, PER_SEQUENCE, TokenLogp(setting.spec))
    objective = clipped_sequences(config, kl or kl_per_token(config))
    return Method(config, setting, likelihood, objective, compared_in_group(config), record)


def kl_per_token(config: SequenceLevel) -> KL:
    """KL on the difference of log-likelihoods per token."""

    def kl(value: Tensor, ref: Tensor, length: Tensor) -> Tensor:
        clamp = config.log_ratio_clamp
        return KL_ESTIMATORS[config.kl_estimator](((value - ref) / length).clamp(-clamp, clamp))

    return kl


def clipped_sequences(config: SequenceLevel, kl: KL) -> Objective:
    """The objective of an estimate `[rows]`, nats."""

    def objective(
        value: Tensor, rows: BatchRows, old: Tensor | None, ref: Tensor | None, step: StepSize
    ) -> Loss:
        surrogate, gain = _gain(config, value, old, rows)
        policy_loss = -mean_over_rows(gain, step.num_rows)
        metrics = _metrics(policy_loss, surrogate, value.detach() / rows.num_tokens, step)
        if not config.keeps_reference:
            return policy_loss, metrics
        assert ref is not None, "a KL term needs the reference policy's estimate"
        distance = mean_over_rows(kl(value, ref, rows.num_tokens), step.num_rows)
        return policy_loss + config.beta * distance, {**metrics, "kl": distance}

    return objective


def _gain(
    config: SequenceLevel, value: Tensor, old: Tensor | None, rows: BatchRows
) -> tuple[Surrogate, Tensor]:
    """The clipped objective, and each row's gain `[rows]` under the chosen normalisation of the ratio."""
    log_ratio = value - (value.detach() if old is None else old)
    per_token = config.ratio_level == "sequence_norm"
    surrogate = clipped_surrogate(
        log_ratio / rows.num_tokens if per_token else log_ratio,
        rows.advantage,
        clip_low=config.epsilon,
        clip_high=config.clip_high,
        log_ratio_clamp=config.log_ratio_clamp,
    )
    # The paper's ratio is not normalised, its objective is: both have gradient A/L grad Lhat at ratio 1.
    return surrogate, surrogate.gain if per_token else surrogate.gain / rows.num_tokens


def _metrics(
    policy_loss: Tensor, surrogate: Surrogate, per_token: Tensor, step: StepSize
) -> dict[str, Tensor]:
    """Shares of the step's metrics: ratio and ELBO are means over the rows that are run, the others over all
    rows, as TRL's."""
    low, high = surrogate.clipped_low.to(policy_loss), surrogate.clipped_high.to(policy_loss)
    ratio = surrogate.ratio
    return {
        "loss/policy": policy_loss,
        "clip_ratio/low_mean": mean_over_rows(low, step.num_rows),
        "clip_ratio/high_mean": mean_over_rows(high, step.num_rows),
        "clip_ratio/region_mean": mean_over_rows(low + high, step.num_rows),
        "ratio/mean": mean_over_rows(ratio, step.num_counted),
        "ratio/max": ratio.max(),
        "ratio/min": ratio.min(),
        "elbo/mean": mean_over_rows(per_token, step.num_counted),
        "elbo/mean_square": mean_over_rows(per_token.square(), step.num_counted),
    }
