"""Settings and facts of coupled-GRPO (DiffuCoder, arXiv:2506.20639)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from rl4dlm.recipe.algorithms.base import Referenced, TokenLevel, defaults
from rl4dlm.recipe.findings import Finding
from rl4dlm.recipe.sections import RolloutConfig

if TYPE_CHECKING:
    from rl4dlm.recipe.root import Recipe


@defaults(num_iterations=2, epsilon=0.5, beta=0.01, kl_estimator="k3")
class CoupledGRPOConfig(TokenLevel, Referenced):
    """coupled-GRPO (DiffuCoder, arXiv:2506.20639): token log-probabilities from complementary masks."""

    type: Literal["coupled_grpo"] = "coupled_grpo"

    min_rate: float = Field(0.2, gt=0, lt=1)
    """Smallest probability t that the first of the two complementary views hides a token."""

    max_rate: float = Field(0.8, gt=0, lt=1)
    """Largest; t is uniform between the two."""

    calibrate: bool = False
    """Divide the estimate by 1.5, the sum of a token's weights in the mean, so that it is a log-probability
    where context does not matter. Released code: not."""

    def states_per_completion(self, rollout: RolloutConfig) -> float:
        """Everything hidden, a part, and the rest."""
        return 3.0

    def rules(self, recipe: Recipe) -> Iterator[Finding]:
        """Besides what token-level methods ask for: rates are a range."""
        yield from super().rules(recipe)
        if self.min_rate > self.max_rate:
            yield (
                "algorithm.min_rate",
                f"algorithm.min_rate = {self.min_rate} exceeds algorithm.max_rate = {self.max_rate}",
                "swap or equal them",
            )
