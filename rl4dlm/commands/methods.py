"""Try a method: the laws that those of the package obey, on a tiny model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rl4dlm.errors import PluginError, UserError
from rl4dlm.recipe.algorithms import AlgorithmConfig, MethodConfig
from rl4dlm.recipe.loader import parse_override


def list_methods() -> Iterator[tuple[str, str]]:
    """Every method of the package: its name in recipes, and what it is in a sentence."""
    from rl4dlm.recipe.algorithms import LossConfig
    from rl4dlm.trainers import METHODS

    for kind in METHODS:
        if kind is not LossConfig:
            summary = " ".join((inspect.getdoc(kind) or "").split())
            yield (
                str(kind.model_fields["type"].default),
                summary.partition(": ")[2].partition(". ")[0].rstrip("."),
            )


def method_settings(name: str, settings: Sequence[str]) -> MethodConfig:
    """The settings of a method of the package, or of one that a path names.

    Args:
        name: as `algorithm.type` has it, or `FILE:Name` or `package.module:Name`.
        settings: `key=value`.

    Raises:
        PluginError: there is no such method, or a setting is wrong.
        RecipeError: a setting is not written as `key=value`.
    """
    values: dict[str, Any] = {}
    for setting in settings:
        values |= parse_override(setting)
    chosen = {"type": "plugin", "path": name} if ":" in name else {"type": name}
    try:
        config: MethodConfig = TypeAdapter(AlgorithmConfig).validate_python({**values, **chosen})
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(map(str, problem["loc"][1:])) or name
        known = ", ".join(method for method, _ in list_methods())
        raise PluginError(
            f"{key}: {problem['msg']}.\nFix: `rl4dlm recipes show` and docs/recipe.md have the settings of "
            f"{known}; a method of your own is FILE:Name."
        ) from None
    return config


def test_method(config: MethodConfig, console: Console | None = None) -> bool:
    """Hold a method to the laws, for full attention and for blocks, and print what was found.

    Returns:
        Whether all of them hold.

    Raises:
        PluginError: it fails on two completions already.
    """
    from rl4dlm.trainers.laws import LAWS, MethodTrial
    from rl4dlm.trainers.trial import try_method

    if config.freezes_model:
        raise PluginError(
            f"{config.type} trains a policy of decoding, and the laws are of likelihoods.\n"
            "Fix: try a method that trains the language model."
        )
    table = Table(title=f"method {getattr(config, 'path', config.type)}", title_justify="left")
    for column in ("", "law", "found"):
        table.add_column(column)
    holds = True
    for block_length, model in ((None, "full attention"), (2, "blocks")):
        try_method(config, block_length)
        for law in LAWS:
            broken = _broken(law, MethodTrial(config, block_length))
            holds = holds and broken is None
            verdict = "[green]ok[/]" if broken is None else "[red]broken[/]"
            title = f"{law.__name__.replace('_', ' ')} ({model})"
            table.add_row(verdict, title, Text(broken or ""))
    (console or Console()).print(table)
    return holds


def _broken(law: Callable[[Any], None], trial: object) -> str | None:
    """What a law found wrong, or None."""
    from rl4dlm.trainers.laws import BrokenLaw

    try:
        law(trial)
    except (BrokenLaw, UserError) as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None
