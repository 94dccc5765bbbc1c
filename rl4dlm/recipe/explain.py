"""What the schema found wrong with a recipe, in the user's words: their key, their value, the near name."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

from rl4dlm.recipe.aliases import ALIASES, NO_KEY
from rl4dlm.recipe.bounded import shown
from rl4dlm.recipe.plain_values import TRUTH_VALUE
from rl4dlm.recipe.references import References
from rl4dlm.recipe.root import AnyRecipe, Recipe, SFTRecipe, root_of
from rl4dlm.recipe.rules import Finding

Key = tuple[str | int, ...]

_MAPPING = "a mapping of keys to values"
_NEEDS = {
    "string_type": "text in quotes",
    "model_type": _MAPPING,
    "model_attributes_type": _MAPPING,
    "dict_type": _MAPPING,
    "list_type": "a list",
    "tuple_type": "a list",
    "too_short": "a list of {min_length} or more",
    "too_long": "a list of {max_length} or fewer",
    "string_pattern_mismatch": "text that matches {pattern}",
    "union_tag_invalid": "one of {expected_tags}",
}
_UNKNOWN = ("extra_forbidden", "invalid_key")
_ABSENT = ("missing", "union_tag_not_found")


def schema_findings(error: ValidationError, values: Any, references: References) -> list[Finding]:
    """One `(key, problem, remedy)` per mistake, in the order of the schema.

    Args:
        error: what pydantic says about `values`.
        values: the recipe as read, nested dict.
        references: what is shown in the place of values from outside.
    """
    found: dict[Key, list[Any]] = {}
    for finding in error.errors(include_url=False):
        found.setdefault(_users_key(finding, values), []).append(finding)
    # Every member of a union objects to a value; the one that looked further in knows what was meant.
    return [
        _finding(key, same_key, values, references)
        for key, same_key in found.items()
        if not any(other != key and other[: len(key)] == key for other in found)
    ]


def all_keys(root: type[AnyRecipe] = Recipe) -> list[str]:
    """Every dotted key that a recipe may hold."""

    def walk(section: type[BaseModel], prefix: str) -> Iterable[str]:
        for name, field in section.model_fields.items():
            yield prefix + name
            for inner in _sections_in(field.annotation):
                yield from walk(inner, f"{prefix}{name}.")

    return sorted(set(walk(root, "")))


def _users_key(finding: Any, values: Any) -> Key:
    """The parts of a pydantic location that the user wrote; it names the members of unions too."""
    key: list[str | int] = []
    node = values
    absent = finding["type"] in ("missing", "invalid_key")  # the last part is not in the values
    for part in finding["loc"][:-1] if absent else finding["loc"]:
        held = node if isinstance(node, Mapping) else range(len(node)) if isinstance(node, list) else ()
        if part in held:
            key.append(part)
            node = node[part]
    if absent:
        key.append(finding["loc"][-1])
    elif finding["type"].startswith("union_tag"):
        key.append(finding["ctx"]["discriminator"].strip("'"))
    elif finding["type"] == TRUTH_VALUE:
        key.append(finding["ctx"]["field"])
    return tuple(key)


def _finding(key: Key, findings: Sequence[Any], values: Any, references: References) -> Finding:
    dotted, kind = ".".join(map(str, key)), findings[0]["type"]
    if kind in _UNKNOWN:
        return dotted, f"unknown key {dotted}", _place_for(key, values)
    if kind in _ABSENT:
        name = "sft/tiny_sort" if root_of(values) is SFTRecipe else "quickstart"
        example = "" if isinstance(key[-1], int) else f"; `rl4dlm recipes show {name}` is an example"
        return dotted, f"{dotted} is missing", f"add it{example}"
    needs = " or ".join(dict.fromkeys(map(_need, findings)))
    shown_instead = {"union_tag_invalid": "tag", TRUTH_VALUE: "value"}
    value = findings[0]["ctx"][shown_instead[kind]] if kind in shown_instead else findings[0]["input"]
    outside = next((text for path, text in references.items() if path == key[: len(path)]), None)
    if outside is not None:
        return dotted, f"{dotted} = {outside} is not {needs}", "correct what the reference stands for"
    text = shown(value)
    state = "is empty," if value is None else f"= {text} is" if not text.endswith("...") else "is"
    return dotted, f"{dotted or 'the recipe'} {state} not {needs}", _better_value(key, value, needs, values)


def _need(finding: Any) -> str:
    """What a value must be, to follow `not`."""
    if finding["type"] in _NEEDS:
        return _NEEDS[finding["type"]].format(**finding.get("ctx", {}))
    return re.sub(r", (unable to|got) .*", "", finding["msg"].removeprefix("Input should be "))


def _better_value(key: Key, value: Any, needs: str, values: Any) -> str:
    near = difflib.get_close_matches(shown(value).strip("'"), re.findall(r"'(\w+)'", needs), n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]}?"
    fields = _fields_at(key[:-1], values)
    default = getattr(fields.get(str(key[-1])), "default", None) if key else None
    known = isinstance(default, str | int | float | tuple)
    return f"make it {needs}" + (f"; the default is {json.dumps(default)}" if known else "")


def _place_for(key: Key, values: Any) -> str:
    """Where something belongs that the user put under a key that does not exist."""
    leaf, beside = str(key[-1]), list(_fields_at(key[:-1], values))
    if len(key) == 1 and leaf in Recipe.model_fields:
        return (
            f"a recipe with a section sft is for `rl4dlm sft` and has no {leaf}: remove the one or the other"
        )
    section = "".join(f"{part}." for part in key[:-1])
    if "." in leaf:
        return f"dotted keys are for the command line; in a file, write {leaf.replace('.', ': {', 1)}: ...}}"
    near = difflib.get_close_matches(leaf, beside, n=1, cutoff=0.75)
    if near:
        return f"did you mean {section}{near[0]}?"
    if leaf in ALIASES:
        toolkit, ours = ALIASES[leaf]
        if ours.startswith(NO_KEY):
            return f"remove {toolkit}'s {leaf}: {ours.removeprefix(NO_KEY)}"
        return f"{leaf} is {toolkit}'s name; here it is {ours}"
    everywhere = {
        known.rpartition(".")[2]: known for known in all_keys(root_of(values)) if known != section + leaf
    }
    near = difflib.get_close_matches(leaf, everywhere, n=1, cutoff=0.75)
    if near:
        return f"did you mean {everywhere[near[0]]}?"
    return f"keys that may stand here: {', '.join(beside)}"


def _fields_at(key: Key, values: Any) -> dict[str, Any]:
    """Fields of the section at a key; where several could stand, of the one that the values chose."""
    sections: list[type[BaseModel]] = [root_of(values)]
    node: Any = values
    for part in key:
        node = node[part]
        if isinstance(part, str):  # an index stays among the sections of its list
            holders = [section for section in sections if part in section.model_fields]
            sections = [c for s in holders for c in _sections_in(s.model_fields[part].annotation)]
    return {name: f for s in sections if _chosen(s, node) for name, f in s.model_fields.items()}


def _chosen(section: type[BaseModel], values: Any) -> bool:
    """Whether values name this section by its tag, where it has one (`type: gdpo`, `name: sort`)."""
    tags = {
        name: get_args(field.annotation)[0]
        for name, field in section.model_fields.items()
        if get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1
    }
    return not isinstance(values, Mapping) or all(values.get(name, tag) == tag for name, tag in tags.items())


def _sections_in(annotation: Any) -> Iterable[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    else:
        for argument in get_args(annotation):
            yield from _sections_in(argument)
