"""Methods that live outside the package: `algorithm: {type: plugin, path: my_method.py:MyMethod}`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from pydantic import ValidationError

from rl4dlm.errors import PluginError
from rl4dlm.recipe.algorithms import Method, PluginConfig
from rl4dlm.trainers.base import Setting
from rl4dlm.trainers.state_trainer import StateTrainer


def load_plugin(config: PluginConfig, setting: Setting | None) -> StateTrainer:
    """The trainer that a plug-in defines, with its settings checked.

    A plug-in is a class derived from `StateTrainer` whose attribute `Settings` is a class derived from
    `rl4dlm.recipe.algorithms.Method`.

    Raises:
        PluginError: it cannot be imported, is no such class, or its settings are wrong.
    """
    place, _, name = config.path.rpartition(":")
    found = getattr(_import(config.path, place), name, None)
    if not (isinstance(found, type) and issubclass(found, StateTrainer)):
        raise PluginError(
            f"algorithm.path = {config.path}: {name} is not a class derived from "
            "rl4dlm.trainers.state_trainer.StateTrainer.\nFix: name such a class; docs/methods.md has one."
        )
    settings = getattr(found, "Settings", None)
    if not (isinstance(settings, type) and issubclass(settings, Method)):
        raise PluginError(
            f"algorithm.path = {config.path}: {name}.Settings is not a class derived from "
            "rl4dlm.recipe.algorithms.Method.\nFix: add one; docs/methods.md shows how."
        )
    return found(_checked(settings, config), setting)


def _checked(settings: type[Method], config: PluginConfig) -> Method:
    try:
        return settings.model_validate(config.settings)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(["algorithm.settings", *map(str, problem["loc"])])
        known = ", ".join(sorted(settings.model_fields))
        raise PluginError(
            f"{key}: {problem['msg']} (got {problem['input']!r}).\nFix: {config.path} knows {known}."
        ) from None


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
        sys.modules[name] = module  # so that its classes can be pickled
        spec.loader.exec_module(module)
        return module
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"algorithm.path = {path}: it cannot be imported: {type(error).__name__}: {error}.\n"
            f"Fix: mend that, or install what it needs into {sys.executable}."
        ) from error
