"""YAML files and `key=value` overrides -> a checked Recipe, or one message that says what to mend."""

from __future__ import annotations

import difflib
import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from rl4dlm.errors import RecipeError
from rl4dlm.recipe.bounded import MAX_DEPTH, MAX_YAML_CHARS, Unreadable, check_yaml, is_file
from rl4dlm.recipe.explain import schema_findings
from rl4dlm.recipe.references import FromEnvironment, References, references_of
from rl4dlm.recipe.root import AnyRecipe, SFTRecipe, root_of
from rl4dlm.recipe.rules import RULES, SFT_RULES, Finding, Rule

_CHOSEN_BY = {"data.task": "name", "algorithm": "type", "sft.objective": "type"}
"""Sections of which there are several kinds, and the key that says which."""


def shipped_folder(kind: str) -> Path:
    """The folder of shipped `recipes` or `reward_fns`: inside the installed package, or at the top of a
    clone."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "_shipped" / kind
    return installed if installed.is_dir() else package.parent / kind


def list_recipes() -> dict[str, Path]:
    """Shipped recipes by name (`gdpo/tiny_sort`), sorted."""
    root = shipped_folder("recipes")
    return {str(path.relative_to(root).with_suffix("")): path for path in sorted(root.rglob("*.yaml"))}


def find_recipe(name: str) -> Path:
    """A recipe file by path, or a shipped one by name (`gdpo/tiny_sort`, with or without `recipes/` and
    `.yaml`).

    Raises:
        RecipeError: neither exists.
    """
    if is_file(name):
        return Path(name)
    shipped = list_recipes()
    key = name.removeprefix("recipes/").removesuffix(".yaml").removesuffix(".yml")
    if key in shipped:
        return shipped[key]
    near = difflib.get_close_matches(key, shipped, n=1, cutoff=0.5)
    hint = f" Did you mean the shipped recipe {near[0]}?" if near else ""
    raise RecipeError(
        f"{_short(name)}: no such recipe file.{hint}\n"
        "Fix: correct the path; `rl4dlm recipes ls` lists the shipped ones."
    )


def load_recipe(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    overrides: Sequence[str] = (),
    rules: Sequence[Rule] | None = None,
) -> Any:
    """Read and layer recipe files left to right, apply overrides, check everything.

    Args:
        paths: one or more files or names of shipped recipes; later ones override earlier ones key by key.
        overrides: `section.key=value`, values in YAML.
        rules: those that must hold; None: all. A command that only samples needs none.

    Returns:
        A `Recipe`, or an `SFTRecipe` where there is a section `sft`.

    Raises:
        RecipeError: a file is missing or is no YAML, a key is unknown, a value is wrong, or settings do not
            fit.
    """
    if isinstance(paths, str | os.PathLike):
        paths = [paths]
    layers = [(str(name), _read_yaml(find_recipe(str(name)))) for name in paths]
    layers += [(f"override {_short(override)}", parse_override(override)) for override in overrides]
    values: Any = {}
    origin: dict[str, str] = {}
    for name, layer in layers:
        values = layered(values, layer)
        _note_origin(layer, name, origin)
    where = ", ".join(str(path) for path in paths)
    references = references_of(values)
    resolved = _resolve(values, origin, where)
    return check(resolved, origin, where, rules, references).with_references(references)


def check(
    values: Any,
    origin: Mapping[str, str] | None = None,
    where: str = "recipe",
    rules: Sequence[Rule] | None = None,
    references: References | None = None,
) -> Any:
    """Validate plain values against the schema and the rules that tie sections together.

    Args:
        values: nested dict, as YAML gives it.
        origin: dotted key -> the file or override that set it, for messages.
        where: named in messages for keys without an origin.
        rules: those that must hold; None: all of the recipe's kind.
        references: what stands in a message in the place of values from outside, see `references_of`.

    Raises:
        RecipeError: with every finding, one per line.
    """
    findings: list[Finding] = []
    root = root_of(values)
    if rules is None:
        rules = SFT_RULES if root is SFTRecipe else RULES
    try:
        recipe = root.model_validate(values)
        findings = [finding for rule in rules for finding in rule(recipe)]
    except ValidationError as error:
        findings = schema_findings(error, values, references or {})
    if findings:
        lines = [
            f"{_origin_of(key, origin or {}, where)}: {problem}.\nFix: {remedy}."
            for key, problem, remedy in findings
        ]
        raise RecipeError("\n".join(line.replace("?.", "?") for line in lines))
    return recipe


def dump_resolved(recipe: AnyRecipe, path: str | os.PathLike[str]) -> None:
    """Write the whole recipe, defaults included, as YAML that `load_recipe` reads back to an equal recipe.

    What came from the environment is written as the reference that it was, so secrets stay out of the file.
    """
    values = _literal(recipe.shown())
    text = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    Path(path).write_text("# Resolved recipe: every setting of this run.\n" + text, encoding="utf-8")


class _Dumper(yaml.SafeDumper):
    """Puts into quotes what a recipe's reader would otherwise take for a number (`1e-6`) or a line's end."""

    def text(self, value: str) -> yaml.ScalarNode:
        style = '"' if set(value) & _LINE_ENDS else None
        return self.represent_scalar("tag:yaml.org,2002:str", value, style)


_LINE_ENDS = set("\x85\u2028\u2029")
_Dumper.add_representer(str, _Dumper.text)
_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9_]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _literal(value: Any) -> Any:
    r"""The same values with `${` in texts escaped, which a reader would take for a reference: `\${`."""
    if isinstance(value, FromEnvironment):
        return str(value)
    if isinstance(value, dict):
        return {key: _literal(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_literal(inner) for inner in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            text = file.read(4 * MAX_YAML_CHARS + 1).decode("utf-8-sig")
        values = _yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or _first_line(error)
        raise RecipeError(
            f"{path}{place}: not valid YAML: {problem}.\nFix: check indentation and quotes."
        ) from None
    except (Unreadable, OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"{path}: cannot be read: {_first_line(error)}.\nFix: a recipe is a YAML file of sections."
        ) from None
    if not isinstance(values, dict):
        raise RecipeError(
            f"{path}: holds a list.\nFix: write sections, as `rl4dlm recipes show quickstart` does."
        )
    return values


def _yaml(text: str) -> Any:
    """The values of a YAML text, references not yet put in.

    Raises:
        yaml.YAMLError: it is no YAML.
        Unreadable: it is beyond the bounds, or no recipe can hold what it says.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    check_yaml(text)
    try:
        return OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False)
    except yaml.YAMLError:
        raise
    except (OmegaConfBaseException, OSError, ValueError, TypeError, RecursionError) as error:
        raise Unreadable(_first_line(error)) from None


