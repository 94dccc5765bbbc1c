"""From the path of a reward function in a recipe to something callable, and the list of what there is.

A path is one of

    sort, sort:sort_exact              built-in: a file of `reward_fns`, and a function in it
    my/reward.py, my/reward.py:f       a file; without a function the one named like the file is taken, else
                                       `compute_score` (verl's name), else the only public one
    package.module:f                   a function of an importable module
    name                               an entry point of group `rl4dlm.rewards`
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
import importlib.util
import inspect
import math
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from rl4dlm.errors import PluginError
from rl4dlm.reward.calling import LoadedReward, explain, understand

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

ENTRY_POINT_GROUP = "rl4dlm.rewards"
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
LIST_HINT = "`rl4dlm rewards ls` lists the built-in ones."


@dataclass(frozen=True)
class Resolved:
    """Where a reward function lives, found without importing it."""

    kind: Literal["builtin", "file", "module", "entry_point"]
    location: str
    """Absolute path of a file (`builtin`, `file`), or name of a module."""
    function: str | None
    """Function, or dotted attribute, inside it; None: the file's default."""
    name: str
    """Short name, for metrics."""
    path: str
    """How a recipe names it, independent of the working directory."""


@dataclass(frozen=True)
class Traits:
    """What a reward function says of itself, beside its signature."""

    whole_batch: bool = False
    """It compares completions of different prompts: every call is about the whole batch."""
    bounds: tuple[float, float] | None = None
    """Lowest and highest value that it can return; None: it does not say."""
    error: str | None = None
    """Why the function cannot be loaded, so that it says nothing."""


@dataclass(frozen=True)
class RewardInfo:
    """One line of `rl4dlm rewards ls`."""

    name: str
    path: str
    """File or module."""
    summary: str
    """First line of the docstring; empty where it cannot be read without importing."""


def resolve(path: str) -> Resolved:
    """Find out what a path in a recipe stands for. Imports nothing.

    Raises:
        PluginError: a file does not exist, or the name is unknown; names the nearest known one.
    """
    left, colon, function = path.rpartition(":")
    if not colon:
        left, function = path, ""
    elif not function.replace(".", "_").isidentifier() or not left:
        raise PluginError(f"reward function {path!r}: {function!r} after the colon is no function name.")
    builtins = _builtin_files()
    name = left.removeprefix("reward_fns/").removesuffix(".py")
    if left in builtins or (left == f"reward_fns/{name}.py" and name in builtins and not Path(left).exists()):
        known = f"{name}:{function}" if function else name
        return Resolved("builtin", str(builtins[name]), function or None, function or name, known)
    if left.endswith(".py") or "/" in left:
        return _resolve_file(left, function or None)
    if colon:
        return _resolve_module(path, left, function)
    for entry in _entry_points():
        if entry.name == path:
            return Resolved("entry_point", entry.module, entry.attr or None, path, path)
    raise PluginError(_unknown(path, [*builtins, *(entry.name for entry in _entry_points())]))


def built_in_file(path: str | Resolved) -> str:
    """Name of the shipped file that a reward lives in, `sort` for `sort:sort_exact`; empty for others.

    Raises:
        PluginError: there is no such reward.
    """
    resolved = resolve(path) if isinstance(path, str) else path
    return Path(resolved.location).stem if resolved.kind == "builtin" else ""


def load_function(path: str | Resolved, kwargs: Mapping[str, Any] | None = None) -> LoadedReward:
    """Import a reward function into this process and find out how it wants to be called.

    The package does so in reward processes only: importing a plug-in runs its code.

    Raises:
        PluginError: it cannot be imported (with the error's last line, file and line), there is no such
            function, or its signature is neither TRL's nor verl's.
    """
    resolved = resolve(path) if isinstance(path, str) else path
    module = import_plugin(resolved)
    loaded = understand(_pick(module, resolved), resolved.name, resolved.path, kwargs or {})
    if resolved.kind == "builtin" and not hasattr(module, "PREPARE"):
        # It takes any column, and no setting but those it names.
        for key in loaded.kwargs.keys() - set(loaded.parameters):
            raise PluginError(f"{resolved.path}: unknown kwargs key {key}; it has no such setting.")
    return loaded


