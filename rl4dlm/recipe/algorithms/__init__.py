"""The methods' settings, chosen by `algorithm.type`; one module per method, as in `trainers/`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, SerializeAsAny, WrapValidator

from rl4dlm.recipe.algorithms.agrpo import AGRPOConfig
from rl4dlm.recipe.algorithms.base import (
    Aggregated,
    Clipped,
    Corrected,
    ElboEstimated,
    Following,
    GroupMethod,
    MaskedPrompt,
    MethodConfig,
    Passes,
    Referenced,
    SequenceLevel,
    Softmaxed,
    TokenLevel,
    defaults,
)
from rl4dlm.recipe.algorithms.coupled_grpo import CoupledGRPOConfig
from rl4dlm.recipe.algorithms.diffu_grpo import DiffuGRPOConfig
from rl4dlm.recipe.algorithms.espo import ESPOConfig
from rl4dlm.recipe.algorithms.from_loss import LossConfig
from rl4dlm.recipe.algorithms.gdpo import GDPOConfig
from rl4dlm.recipe.algorithms.just_grpo import JustGRPOConfig
from rl4dlm.recipe.algorithms.mdpo import MDPOConfig
from rl4dlm.recipe.algorithms.plugin import FoundByPath, PluginConfig, load_method, method_class
from rl4dlm.recipe.algorithms.spg import SPGConfig
from rl4dlm.recipe.algorithms.tracerl import BlockEnlargement, TraceRLConfig, ValueConfig
from rl4dlm.recipe.algorithms.unigrpo import UniGRPOConfig
from rl4dlm.recipe.algorithms.unmasking_policy import UnmaskingPolicyConfig
from rl4dlm.recipe.algorithms.vrpo import VRPOConfig
from rl4dlm.recipe.algorithms.wd1 import WD1Config
from rl4dlm.recipe.algorithms.wd1pp import WD1PlusConfig


def _loaded(value: Any, validate: Callable[[Any], Any]) -> MethodConfig:
    """A method's settings; in place of a plug-in's path what its class declares."""
    if isinstance(value, MethodConfig):
        return value
    found = validate(value)
    return load_method(found) if isinstance(found, PluginConfig) else found


if TYPE_CHECKING:
    AlgorithmConfig = MethodConfig
else:
    AlgorithmConfig = Annotated[
        SerializeAsAny[
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
            | PluginConfig
        ],
        Field(discriminator="type"),
        WrapValidator(_loaded),
    ]
    """The union of all methods, discriminated by `type`."""

__all__ = [
    "AGRPOConfig",
    "Aggregated",
    "AlgorithmConfig",
    "BlockEnlargement",
    "Clipped",
    "Corrected",
    "CoupledGRPOConfig",
    "DiffuGRPOConfig",
    "ESPOConfig",
    "ElboEstimated",
    "Following",
    "FoundByPath",
    "GDPOConfig",
    "GroupMethod",
    "JustGRPOConfig",
    "LossConfig",
    "MDPOConfig",
    "MaskedPrompt",
    "MethodConfig",
    "Passes",
    "PluginConfig",
    "Referenced",
    "SPGConfig",
    "SequenceLevel",
    "Softmaxed",
    "TokenLevel",
    "TraceRLConfig",
    "UniGRPOConfig",
    "UnmaskingPolicyConfig",
    "VRPOConfig",
    "ValueConfig",
    "WD1Config",
    "WD1PlusConfig",
    "defaults",
    "load_method",
    "method_class",
]
