"""Settings and facts of AGRPO (arXiv:2510.04019)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from rl4dlm.recipe.algorithms.base import Referenced, TokenLevel, defaults
from rl4dlm.recipe.findings import Finding
from rl4dlm.recipe.sections import RolloutConfig

if TYPE_CHECKING:
    from rl4dlm.recipe.root import Recipe


@defaults(kl_estimator="k3")
class AGRPOConfig(TokenLevel, Referenced):
    """AGRPO (arXiv:2510.04019): a few random steps of the recorded trajectory estimate its gradient. Its KL
    is multiplied by the ratio."""

    type: Literal["agrpo"] = "agrpo"

    num_steps: int = Field(24, ge=1)
    """M: steps of each trajectory that are evaluated per pass; shorter trajectories are evaluated whole."""

    step_sampling: Literal["uniform", "surprisal"] = "uniform"
    """`uniform`: every step alike. `surprisal`: half of the probability in proportion to -log p of what the
    step drew (a one-sample estimate of its entropy), with weights that keep the mean."""

    ratio_against: Literal["rollout", "update"] = "rollout"
    """`rollout`: ratios to the log-probabilities that the sampler recorded (published; no forward for old
    values). `update`: to those of the weights that the update begins with."""

    aggregation: Literal["over_steps", "token_mean", "seq_mean", "canvas"] = "over_steps"  # type: ignore[assignment]
    """How tokens become one number; the tokens of sampled steps stand for all. `over_steps` (published): the
    mean over completions of the sum over tokens divided by the number of steps. `token_mean`: every token of
    the update alike. `seq_mean`: the mean over completions of each one's mean. `canvas`: the sum divided by
    completions times canvas length."""

    @property
    def scores_trajectories(self) -> bool:
        """It is."""
        return True

    @property
    def needs_old(self) -> bool:
        """Not where the ratios are to the sampler's record."""
        return self.ratio_against == "update"

    def compares_estimates(self, num_minibatches: int) -> bool:
        """With the sampler's record from the first step on."""
        return self.ratio_against == "rollout" or super().compares_estimates(num_minibatches)

    @property
    def corrects_staleness(self) -> bool:
        """By ratios to what the sampler recorded."""
        return self.ratio_against == "rollout" or super().corrects_staleness

    def states_per_completion(self, rollout: RolloutConfig) -> float:
        """M, or the steps of the sampler if they are fewer."""
        return float(min(self.num_steps, rollout.diffusion_steps))

    def rules(self, recipe: Recipe) -> Iterator[Finding]:
        """Besides what token-level methods ask for: the distance to the sampler counts once."""
        yield from super().rules(recipe)
        if self.ratio_against == "rollout" and self.importance_correction != "none":
            yield (
                "algorithm.importance_correction",
                f"algorithm.importance_correction = {self.importance_correction} beside "
                "algorithm.ratio_against = rollout counts the distance to the sampler twice",
                "set algorithm.importance_correction to none, or algorithm.ratio_against to update",
            )
