"""References to environment variables stay references wherever a recipe is written: keys and tokens have no
place in a run's folder, a report or a tracker."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

Path = tuple[str | int, ...]
References = Mapping[Path, str]
"""Where in a recipe a secret may stand, and what was written there in its place."""

_OPENS = re.compile(r"(?<!\\)(?:\\\\)*\$\{")
_PLAIN = re.compile(r"\$\{\s*(\.*)([\w.\[\]-]+)\s*\}")
"""`${section.key}`, or `${.key}` for a neighbour: the value of another setting."""


class FromEnvironment(str):
    """A text of a recipe that stands for a value from outside."""


def references_of(values: Any) -> dict[Path, str]:
    """The settings of a recipe as read whose value comes from outside: `${oc.env:NAME}` and its like.

    A setting counts as well where it refers to one that does, and where it cannot be seen what it refers to.

    Args:
        values: nested plain values, before references are put in.

    Returns:
        By path, the text as written.
    """
    written = {path: text for path, text in _texts(values, ()) if _OPENS.search(text)}
    harmless = {path: _targets(path, text) for path, text in written.items()}
    found = {path for path, targets in harmless.items() if targets is None}
    while True:
        more = {
            path
            for path, targets in harmless.items()
            if path not in found
            and any(_overlap(target, known) for target in targets or () for known in found)
        }
        if not more:
            return {path: text for path, text in written.items() if path in found}
        found |= more


def put_back(values: Any, references: References) -> Any:
    """Resolved plain values with `FromEnvironment`s where they came from outside.

    Args:
        values: nested plain values; they are changed.
        references: as `references_of` gives them.
    """
    for path, text in references.items():
        node = values
        for part in path[:-1]:
            node = node[part]
        node[path[-1]] = FromEnvironment(text)
    return values


def look_up(values: Any, key: str) -> Any:
    """The value at a dotted key, or the reference on the way to it."""
    node = values
    for part in key.split("."):
        if isinstance(node, FromEnvironment):
            break
        node = (
            node[int(part)]
            if isinstance(node, list)
            else node.get(part)
            if isinstance(node, Mapping)
            else None
        )
    return node


def _texts(node: Any, path: Path) -> Iterator[tuple[Path, str]]:
    if isinstance(node, str):
        yield path, node
    elif isinstance(node, Mapping):
        for name, inner in node.items():
            yield from _texts(inner, (*path, name))
    elif isinstance(node, list):
        for index, inner in enumerate(node):
            yield from _texts(inner, (*path, index))


def _targets(path: Path, text: str) -> list[Path] | None:
    """The settings that a text refers to; None where it refers to anything else."""
    rest = _PLAIN.sub("", text)
    if _OPENS.search(rest):
        return None
    targets = []
    for match in _PLAIN.finditer(text):
        dots, key = match.groups()
        base = path[: len(path) - len(dots)] if dots else ()
        parts = re.findall(r"[\w-]+", key)
        targets.append((*base, *(int(part) if part.isdecimal() else part for part in parts)))
    return targets


def _overlap(one: Path, other: Path) -> bool:
    """Whether one setting lies inside the other, or is it."""
    shorter = min(len(one), len(other))
    return [str(part) for part in one[:shorter]] == [str(part) for part in other[:shorter]]
