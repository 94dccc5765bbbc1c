"""One page per method, chosen by `algorithm.type`."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from rl4dlm.recipe import Recipe
from rl4dlm.recipe.algorithms import AlgorithmConfig
from rl4dlm.trainers.base import Setting, Trainer
from rl4dlm.types import DenoiserSpec

METHODS: dict[str, str] = {
    "agrpo": "agrpo:AGRPO",
    "coupled_grpo": "coupled_grpo:CoupledGRPO",
    "diffu_grpo": "diffu_grpo:DiffuGRPO",
    "espo": "espo:ESPO",
    "gdpo": "gdpo:GDPO",
    "just_grpo": "just_grpo:JustGRPO",
    "tracerl": "tracerl:TraceRL",
    "mdpo": "mdpo:MDPO",
    "unigrpo": "unigrpo:UniGRPO",
    "spg": "spg:SPG",
    "vrpo": "vrpo:VRPO",
    "wd1": "wd1:WD1",
    "wd1pp": "wd1pp:WD1Plus",
    "unmasking_policy": "unmasking_policy:UnmaskingPolicy",
}
"""Where each method of `algorithm.type` lives: module in this package, and class."""


def make_method(config: AlgorithmConfig, setting: Setting | None = None) -> Trainer:
    """The trainer of some settings.

    Args:
        config: from a recipe.
        setting: what it must know of the run; None: temperature 1, full attention.

    Raises:
        PluginError: a method from outside the package cannot be used.
    """
    if config.type == "plugin":
        from rl4dlm.trainers.plugin import load_plugin

        return load_plugin(config, setting)
    module, name = METHODS[config.type].split(":")
    method: Callable[..., Trainer] = getattr(import_module(f"rl4dlm.trainers.{module}"), name)
    return method(config, setting)


def make_trainer(recipe: Recipe, spec: DenoiserSpec) -> Trainer:
    """The trainer of a recipe for a model of these facts."""
    return make_method(recipe.algorithm, setting_of(recipe, spec))


def setting_of(recipe: Recipe, spec: DenoiserSpec) -> Setting:
    """What methods know of a run."""
    rollout = recipe.rollout
    return Setting(
        temperature=rollout.temperature,
        spec=spec,
        seed=recipe.run.seed,
        block_length=rollout.block_length,
        policy_sharpness=rollout.policy_sharpness,
    )
