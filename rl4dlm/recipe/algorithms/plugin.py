"""Methods that live outside the package: `algorithm: {type: plugin, path: my_method.py:MyMethod}`.

What the plug-in's class declares is `recipe.algorithm` once a recipe is loaded: its settings, facts and
rules.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError, create_model, field_validator

from rl4dlm.errors import PluginError
from rl4dlm.recipe.algorithms.base import MethodConfig
from rl4dlm.recipe.algorithms.from_loss import config_of_loss
from rl4dlm.recipe.sections import Config

_OWN_KEYS = ("type", "path", "settings")


class PluginConfig(Config):
    """A method of your own: a class or a loss function in a file or module; docs/methods.md has examples.
    Beside these keys its own settings may stand, as in every other method."""

    model_config = ConfigDict(extra="allow")

    type: Literal["plugin"] = "plugin"

    path: str = Field(pattern=r"^.+:[A-Za-z_]\w*$")
    """`my_method.py:MyMethod` or `package.module:MyMethod`."""

    settings: dict[str, Any] = {}
    """The method's own settings; they may also stand beside `path`."""

    @field_validator("path")
    @classmethod
    def _absolute(cls, path: str) -> str:
        """Files by their absolute path: workers have working directories of their own."""
        place, _, name = path.rpartition(":")
        return f"{Path(place).resolve()}:{name}" if place.endswith(".py") else path


def load_method(config: PluginConfig) -> MethodConfig:
    """What a recipe holds in place of a plug-in's path: the settings that its class declares, checked.

    Raises:
        PluginError: it cannot be imported, is no method, or its settings are wrong.
    """
    beside = config.model_extra or {}
    twice = sorted(beside.keys() & config.settings.keys())
    if twice:
        raise PluginError(
            f"algorithm.{twice[0]} and algorithm.settings.{twice[0]} are both set.\nFix: set one of them."
        )
    return _checked(method_class(config.path), config.path, {**beside, **config.settings}, config.settings)


@cache
def method_class(path: str) -> type[MethodConfig]:
    """The settings class that a path names, or that the loss function at a path declares.

    Args:
        path: `file.py:Name`, absolute, or `package.module:Name`.

    Raises:
        PluginError: it cannot be imported, or is no method.
    """
    place, _, name = path.rpartition(":")
    found = getattr(_import(path, place), name, None)
    if inspect.isfunction(found):
        return _in_a_recipe(config_of_loss(found, path))
    if not (isinstance(found, type) and issubclass(found, MethodConfig)):
        raise PluginError(
            f"algorithm.path = {path}: {name} is neither a loss function nor a class derived from "
            "rl4dlm.recipe.algorithms.MethodConfig.\nFix: name one; docs/methods.md has examples."
        )
    return _in_a_recipe(found)


class FoundByPath:
    """Travels to workers as its path and settings, and is imported there again."""

    path: str

    def __reduce__(self) -> tuple[Any, ...]:
        assert isinstance(self, MethodConfig)
        values = self.model_dump(exclude={"type", "path"})
        return _again, (self.path, values)


def _again(path: str, values: Mapping[str, Any]) -> MethodConfig:
    return method_class(path).model_validate({"path": path, **values})


def _in_a_recipe(found: type[MethodConfig]) -> type[MethodConfig]:
    """The class with the two keys that choose it in a recipe."""
    return create_model(
        found.__name__,
        __base__=(FoundByPath, found),  # type: ignore[arg-type]  # a mixin without fields
        __doc__=found.__doc__,
        type=(Literal["plugin"], "plugin"),  # type: ignore[arg-type, maybe-unrecognized-str-typeform]
        path=(str, ...),
    )


def _checked(
    cls: type[MethodConfig], path: str, values: Mapping[str, Any], nested: Mapping[str, Any]
) -> MethodConfig:
    known = sorted(name for name in cls.model_fields if name not in _OWN_KEYS)
    try:
        return cls.model_validate({"path": path, **values})
    except ValidationError as error:
        lines = []
        for problem in error.errors(include_url=False):
            name = str(problem["loc"][0]) if problem["loc"] else ""
            key = ".".join(
                ["algorithm", *(["settings"] if name in nested else []), *map(str, problem["loc"])]
            )
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
            unknown = problem["type"] == "extra_forbidden"
            hint = f"did you mean {near[0]}? " if unknown and near else ""
            text = "it is not known" if unknown else f"{problem['msg']} (got {problem['input']!r})"
            lines.append(f"{key}: {text}.\nFix: {hint}{path} knows {', '.join(known)}.")
        raise PluginError("\n".join(lines)) from None


def _import(path: str, place: str) -> ModuleType:
    """The module of a plug-in; a file is imported once per process."""
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        name = f"rl4dlm_method_{Path(place).stem}"
        if name in sys.modules and sys.modules[name].__file__ == place:
            return sys.modules[name]
        spec = importlib.util.spec_from_file_location(name, place)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"algorithm.path = {path}: it cannot be imported: {type(error).__name__}: {error}.\n"
            f"Fix: correct that, or install what it needs into {sys.executable}."
        ) from error
