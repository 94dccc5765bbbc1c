"""Settings and facts of ESPO (arXiv:2512.03759)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rl4dlm.recipe.algorithms.base import SequenceLevel, defaults
from rl4dlm.recipe.sections import RolloutConfig


@defaults(beta=1e-3, baseline="loo", completion_scope="canvas")
class ESPOConfig(SequenceLevel):
    """ELBO-based Sequence-level Policy Optimization (ESPO, arXiv:2512.03759): sequence-level ratios of ELBO
    estimates on pairs of complementary masks. The released code compares with the mean of the group's others,
    the paper with the group's mean. Its KL is taken on the ELBO difference of whole completions and divided
    by their length; published `beta`: 1e-3 (mathematics), 3e-3 (Countdown), 1e-2 (Sudoku, code)."""

    type: Literal["espo"] = "espo"

    num_masks: int = Field(2, ge=1)
    """n_mc: masks drawn per completion and pass; each is evaluated with its complement, so forwards are twice
    as many."""

    epsilon: float = Field(4e-4, ge=0)
    """Clip below: ratios under 1 - epsilon earn no further gain. Ratios are of log-likelihoods per token, so
    even the published 4e-4 is reached within a few passes, and 0.2 hardly ever."""

    kl_estimator: Literal["k1", "k2", "k3"] = "k2"  # type: ignore[assignment]
    """k1 = d with a score-function correction, k2 = d^2/2, k3 = exp(-d) + d - 1, on differences of whole
    sequences. The authors found k1 to collapse and k3 to spike."""

    def states_per_completion(self, rollout: RolloutConfig) -> float:
        """Two per mask."""
        return 2.0 * self.num_masks