def import_plugin(resolved: Resolved) -> ModuleType:
    """Import the file or module of a plug-in; a file's folder becomes importable, last in the search order.

    Raises:
        PluginError: the import failed.
    """
    try:
        if resolved.kind in ("builtin", "file"):
            return _import_file(resolved.location)
        return importlib.import_module(resolved.location)
    except (Exception, SystemExit) as error:
        where = explain(error, resolved.location)
        raise PluginError(
            f"{resolved.path}: the reward function cannot be imported: {where}.\n"
            f"Fix: mend that, or install what it needs into {sys.executable}."
        ) from None


def prepare(resolved: Resolved, kwargs: Mapping[str, Any]) -> None:
    """Call `PREPARE(**kwargs)` of an imported plug-in, where it has one: slow work before the first score.

    Raises:
        PluginError: it raised, for instance because a setting is missing.
    """
    hook = getattr(import_plugin(resolved), "PREPARE", None)
    if hook is None:
        return
    try:
        hook(**kwargs)
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"{resolved.path}: the reward function cannot be prepared: {explain(error, resolved.location)}.\n"
            "Fix: mend its kwargs (reward.functions: [{path: ..., kwargs: {...}}]), or what they name."
        ) from None


def needed_seconds(resolved: Resolved, kwargs: Mapping[str, Any], count: int) -> float:
    """Seconds that a call with `count` completions may take by `NEEDS_S(count, **kwargs)` of an imported
    plug-in: a function that keeps deadlines of its own is not interrupted before. 0 where it says nothing.

    Raises:
        PluginError: it raised, or gave no finite number.
    """
    hook = getattr(import_plugin(resolved), "NEEDS_S", None)
    if hook is None:
        return 0.0
    try:
        seconds = float(hook(count, **kwargs))
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"{resolved.path}: NEEDS_S fails: {explain(error, resolved.location)}.\n"
            "Fix: mend it; it gets the number of completions and the kwargs, and returns seconds."
        ) from None
    if not math.isfinite(seconds):
        raise PluginError(f"{resolved.path}: NEEDS_S gave {seconds:g} seconds.\nFix: return a finite number.")
    return seconds


def traits_of(resolved: Resolved, function: Callable[..., Any]) -> Traits:
    """What an imported plug-in says of itself: `RANGE` and `WHOLE_BATCH` of the function, else of its module.

    Raises:
        PluginError: `RANGE` is not a lower and an upper end.
    """
    module = import_plugin(resolved)
    declared = getattr(function, "RANGE", getattr(module, "RANGE", None))
    whole = bool(getattr(function, "WHOLE_BATCH", getattr(module, "WHOLE_BATCH", False)))
    if declared is None:
        return Traits(whole)
    try:
        low, high = map(float, declared)
    except (TypeError, ValueError):
        low = high = math.nan
    if not low < high:
        raise PluginError(
            f"{resolved.path}: RANGE = {declared!r} is not a lower and an upper end.\n"
            "Fix: write RANGE = (0.0, 1.0), or leave it out."
        )
    return Traits(whole, (low, high))


def list_rewards() -> list[RewardInfo]:
    """Built-in reward functions and entry points, without importing any of them."""
    found = [info for name, file in _builtin_files().items() for info in _functions_of(name, file)]
    for entry in sorted(_entry_points(), key=lambda entry: entry.name):
        file = _file_of(entry)
        summary = _summary(ast.parse(file.read_bytes())) if file else ""
        found.append(RewardInfo(entry.name, entry.value, summary))
    return found


def _resolve_file(left: str, function: str | None) -> Resolved:
    file = Path(left).expanduser()
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "no such file"
        raise PluginError(
            f"reward function {left}: {what} (working directory {Path.cwd()}).\n"
            f"Fix: give a .py file relative to the working directory, or an absolute path. {LIST_HINT}"
        )
    location = str(file.resolve())
    path = f"{location}:{function}" if function else location
    return Resolved("file", location, function, function or file.stem, path)


