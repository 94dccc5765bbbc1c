"""What no setting may be, whatever its section: a truth value for a number, an integer beyond any counter, a
text that no file can hold, a path that no file system takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, get_args, get_origin

import annotated_types
from pydantic import AfterValidator, BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from rl4dlm.recipe.bounded import unwritable

MAX_COUNT = 2**31 - 1
"""Largest integer of a setting that has no bound of its own: counters of tensors and files hold no more."""
TRUTH_VALUE = "truth_value"
"""Type of the error about a truth value, whose context names the field and the value."""
_MAX_PART = 255
_MAX_PATH = 1000
"""Bytes of a path in a recipe; the run adds names of its own to it."""


def refuse_truth_for_numbers(values: Any, fields: Mapping[str, FieldInfo]) -> None:
    """Python takes `true` for 1; a reader of the recipe does not.

    Args:
        values: of a section, as given.
        fields: of the section.

    Raises:
        PydanticCustomError: a number is asked for and a truth value is given; its context names the field.
    """
    for name, value in values.items() if isinstance(values, Mapping) else ():
        if name not in fields or not any(isinstance(leaf, bool) for leaf in _leaves(value)):
            continue
        kinds = set(_kinds(fields[name].annotation))
        if kinds & {int, float} and not kinds & {bool, Any}:
            raise PydanticCustomError(
                TRUTH_VALUE,
                "Input should be a number: true and false do not count as 1 and 0",
                {"field": name, "value": value},
            )


def refuse_unusable(value: Any, field: FieldInfo) -> None:
    """Bounds that hold for every setting, unless it has its own.

    Raises:
        PydanticCustomError: an integer or a text is beyond them.
    """
    bounded = any(isinstance(part, annotated_types.Le | annotated_types.Lt) for part in field.metadata)
    for leaf in _leaves(value):
        if isinstance(leaf, int) and not bounded and abs(leaf) > MAX_COUNT:
            raise PydanticCustomError(
                "too_large", "Input should be an integer of at most {largest}", {"largest": MAX_COUNT}
            )
    if next(unwritable(value), None) is not None:
        raise PydanticCustomError(
            "unwritable", "Input should be text without NUL and without half surrogate pairs"
        )


def _fits(path: str) -> str:
    parts = [len(part.encode("utf-8", "surrogateescape")) for part in path.split("/")]
    if sum(parts) + len(parts) > _MAX_PATH or max(parts) > _MAX_PART:
        raise PydanticCustomError(
            "long_path",
            "Input should be a path of at most {whole} bytes with names of at most {part}",
            {"whole": _MAX_PATH, "part": _MAX_PART},
        )
    return path


PathText = Annotated[str, AfterValidator(_fits)]
"""A path, or a name that may stand in its place."""


def _leaves(value: Any) -> Iterator[Any]:
    """Values inside lists and plain mappings; sections check their own."""
    if isinstance(value, Mapping):
        inner: Sequence[Any] = list(value.values())
    elif isinstance(value, list | tuple):
        inner = value
    else:
        yield value
        return
    for part in inner:
        yield from _leaves(part)


def _kinds(annotation: Any) -> Iterator[Any]:
    """The types that an annotation names, those of literal values included; none of a section's own."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return
    if get_origin(annotation) is None:
        yield annotation if isinstance(annotation, type) or annotation is Any else type(annotation)
        return
    for argument in get_args(annotation):
        yield from _kinds(argument)
