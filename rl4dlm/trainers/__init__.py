"""One page per method, chosen by `algorithm.type`; its settings and facts are in `recipe/algorithms/`."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from rl4dlm.errors import PluginError
from rl4dlm.recipe import Recipe
from rl4dlm.recipe.algorithms import (
    AGRPOConfig,
    CoupledGRPOConfig,
    DiffuGRPOConfig,
    ESPOConfig,
    GDPOConfig,
    JustGRPOConfig,
    LossConfig,
    MDPOConfig,
    MethodConfig,
    SPGConfig,
    TraceRLConfig,
    UniGRPOConfig,
    UnmaskingPolicyConfig,
    VRPOConfig,
    WD1Config,
    WD1PlusConfig,
)
from rl4dlm.trainers.method import Method, Setting
from rl4dlm.types import DenoiserSpec

if TYPE_CHECKING:
    from rl4dlm.trainers.trace_value import TraceValue

METHODS: dict[type[MethodConfig], str] = {
    AGRPOConfig: "agrpo",
    CoupledGRPOConfig: "coupled_grpo",
    DiffuGRPOConfig: "diffu_grpo",
    ESPOConfig: "espo",
    GDPOConfig: "gdpo",
    JustGRPOConfig: "just_grpo",
    LossConfig: "from_loss",
    MDPOConfig: "mdpo",
    SPGConfig: "spg",
    TraceRLConfig: "tracerl",
    UniGRPOConfig: "unigrpo",
    UnmaskingPolicyConfig: "unmasking_policy",
    VRPOConfig: "vrpo",
    WD1Config: "wd1",
    WD1PlusConfig: "wd1pp",
}
"""Where the method of some settings is made: a module of this package, and the function of the same name in
it."""


@runtime_checkable
class Builds(Protocol):
    """Settings that make their method themselves: a plug-in's."""

    def build(self, setting: Setting) -> Method[MethodConfig]:
        """The method of these settings."""
        ...


def make_method(config: MethodConfig, setting: Setting | None = None) -> Method[MethodConfig]:
    """The method of some settings.

    Args:
        config: from a recipe.
        setting: what it must know of the run; None: temperature 1, full attention.

    Raises:
        PluginError: settings from outside the package say nothing of their method.
    """
    setting = setting or Setting()
    if isinstance(config, Builds):
        return config.build(setting)
    for kind in type(config).__mro__:
        if kind in METHODS:
            name = METHODS[kind]
            build: Callable[..., Method[MethodConfig]] = getattr(
                import_module(f"rl4dlm.trainers.{name}"), name
            )
            return build(config, setting)
    raise PluginError(
        f"{type(config).__name__} has no method `build(self, setting)` and is derived from no method's "
        "settings.\nFix: add it; docs/methods.md shows how."
    )


def method_of(recipe: Recipe, spec: DenoiserSpec) -> Method[MethodConfig]:
    """The method of a recipe for a model of these facts."""
    return make_method(recipe.algorithm, setting_of(recipe, spec))


def value_model_of(recipe: Recipe, spec: DenoiserSpec) -> TraceValue | None:
    """What a value model beside the policy learns by; None where the method has none."""
    algorithm, value = recipe.algorithm, recipe.algorithm.value_model
    if value is None:
        return None
    assert isinstance(algorithm, TraceRLConfig), "values are read in the states of TraceRL"
    from rl4dlm.trainers.trace_value import trace_value

    return trace_value(algorithm, value, setting_of(recipe, spec))


def setting_of(recipe: Recipe, spec: DenoiserSpec) -> Setting:
    """What methods know of a run."""
    rollout = recipe.rollout
    return Setting(
        temperature=rollout.temperature,
        spec=spec,
        seed=recipe.run.seed,
        block_length=rollout.block_length,
        policy_sharpness=rollout.policy_sharpness,
        num_minibatches=recipe.trainer.num_minibatches,
    )
