"""The roots of a recipe: one for reinforcement learning, one for supervised fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import PrivateAttr

from rl4dlm.recipe.algorithms import AlgorithmConfig
from rl4dlm.recipe.references import References, put_back
from rl4dlm.recipe.sections import (
    ClusterConfig,
    Config,
    DataConfig,
    EvalConfig,
    ModelConfig,
    RewardConfig,
    RolloutConfig,
    RunConfig,
    SentinelConfig,
    TrackingConfig,
    TrainerConfig,
    WarmStartConfig,
)
from rl4dlm.recipe.supervised import SFTConfig, SFTDataConfig


class Root(Config):
    """What both kinds of recipes can do."""

    _references: References = PrivateAttr(default_factory=dict)

    def with_references(self, references: References) -> Self:
        """The same recipe, which remembers what its texts were before values from outside were put in."""
        copy = self.model_copy()
        copy._references = references
        return copy

    def shown(self) -> dict[str, Any]:
        """Every setting as plain values that may be written down: `${oc.env:NAME}` stands where its value
        came from the environment."""
        values: dict[str, Any] = put_back(self.model_dump(mode="json"), self._references)
        return values


class Recipe(Root):
    """Everything a run needs; see `sections.py` and `algorithms/` for what each key means."""

    model: ModelConfig
    data: DataConfig
    reward: RewardConfig
    rollout: RolloutConfig = RolloutConfig()
    algorithm: AlgorithmConfig
    trainer: TrainerConfig = TrainerConfig()
    cluster: ClusterConfig = ClusterConfig()
    eval: EvalConfig = EvalConfig()
    sentinel: SentinelConfig = SentinelConfig()
    warm_start: WarmStartConfig | None = None
    tracking: TrackingConfig = TrackingConfig()
    run: RunConfig = RunConfig()

    @property
    def method(self) -> str:
        """Name of what trains the model, for people."""
        return self.algorithm.type


class SFTRecipe(Root):
    """Everything a run of `rl4dlm sft` needs: a recipe that has a section `sft` and no `algorithm`."""

    model: ModelConfig
    data: SFTDataConfig
    sft: SFTConfig
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig | None = None
    """With it, evaluations sample the held-out prompts and report greedy accuracy beside the ELBO."""
    trainer: TrainerConfig = TrainerConfig()
    cluster: ClusterConfig = ClusterConfig()
    eval: EvalConfig = EvalConfig()
    tracking: TrackingConfig = TrackingConfig()
    run: RunConfig = RunConfig()

    @property
    def method(self) -> str:
        """Name of what trains the model, for people."""
        objective = self.sft.objective
        return f"sft, {objective.type}" if objective else "sft"


AnyRecipe = Recipe | SFTRecipe


def root_of(values: Any) -> type[Recipe] | type[SFTRecipe]:
    """Which kind of recipe some plain values are: one with a section `sft` is for fine-tuning."""
    supervised = isinstance(values, Mapping) and "sft" in values
    return SFTRecipe if supervised else Recipe