def parse_override(text: str) -> dict[str, Any]:
    """`section.key=value` as nested dicts.

    Raises:
        RecipeError: no key, or a value that is no YAML.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    key, _, value = text.partition("=")
    parts = key.strip().split(".")
    if not all(parts) or len(parts) > MAX_DEPTH:
        raise RecipeError(f"override {_short(text)!r} names no key.\nFix: write section.key=value.")
    try:
        check_yaml(value)
        values = OmegaConf.to_container(OmegaConf.from_dotlist([f"{key.strip()}={value}"]))
    except (
        OmegaConfBaseException,
        yaml.YAMLError,
        ValueError,
        TypeError,
        LookupError,
        RecursionError,
    ) as error:
        raise RecipeError(
            f"override {_short(text)!r}: not valid YAML after the equals sign: {_first_line(error)}.\n"
            "Fix: check brackets and quotes, and that the shell leaves them in."
        ) from None
    return {str(name): inner for name, inner in values.items()} if isinstance(values, dict) else {}


def _short(text: str) -> str:
    """A name or an override for a message."""
    return text if len(text) <= 200 else f"{text[:197]}..."


def layered(below: Any, above: Any, key: str = "") -> Any:
    """`above` over `below`, key by key; a section of another kind (`data.task.name`) starts afresh."""
    if not isinstance(below, Mapping) or not isinstance(above, Mapping):
        return above
    tag = _CHOSEN_BY.get(key)
    if tag in below and tag in above and below[tag] != above[tag]:
        return above
    inner = {
        name: layered(below.get(name), value, f"{key}.{name}".lstrip(".")) for name, value in above.items()
    }
    return {**below, **inner}


def _resolve(values: Any, origin: Mapping[str, str], where: str) -> Any:
    """Put in what `${section.key}` refers to."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.to_container(OmegaConf.create(values), resolve=True)
    except (OmegaConfBaseException, RecursionError) as error:
        key = str(getattr(error, "full_key", None) or "")
        raise RecipeError(
            f"{_origin_of(key, origin, where)}: {key}: {_first_line(error)}.\n"
            r"Fix: ${section.key} stands for another key's value; for the characters themselves write \${."
        ) from None


def _first_line(error: Exception) -> str:
    return _short((str(error).splitlines() or [type(error).__name__])[0].rstrip("."))


def _note_origin(values: Mapping[str, Any], name: str, origin: dict[str, str], prefix: str = "") -> None:
    for key, value in values.items():
        dotted = f"{prefix}{key}"
        origin[dotted] = name
        if isinstance(value, Mapping):
            _note_origin(value, name, origin, dotted + ".")


def _origin_of(key: str, origin: Mapping[str, str], where: str) -> str:
    while key:
        if key in origin:
            return origin[key]
        key = key.rpartition(".")[0]
    return where
