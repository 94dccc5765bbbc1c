"""Write the generated part of docs/recipe.md: every recipe key with type, default and docstring.

    python scripts/make_recipe_docs.py            rewrite what follows the marker line, keep what is above it
    python scripts/make_recipe_docs.py --check    exit with status 1 when the file is not up to date

Types and defaults come from the pydantic classes of `rl4dlm.recipe`; what a key means is the docstring under
its attribute, read from the source.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rl4dlm.recipe import Recipe, SFTRecipe
from rl4dlm.recipe.aliases import ALIASES
from rl4dlm.recipe.schema import Config, OneOf
from rl4dlm.recipe.sections import DataConfig
from rl4dlm.recipe.supervised import SFTConfig, SFTDataConfig

PAGE = Path(__file__).resolve().parent.parent / "docs" / "recipe.md"
MARKER = "<!-- Below this line: scripts/make_recipe_docs.py. Edit docstrings in rl4dlm/recipe instead. -->"

_BOUNDS = (("gt", "> {}"), ("ge", ">= {}"), ("lt", "< {}"), ("le", "<= {}"), ("min_length", "at least {}"))
_PLAIN = {str: "text", int: "int", float: "float", bool: "bool"}


def main() -> int:
    """Rewrite or check the page; the exit status."""
    parser = argparse.ArgumentParser(description="Write the generated part of docs/recipe.md.")
    parser.add_argument("--check", action="store_true", help="only say whether the page is up to date")
    check = parser.parse_args().check
    old = PAGE.read_text(encoding="utf-8")
    head, marker, _ = old.partition(MARKER)
    if not marker:
        print(f"{PAGE}: the marker line is missing:\n{MARKER}", file=sys.stderr)
        return 1
    new = head + MARKER + "\n\n" + "\n".join(generated()) + "\n"
    if check and new != old:
        print(f"{PAGE} is not up to date. Fix: python scripts/make_recipe_docs.py", file=sys.stderr)
        return 1
    if not check:
        PAGE.write_text(new, encoding="utf-8")
    return 0


def generated() -> Iterator[str]:
    """Lines of the generated part."""
    yield "## Sections\n"
    for name, field in Recipe.model_fields.items():
        presence = "required" if field.is_required() else "optional"
        for heading, section in _choices(name, field):
            yield f"- [`{heading}`](#{_anchor(heading)}): {presence}. {_summary(section)}"
    yield ""
    for name, field in Recipe.model_fields.items():
        for heading, section in _choices(name, field):
            yield from _section(heading, section)
    yield from _fine_tuning()
    yield from _aliases()


def _fine_tuning() -> Iterator[str]:
    """What differs in a recipe of `rl4dlm sft`: its own sections, and the keys that `data` has besides."""
    yield "## Fine-tuning\n"
    yield f"{_summary(SFTRecipe)} `reward` is optional there, and `warm_start` does not exist.\n"
    yield from _section("sft", SFTConfig)
    own = {name: field for name, field in SFTDataConfig.model_fields.items() if name not in _KEYS_OF_DATA}
    yield from _table("data, for fine-tuning", SFTDataConfig, list(own.items()))


_KEYS_OF_DATA = frozenset(DataConfig.model_fields)


def _choices(name: str, field: FieldInfo) -> Iterator[tuple[str, type[BaseModel]]]:
    """The classes that may stand under a top-level key, with their headings."""
    for section in _sections_in(field.annotation):
        yield _inner_path("", name, field, section).removeprefix("."), section


def _section(path: str, section: type[BaseModel]) -> Iterator[str]:
    """A heading, the class's summary and a table of its keys; then the sections inside it."""
    yield from _table(path, section, _type_first(section))
    for name, field in section.model_fields.items():
        for inner in _sections_in(field.annotation):
            yield from _section(_inner_path(path, name, field, inner), inner)


def _table(path: str, section: type[BaseModel], keys: list[tuple[str, FieldInfo]]) -> Iterator[str]:
    """A heading, the class's summary, and some of its keys."""
    yield f"## {path}\n"
    yield f"{_summary(section)}\n"
    yield "| key | type | default | meaning |"
    yield "| --- | --- | --- | --- |"
    meanings = _docstrings(section)
    for name, field in keys:
        cells = (f"`{name}`", _type(path, name, field), _default(field), meanings.get(name, ""))
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield ""