def _resolve_module(path: str, module: str, function: str) -> Resolved:
    if not all(part.isidentifier() for part in module.split(".")):
        raise PluginError(
            f"reward function {path!r}: {module!r} is no module name.\n"
            "Fix: write file.py:function or package.module:function."
        )
    return Resolved("module", module, function, function.rpartition(".")[2], path)


def _unknown(path: str, known: list[str]) -> str:
    near = difflib.get_close_matches(path, known, n=1, cutoff=0.5)
    if near:
        hint = f"Did you mean {near[0]}? "
    elif "." in path:
        hint = f"Fix: for a function of a module write {path.rpartition('.')[0]}:{path.rpartition('.')[2]}. "
    else:
        hint = ""
    return (
        f"reward function {path!r}: no built-in, no .py file and no entry point of group {ENTRY_POINT_GROUP} "
        f"has this name.\n{hint}{LIST_HINT}"
    )


def _builtin_files() -> dict[str, Path]:
    # Here and not above: the recipe package brings pydantic, and reward processes start faster without it.
    from rl4dlm.recipe import shipped_folder

    return {file.stem: file for file in sorted(shipped_folder("reward_fns").glob("*.py"))}


def _entry_points() -> list[EntryPoint]:
    # Here and not above, for the same reason.
    from importlib import metadata

    return list(metadata.entry_points(group=ENTRY_POINT_GROUP))


def _import_file(location: str) -> ModuleType:
    # The same file named twice in a recipe is imported once; its name cannot hide another module's.
    name = f"rl4dlm_plugin_{zlib.crc32(location.encode()):08x}_{Path(location).stem}"
    if name in sys.modules:
        return sys.modules[name]
    folder = str(Path(location).parent)
    if folder not in sys.path:
        sys.path.append(folder)
    spec = importlib.util.spec_from_file_location(name, location)
    if spec is None or spec.loader is None:
        raise ImportError(f"{location} is no Python source file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _pick(module: ModuleType, resolved: Resolved) -> Callable[..., Any]:
    """The function that a path names in an imported module, or the file's default."""
    public = [
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    ]
    if resolved.function is not None:
        candidates = [resolved.function]
    else:
        candidates = [Path(resolved.location).stem, "compute_score", *(public if len(public) == 1 else [])]
    for candidate in candidates:
        try:
            found = functools.reduce(getattr, candidate.split("."), module)
        except AttributeError:
            continue
        if callable(found):
            return found
    wanted = resolved.function or f"{candidates[0]} (named like the file)"
    raise PluginError(
        f"{resolved.path}: there is no function {wanted} in {resolved.location}; "
        f"it has: {', '.join(public) or 'no public function'}.\nFix: write {resolved.location}:function."
    )


def _functions_of(name: str, file: Path) -> Iterator[RewardInfo]:
    """The reward functions of a built-in file: the one named like it, then the others as `file:function`."""
    tree = ast.parse(file.read_bytes())
    functions = [node for node in tree.body if isinstance(node, _FUNCTIONS) and _scores(node)]
    for node in sorted(functions, key=lambda node: node.name != name):
        default = node.name == name
        summary = _summary(tree if default else node)
        yield RewardInfo(name if default else f"{name}:{node.name}", str(file), summary)


def _scores(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return not node.name.startswith("_") and any(arg.arg == "completions" for arg in node.args.args)


def _summary(node: ast.Module | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    return (ast.get_docstring(node) or "").partition("\n")[0]


def _file_of(entry: EntryPoint) -> Path | None:
    """Source file of an entry point's module, where its distribution lists it."""
    if entry.dist is None:
        return None
    stem = entry.module.replace(".", "/")
    for candidate in (f"{stem}.py", f"{stem}/__init__.py"):
        file = Path(str(entry.dist.locate_file(candidate)))
        if file.is_file():
            return file
    return None
