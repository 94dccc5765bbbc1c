"""JSON and YAML that users hand over, read within bounds: a file of any size or depth ends in one message.

Python's own readers answer hostile input with RecursionError, with a ValueError about digits, or with all of
the machine's memory. Both readers here raise `Unreadable`, whose text is a reason; callers add file, row and
remedy.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

MAX_DEPTH = 100
"""Levels of lists and mappings in one another."""
MAX_YAML_CHARS = 1 << 20
"""Longest recipe, characters."""
_MAX_YAML_NODES = 100_000
"""Values of a recipe with every alias written out."""
_MAX_SHOWN = 60

_LONE_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_HUGE_EXPONENT = re.compile(r"[eE]\+?\d{3}")
# What a YAML 1.1 reader takes for a number in base 8 or base 60.
_OCTAL = re.compile(r"[-+]?0[0-7_]*[0-7]")
_SEXAGESIMAL = re.compile(r"[-+]?[1-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")


class Unreadable(ValueError):
    """A text cannot be read; the message is the reason, without a full stop."""


def parse_json(text: str | bytes, *, finite: bool = False) -> Any:
    """The value of a JSON text, as written: integers of any size stay exact and nothing is guessed.

    Args:
        text: a whole JSON text; bytes are UTF-8, and may begin with a byte order mark.
        finite: refuse NaN and Infinity, which JSON does not know and Python's writers use.

    Raises:
        Unreadable: it is no JSON, holds a key twice, a number that no float or integer can hold, half a
            surrogate pair, or more than `MAX_DEPTH` levels.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        hooks: dict[str, Any] = {"object_pairs_hook": _object}
        if finite:
            hooks["parse_constant"] = _no_constant
        if finite or _HUGE_EXPONENT.search(text):
            hooks["parse_float"] = _finite_float
        value = json.loads(text, **hooks)
    except UnicodeDecodeError as error:
        raise Unreadable(f"not UTF-8: {error.reason} at byte {error.start}") from None
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in error.doc.strip() else ""
        raise Unreadable(f"not JSON: {error.msg} at {line}column {error.colno}") from None
    except RecursionError:
        raise Unreadable(_too_deep()) from None
    except Unreadable:
        raise
    except ValueError:  # what is left is the limit on the digits of an integer
        raise Unreadable("holds an integer of more than 4300 digits") from None
    _check_json(text, value)
    return value


def _check_json(text: str, value: Any) -> None:
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise Unreadable(_too_deep())
    if _LONE_SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise Unreadable(r"holds half of a surrogate pair (\ud800 to \udfff), which is no text") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Unreadable(f"holds the key {shown(twice)} twice")
    return made


def _no_constant(name: str) -> float:
    raise Unreadable(f"holds {name}, which is no number")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise Unreadable(f"holds the number {text[:_MAX_SHOWN]}, which is too large")
    return value


def _depth(value: Any) -> int:
    """Levels of containers in one another, counted without recursion."""
    deepest, rest = 0, [(value, 1)]
    while rest:
        node, depth = rest.pop()
        inner = node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ()
        if inner or isinstance(node, list | Mapping):
            deepest = max(deepest, depth)
        rest.extend((part, depth + 1) for part in inner if isinstance(part, list | Mapping))
    return deepest


def _too_deep() -> str:
    return f"nested more than {MAX_DEPTH} levels deep"


def check_yaml(text: str) -> None:
    """Refuse YAML that would be expensive to build, or that YAML 1.1 reads as another number than is written.

    Raises:
        Unreadable: too long, too deep, too many values once its aliases are written out, an alias inside
            what it names, an integer of more than 4300 digits, or one that would be read in base 8 or 60.
        yaml.YAMLError: it is no YAML.
    """
    if len(text) > MAX_YAML_CHARS:
        raise Unreadable(f"holds more than {MAX_YAML_CHARS} characters, too many for a recipe")
    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = []  # anchor, and values before it
    total = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise Unreadable(_at(event, f"the alias *{event.anchor} stands before or inside its anchor"))
            total += sizes[event.anchor]
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, total))
            total += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            if anchor is not None:
                sizes[anchor] = total - before
        elif isinstance(event, yaml.ScalarEvent):
            _check_scalar(event)
            total += 1
            if event.anchor is not None:
                sizes[event.anchor] = 1
        if len(open_nodes) > MAX_DEPTH:
            raise Unreadable(_at(event, _too_deep()))
        if total > _MAX_YAML_NODES:
            raise Unreadable(f"holds more than {_MAX_YAML_NODES} values with its aliases written out")


def _check_scalar(event: yaml.ScalarEvent) -> None:
    """A plain number must be the number that a reader of the file sees, and references must be few: their
    grammar takes seconds for thousands."""
    value = event.value
    if value.count("${") > MAX_DEPTH:
        raise Unreadable(_at(event, f"more than {MAX_DEPTH} references in one text"))
    if not event.implicit[0] or event.style is not None:
        return
    if _OCTAL.fullmatch(value) and value.strip("+-0_"):
        raise Unreadable(
            _at(event, f"YAML reads {shown(value)} in base 8: leave out the leading zero, or quote it")
        )
    if _SEXAGESIMAL.fullmatch(value):
        raise Unreadable(_at(event, f"YAML reads {shown(value)} in base 60: quote it"))
    if len(value) > 4000 and re.fullmatch(r"[-+]?[0-9_]+|[-+]?0[xXbB][0-9a-fA-F_]+", value):
        raise Unreadable(_at(event, f"a number of {len(value)} digits"))


def _at(event: yaml.Event, reason: str) -> str:
    mark = event.start_mark
    return reason if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: {reason}"


def unwritable(value: Any) -> Iterator[str]:
    """Texts inside a plain value that no file name and no UTF-8 file can hold: with NUL or half a pair."""
    rest = [value]
    while rest:
        node = rest.pop()
        if isinstance(node, str):
            if "\0" in node or any("\ud800" <= letter <= "\udfff" for letter in node):
                yield node
        elif isinstance(node, Mapping):
            rest.extend([*node.keys(), *node.values()])
        elif isinstance(node, list | tuple):
            rest.extend(node)


def shown(value: Any) -> str:
    """A value for a message: never longer than a line, whatever it is."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer beyond Python's limit on digits, or a deep value
        return f"a huge {type(value).__name__}"
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."


def is_file(name: str) -> bool:
    """Whether a name is that of a file; one that no file can have is not."""
    try:
        return Path(name).is_file()
    except (OSError, ValueError):  # longer than a file system takes, or with NUL
        return False
