"""Methods with one clipped ratio per completion: what GDPO and ESPO share.

rho_g = exp((Lhat_theta - Lhat_old) / L)      `sequence_norm`; without the division `sequence`
loss  = - mean over completions g of min(rho_g A_g, clip(rho_g) A_g) + beta KL(Lhat_theta, Lhat_ref)
"""

from __future__ import annotations

from torch import Tensor

from rl4dlm.loss.kl import KL_ESTIMATORS
from rl4dlm.loss.reduce import mean_over_rows
from rl4dlm.loss.surrogate import Surrogate, clipped_surrogate
from rl4dlm.trainers.base import Metrics, StepSize
from rl4dlm.trainers.state_trainer import Rows, StateTrainer, stack_metrics


class SequenceTrainer(StateTrainer):
    """A `StateTrainer` whose estimate is one likelihood per row, `[rows]` nats.

    Its settings have `ratio_level`, `epsilon`, `epsilon_high`, `log_ratio_clamp`, `beta` and `kl_estimator`.
    """

    def objective(
        self, value: Tensor, rows: Rows, old: Tensor | None, ref: Tensor | None, step: StepSize
    ) -> tuple[Tensor, Metrics]:
        """See `StateTrainer.objective`."""
        surrogate, gain = self._gain(value, old, rows)
        policy_loss = -mean_over_rows(gain, step.num_rows)
        kl = self._kl(value, ref, rows, step)
        loss = policy_loss + self.config.beta * kl
        return loss, self._metrics(policy_loss, kl, surrogate, value / rows.num_tokens, step)

    def _gain(self, value: Tensor, old: Tensor | None, rows: Rows) -> tuple[Surrogate, Tensor]:
        """The clipped objective, and each row's gain `[rows]` under the chosen normalisation of the ratio."""
        config, length = self.config, rows.num_tokens
        log_ratio = value - (value.detach() if old is None else old)
        per_token = config.ratio_level == "sequence_norm"
        surrogate = clipped_surrogate(
            log_ratio / length if per_token else log_ratio,
            rows.advantage,
            clip_low=config.epsilon,
            clip_high=config.epsilon if config.epsilon_high is None else config.epsilon_high,
            log_ratio_clamp=config.log_ratio_clamp,
        )
        # The paper's ratio is not normalised, its objective is: both have gradient A/L grad Lhat at ratio 1.
        return surrogate, surrogate.gain if per_token else surrogate.gain / length

    def kl(self, value: Tensor, ref: Tensor, length: Tensor) -> Tensor:
        """KL to the reference of each row, `[rows]`: on the difference of log-likelihoods per token.

        Args:
            value, ref: `[rows]`, nats.
            length: `[rows]`, tokens of each row.
        """
        clamp = self.config.log_ratio_clamp
        return KL_ESTIMATORS[self.config.kl_estimator](((value - ref) / length).clamp(-clamp, clamp))

    def _kl(self, value: Tensor, ref: Tensor | None, rows: Rows, step: StepSize) -> Tensor:
        """Share of the mean KL to the reference; 0 without one."""
        if not self.needs_reference:
            return value.new_zeros(())
        assert ref is not None, "a KL term needs the reference policy's estimate"
        return mean_over_rows(self.kl(value, ref, rows.num_tokens), step.num_rows)

    def _metrics(
        self, policy_loss: Tensor, kl: Tensor, surrogate: Surrogate, per_token: Tensor, step: StepSize
    ) -> Metrics:
        """Shares of the step's metrics: ratio and ELBO are means over the rows that are run, the others over
        all rows, as TRL's."""
        low, high = surrogate.clipped_low.to(policy_loss), surrogate.clipped_high.to(policy_loss)
        ratio, per_token = surrogate.ratio, per_token.detach()
        values = {
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
        if self.needs_reference:
            values["kl"] = kl
        return stack_metrics(values)
