"""Settings, facts and rules of VRPO (LLaDA 1.5, arXiv:2505.19223)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from rl4dlm.recipe.algorithms.base import ElboEstimated, MethodConfig, defaults
from rl4dlm.recipe.findings import Finding
from rl4dlm.recipe.sections import RolloutConfig

if TYPE_CHECKING:
    from rl4dlm.recipe.root import Recipe


@defaults(estimator="stratified", num_nodes=8)
class VRPOConfig(MethodConfig, ElboEstimated):
    """VRPO (LLaDA 1.5, arXiv:2505.19223): preference optimisation from pairs, DPO with ELBO estimates. For a
    given number of states, one mask per rate has the lowest variance."""

    type: Literal["vrpo"] = "vrpo"

    pairs: Literal["offline", "online"] = "offline"
    """Where preferences come from. `offline`: `data.train` has the columns `prompt`, `chosen` and `rejected`;
    nothing is sampled for an update, and rewards serve evaluation alone. `online`: the best against the worst
    completion of every prompt by reward; prompts whose completions are all alike are left out."""

    beta: float = Field(0.2, gt=0)
    """How soon a pair counts as learnt; larger values stay nearer to the reference. Multiplies differences of
    whole completions, in nats. The authors' value is not known; 0.2 is a port's."""

    normalise_by_length: bool = False
    """Divide likelihoods by the canvas length within the comparison (a port's), so that `beta` acts as
    `beta` / L."""

    sft_weight: float = Field(0.0, ge=0)
    """Weight of the preferred completion's negative ELBO per token; reported: 0.05."""

    def states_per_completion(self, rollout: RolloutConfig) -> float:
        """n_t * n_m for two completions of every prompt."""
        return 2.0 * self.num_states / rollout.num_generations

    def rows_per_prompt(self, rollout: RolloutConfig) -> int:
        """A pair."""
        return 1

    @property
    def keeps_reference(self) -> bool:
        """Always: preferences are measured against it."""
        return True

    @property
    def samples_rollouts(self) -> bool:
        """Only online."""
        return self.pairs == "online"

    @property
    def corrects_staleness(self) -> bool:
        """Which completion is better does not depend on who wrote it."""
        return True

    def rules(self, recipe: Recipe) -> Iterator[Finding]:
        """Besides what all methods ask for: recorded pairs are somewhere."""
        yield from super().rules(recipe)
        if not self.samples_rollouts and recipe.data.train is None:
            yield (
                "algorithm.pairs",
                "algorithm.pairs = offline needs recorded pairs, and data.train is not set",
                "set data.train to rows with `prompt`, `chosen` and `rejected`, or algorithm.pairs: online",
            )
