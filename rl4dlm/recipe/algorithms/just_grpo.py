"""Settings, facts and rules of JustGRPO (arXiv:2601.15165)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from rl4dlm.recipe.algorithms.base import TokenLevel, defaults
from rl4dlm.recipe.findings import Finding
from rl4dlm.recipe.sections import RolloutConfig

if TYPE_CHECKING:
    from rl4dlm.recipe.root import Recipe


@defaults(scale_rewards="group", completion_scope="canvas", aggregation="canvas")
class JustGRPOConfig(TokenLevel):
    """JustGRPO (arXiv:2601.15165): rollouts and exact likelihoods in the order of reading."""

    type: Literal["just_grpo"] = "just_grpo"

    @property
    def scores_trajectories(self) -> bool:
        """It is."""
        return True

    def states_per_completion(self, rollout: RolloutConfig) -> float:
        """One per token. Block-causal models need only as many as a block has."""
        return float(rollout.max_completion_length)

    def rules(self, recipe: Recipe) -> Iterator[Finding]:
        """Besides what token-level methods ask for: rollouts write one token per step, from left to right."""
        yield from super().rules(recipe)
        rollout = recipe.rollout
        if rollout.remasking != "ar" and rollout.block_length > 1:
            yield (
                "rollout.remasking",
                f"rollout.remasking = {rollout.remasking}: just_grpo trains in the order of reading",
                "set rollout.remasking to ar (or rollout.block_length to 1)",
            )
        if rollout.diffusion_steps != rollout.max_completion_length:
            yield (
                "rollout.diffusion_steps",
                f"rollout.diffusion_steps = {rollout.diffusion_steps} commits several tokens per step, and "
                "just_grpo wants each given all before it",
                f"set it to {rollout.max_completion_length}, rollout.max_completion_length",
            )
