"""The root of a recipe."""

from __future__ import annotations

from rl4dlm.recipe.algorithms import AlgorithmConfig
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


class Recipe(Config):
    """Everything a run needs; see `sections.py` and `algorithms.py` for what each key means."""

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