def _type_first(section: type[BaseModel]) -> list[tuple[str, FieldInfo]]:
    """A section's keys, what chooses it before all others."""
    return sorted(section.model_fields.items(), key=lambda item: item[0] not in ("type", "name"))


def _inner_path(path: str, name: str, field: FieldInfo, inner: type[BaseModel]) -> str:
    """The heading of a nested section: its dotted key, with the tag where several classes may stand there."""
    if len(_sections_in(field.annotation)) == 1:
        return f"{path}.{name}"
    tag = next(key for key in ("name", "type") if key in inner.model_fields)
    return f"{path}.{name} ({tag}: {inner.model_fields[tag].default})"


def _docstrings(section: type[BaseModel]) -> dict[str, str]:
    """The string under each attribute of a class, on one line, by attribute."""
    found: dict[str, str] = {}
    for base in reversed([base for base in section.__mro__ if issubclass(base, Config)]):
        tree = ast.parse(inspect.getsource(base)).body[0]
        assert isinstance(tree, ast.ClassDef)
        for node, after in zip(tree.body, tree.body[1:], strict=False):
            is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and is_text:
                found[node.target.id] = " ".join(str(after.value.value).split())
    return found


def _summary(section: type[BaseModel]) -> str:
    return " ".join((inspect.getdoc(section) or "").split())


def _type(path: str, name: str, field: FieldInfo) -> str:
    """The type for people, with its bounds; nested sections link to their heading."""
    named = next((entry.choices for entry in field.metadata if isinstance(entry, OneOf)), None)
    text = _type_text(field.annotation) if named is None else " or ".join(f"`{choice}`" for choice in named)
    inner = _sections_in(field.annotation)
    if inner:
        links = [_inner_path(path, name, field, section) for section in inner]
        named = ", ".join(f"[{link}](#{_anchor(link)})" for link in links)
        text = f"{text}: {named}"
    bounds = [
        words.format(f"{value:g}" if isinstance(value, float) else value)
        for constraint in field.metadata
        for key, words in _BOUNDS
        if (value := getattr(constraint, key, None)) is not None
    ]
    patterns = [getattr(constraint, "pattern", None) for constraint in field.metadata]
    bounds += [f"matching `{pattern}`" for pattern in patterns if pattern]
    return ", ".join([text, *bounds])


def _type_text(annotation: Any) -> str:
    """`int`, `text or null`, one of several values, `list of ...`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is type(None):
        return "null"
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    if origin is Annotated:
        return _type_text(arguments[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type_text(argument) for argument in arguments))
    if origin is list:
        return f"list of {_type_text(arguments[0])}"
    if origin is tuple:
        return f"list of {len(arguments)} {_type_text(arguments[0])}"
    if origin is dict:
        return f"mapping of {_type_text(arguments[0])} to {_type_text(arguments[1])}"
    return "section"


def _default(field: FieldInfo) -> str:
    """The default as YAML has it."""
    if field.is_required():
        return "required"
    value = field.default
    if isinstance(value, BaseModel):
        return "its defaults"
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True).removesuffix("...\n").strip()
    return f"`{text}`"


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    """The recipe sections that a type mentions, in order."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for argument in get_args(annotation) for section in _sections_in(argument)]


def _anchor(heading: str) -> str:
    """The link target that Markdown renderers give a heading."""
    kept = (char for char in heading.lower() if char.isalnum() or char in " -_")
    return "".join(kept).replace(" ", "-")


def _aliases() -> Iterator[str]:
    """Names of other toolkits and where the same setting lives here."""
    yield "## Names from other toolkits\n"
    yield "An unknown key with one of these names is refused with the place to put it.\n"
    yield "| name | toolkit | here |"
    yield "| --- | --- | --- |"
    for name, (toolkit, ours) in sorted(ALIASES.items(), key=lambda item: (item[1][0].lower(), item[0])):
        yield f"| `{name}` | {toolkit} | {ours} |"


if __name__ == "__main__":
    sys.exit(main())
