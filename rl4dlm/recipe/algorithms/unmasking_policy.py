"""Settings, facts and rules of Learning Unmasking Policies (arXiv:2512.09106)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from rl4dlm.recipe.algorithms.base import Clipped
from rl4dlm.recipe.findings import Finding
from rl4dlm.recipe.sections import RolloutConfig

if TYPE_CHECKING:
    from rl4dlm.recipe.root import Recipe

_SMALL = "unmasking_policy trains a network of 300 thousand parameters beside a frozen language model"


class UnmaskingPolicyConfig(Clipped):
    """Learning Unmasking Policies (arXiv:2512.09106): a small network learns which positions to commit, for
    correct answers in few steps; the language model is frozen."""

    type: Literal["unmasking_policy"] = "unmasking_policy"

    alpha: float = Field(1.0, ge=0)
    """Rewards are multiplied by (1 - steps / canvas length) ** alpha: the larger, the faster and the less
    accurate. 0: speed earns nothing. Published: 10, 3, 1, 0.3, 0."""

    tau: float = Field(1.0, gt=0)
    """Divides the logits of a new network. Published: 0.5 for blocks of 32, 1 for a canvas of 256."""

    initial_bias: float = -2.0
    """Logit of committing a position before training; -2 is a probability of 0.12."""

    completion_scope: Literal["canvas"] = "canvas"
    """The actions are decisions about masked positions; there is nothing to choose."""

    @property
    def freezes_model(self) -> bool:
        """It does."""
        return True

    def states_per_completion(self, rollout: RolloutConfig) -> float:
        """None: the language model is not asked again."""
        return 0.0

    def rules(self, recipe: Recipe) -> Iterator[Finding]:
        """Besides what clipped methods ask for: everything that only a trained language model, or only
        another sampler, would read."""
        yield from super().rules(recipe)
        yield from self._rules_of_sampling(recipe.rollout)
        trainer = recipe.trainer
        if trainer.lora is not None:
            yield "trainer.lora", f"trainer.lora is set: {_SMALL}", "leave it out"
        if trainer.gradient_checkpointing:
            key = "trainer.gradient_checkpointing"
            yield key, f"{key} = true: {_SMALL}", "set it to false"
        if trainer.zero_stage == 3:
            yield "trainer.zero_stage", f"trainer.zero_stage = 3: {_SMALL}", "use 0, 1 or 2"

    def _rules_of_sampling(self, rollout: RolloutConfig) -> Iterator[Finding]:
        if rollout.remasking != "learned" or not rollout.policy:
            yield (
                "rollout.remasking",
                f"rollout.remasking = {rollout.remasking} with rollout.policy = {rollout.policy!r}: "
                "unmasking_policy has no policy to train",
                "set rollout.remasking to learned and rollout.policy to new",
            )
        fresh = type(self)()
        changed = (self.tau, self.initial_bias) != (fresh.tau, fresh.initial_bias)
        if changed and rollout.policy != "new":
            yield (
                "rollout.policy",
                "algorithm.tau and algorithm.initial_bias are for rollout.policy = new, and a trained "
                "network brings its own",
                "leave them out",
            )
        if rollout.early_commit != "none":
            yield (
                "rollout.early_commit",
                f"rollout.early_commit = {rollout.early_commit} commits without asking the policy",
                "set it to none",
            )
        if rollout.engine != "builtin":
            yield (
                "rollout.engine",
                f"rollout.engine = {rollout.engine} records no decisions of a policy",
                "set it to builtin",
            )
