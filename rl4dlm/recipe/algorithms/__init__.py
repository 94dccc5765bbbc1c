"""The methods' settings, chosen by `algorithm.type`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rl4dlm.recipe.algorithms.base import (
    AnyMethod,
    Clipped,
    Corrected,
    Method,
    PluginConfig,
    Referenced,
    TokenLevel,
)
from rl4dlm.recipe.algorithms.preference import (
    VRPOConfig,
)
from rl4dlm.recipe.algorithms.sequence_level import (
    ESPOConfig,
    GDPOConfig,
    Softmaxed,
    SPGConfig,
    WD1Config,
    WD1PlusConfig,
)
from rl4dlm.recipe.algorithms.token_level import (
    AGRPOConfig,
    CoupledGRPOConfig,
    DiffuGRPOConfig,
    JustGRPOConfig,
    UniGRPOConfig,
)
from rl4dlm.recipe.algorithms.trajectory import (
    BlockEnlargement,
    MDPOConfig,
    TraceRLConfig,
    UnmaskingPolicyConfig,
    ValueConfig,
)

AlgorithmConfig = Annotated[
    AGRPOConfig
    | CoupledGRPOConfig
    | DiffuGRPOConfig
    | ESPOConfig
    | GDPOConfig
    | JustGRPOConfig
    | MDPOConfig
    | SPGConfig
    | TraceRLConfig
    | UniGRPOConfig
    | UnmaskingPolicyConfig
    | VRPOConfig
    | WD1Config
    | WD1PlusConfig
    | PluginConfig,
    Field(discriminator="type"),
]
"""The union of all methods, discriminated by `type`."""

__all__ = [
    "AGRPOConfig",
    "AlgorithmConfig",
    "AnyMethod",
    "BlockEnlargement",
    "Clipped",
    "Corrected",
    "CoupledGRPOConfig",
    "DiffuGRPOConfig",
    "ESPOConfig",
    "GDPOConfig",
    "JustGRPOConfig",
    "MDPOConfig",
    "Method",
    "PluginConfig",
    "Referenced",
    "SPGConfig",
    "Softmaxed",
    "TokenLevel",
    "TraceRLConfig",
    "UniGRPOConfig",
    "UnmaskingPolicyConfig",
    "VRPOConfig",
    "ValueConfig",
    "WD1Config",
    "WD1PlusConfig",
]
