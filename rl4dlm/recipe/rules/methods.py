"""What a method asks of the rest of a recipe: its own rules, and those that follow from its facts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rl4dlm.recipe.findings import Finding
from rl4dlm.recipe.rules.base import rule
from rl4dlm.recipe.samplers import SAMPLERS

if TYPE_CHECKING:
    from rl4dlm.recipe import Recipe


@rule
def a_method_brings_its_own_rules(recipe: Recipe) -> Iterator[Finding]:
    yield from recipe.algorithm.rules(recipe)


@rule
def trajectories_are_kept(recipe: Recipe) -> Iterator[Finding]:
    if recipe.algorithm.scores_trajectories and SAMPLERS[recipe.rollout.remasking].revises:
        yield (
            "rollout.remasking",
            f"rollout.remasking = {recipe.rollout.remasking} remasks tokens, and {recipe.algorithm.type} "
            "scores each token in the one state that it was drawn in",
            "use top_probability or low_confidence, or a method of predictions such as mdpo",
        )


@rule
def a_new_policy_is_trained(recipe: Recipe) -> Iterator[Finding]:
    if recipe.rollout.policy == "new" and not recipe.algorithm.freezes_model:
        yield (
            "rollout.policy",
            f"rollout.policy = new is an untrained network, which {recipe.algorithm.type} does not train",
            "name the folder of a trained one, or use algorithm.type = unmasking_policy",
        )
