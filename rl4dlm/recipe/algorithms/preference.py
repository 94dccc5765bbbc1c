"""Methods that learn from pairs: VRPO."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rl4dlm.recipe.algorithms.base import AnyMethod
from rl4dlm.recipe.sections import RolloutConfig


class VRPOConfig(AnyMethod):
    """VRPO (LLaDA 1.5, arXiv:2505.19223): preference optimisation from pairs, DPO with ELBO estimates."""

    type: Literal["vrpo"] = "vrpo"

    pairs: Literal["offline", "online"] = "offline"
    """Where preferences come from. `offline`: `data.train` has the columns `prompt`, `chosen` and `rejected`;
    nothing is sampled for an update, and rewards serve evaluation alone. `online`: the best against the worst
    completion of every prompt by reward; prompts whose completions are all alike are left out."""

    estimator: Literal["sdmc", "double_mc", "stratified"] = "stratified"
    """How the ELBO is estimated. `stratified`: exact counts stratified over 1..L with weight L/k, unbiased.
    `double_mc`: mask rates drawn uniformly. `sdmc`: Gauss-Legendre nodes over the mask rate."""

    num_nodes: int = Field(8, ge=1, le=64)
    """n_t: mask rates (or counts) per completion and pass."""

    num_masks: int = Field(1, ge=1)
    """n_m: masks per rate. For a given product n_t * n_m, 1 has the lowest variance."""

    count_rule: Literal["round_half", "round", "floor_release", "bernoulli"] = "round_half"
    """Masked positions at rate t of L: `round_half` round(tL + 1/2) with weight L/count, `round` round(tL)
    with weight L/count, `floor_release` floor(tL) with weight 1/t, `bernoulli` each position independently
    with weight 1/t. Not used by `stratified`."""

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
        return 2.0 * self.num_nodes * self.num_masks / rollout.num_generations

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
