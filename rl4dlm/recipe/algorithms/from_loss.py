"""Settings of a method that is one loss function, read off the function's signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar, Literal

from pydantic import create_model

from rl4dlm.errors import PluginError
from rl4dlm.recipe.algorithms.base import Aggregated, Following, MaskedPrompt
from rl4dlm.recipe.sections import RolloutConfig

GIVEN = ("logp", "old_logp", "ref_logp", "advantage", "mask")
"""What a loss function may ask for, by name; all are tensors `[rows, completion]` but the advantage, which is
`[rows, 1]`. Everything else in its signature is a setting, with its type and its default."""


class LossConfig(Aggregated, Following, MaskedPrompt):
    """A method from one function: each token's loss, from log-probabilities that the package estimates."""

    loss: ClassVar[Callable[..., Any]]
    """Of each token, `[rows, completion]`, to be minimised."""

    states: Literal["one_step", "trajectory"] = "one_step"
    """What log-probabilities are given. `one_step`: everything hidden, in one forward (diffu-GRPO's).
    `trajectory`: the states that the sampler visited (TraceRL's)."""

    @property
    def needs_old(self) -> bool:
        """Where the function asks for `old_logp`."""
        return "old_logp" in inspect.signature(type(self).loss).parameters

    @property
    def keeps_reference(self) -> bool:
        """Where the function asks for `ref_logp`."""
        return "ref_logp" in inspect.signature(type(self).loss).parameters

    @property
    def learns_from_every_row(self) -> bool:
        """A function may have a loss where advantages are 0."""
        return True

    @property
    def scores_trajectories(self) -> bool:
        """As set."""
        return self.states == "trajectory"

    def states_per_completion(self, rollout: RolloutConfig) -> float:
        """One, or every step."""
        return float(rollout.diffusion_steps) if self.states == "trajectory" else 1.0


def config_of_loss(loss: Callable[..., Any], path: str) -> type[LossConfig]:
    """The settings class of a loss function.

    Args:
        loss: asks for some of `GIVEN`, and for settings: keyword-only parameters with a type and a default.
        path: where it was found, for messages.

    Raises:
        PluginError: a parameter is neither given nor a setting, or has the name of another setting.
    """
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(loss, eval_str=True).parameters.items():
        if name in GIVEN:
            continue
        setting = parameter.kind is parameter.KEYWORD_ONLY and parameter.default is not parameter.empty
        if not setting or parameter.annotation is parameter.empty:
            raise PluginError(
                f"algorithm.path = {path}: its parameter {name} is neither given nor a setting.\n"
                f"Fix: name it one of {', '.join(GIVEN)}, or give it a type and a default after `*`."
            )
        if name in LossConfig.model_fields:
            raise PluginError(
                f"algorithm.path = {path}: its parameter {name} is a setting of every loss function.\n"
                "Fix: give it another name."
            )
        fields[name] = (parameter.annotation, parameter.default)
    made: type[LossConfig] = create_model(loss.__name__, __base__=LossConfig, __doc__=loss.__doc__, **fields)
    made.loss = staticmethod(loss)
    return made
