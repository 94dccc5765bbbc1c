"""Reading and writing a config.json by a table: spellings, types, bounds, defaults, what is supported."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rl4dlm.errors import ModelError
from rl4dlm.recipe.bounded import shown

Values = dict[str, Any]
"""What was read, by our names of the fields."""

Kind = Literal["count", "number", "flag", "id", "ids", "any"]
"""`count`: integer; `number`: positive, finite; `id`: row of the embedding; `ids`: one or a list of them."""


class _Required:
    """The default of a field that has none."""


REQUIRED = _Required()


@dataclass(frozen=True)
class Field:
    """One field of a published configuration.

    Example: `Field("n_heads", ("num_attention_heads",), most=1024)`.
    """

    key: str
    """As the released class spells it, and as it is written; `a.b` is the key `b` of the object under `a`."""
    aliases: tuple[str, ...] = ()
    """Other spellings, tried in order."""
    kind: Kind = "count"
    default: Any = REQUIRED
    """Where the key is absent or null: what the released class takes then, or a function of what was read
    before."""
    only: tuple[Any, ...] | Callable[[Values], tuple[Any, ...]] = ()
    """The values that this implementation supports; empty: all of the kind."""
    least: int = 1
    most: int = 2**31
    blank: tuple[Any, ...] = ()
    """Values that stand for an absent key."""
    remedy: str = "take the config.json that was published with the weights"
    """What to do where the key is missing."""
    made: Any = None
    """In a configuration that is made from scratch, where nothing else says it; None: the first of `only`."""

    @property
    def spellings(self) -> tuple[str, ...]:
        return (self.key, *self.aliases)

    def find(self, data: Mapping[str, Any]) -> list[tuple[str, Any]]:
        """Spellings that the data has, with their values; null and blank ones are left out."""
        pairs = ((spelling, value_at(data, spelling)) for spelling in self.spellings)
        return [(s, value) for s, value in pairs if value is not None and value not in self.blank]

    def put(self, data: Mapping[str, Any], value: Any) -> dict[str, Any]:
        """The data with this value, under the spelling that it has the field under already."""
        present = (s for s in self.spellings if _has(data, s))
        return _put(data, next(present, self.key), value)


def value_at(data: Mapping[str, Any], spelling: str) -> Any:
    """The value under a key, or under a key of an object; None where there is none."""
    value: Any = data
    for part in spelling.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _has(data: Mapping[str, Any], spelling: str) -> bool:
    outer, _, inner = spelling.rpartition(".")
    holder = value_at(data, outer) if outer else data
    return isinstance(holder, Mapping) and inner in holder


def _put(data: Mapping[str, Any], spelling: str, value: Any) -> dict[str, Any]:
    first, _, rest = spelling.partition(".")
    return {**data, first: _put(data.get(first) or {}, rest, value) if rest else value}


@dataclass(frozen=True)
class Reader:
    """Reads fields of one configuration; every failure names the key and the place it was read from."""

    data: Mapping[str, Any]
    where: str
    """File or recipe key that messages name."""
    remedy: str
    """What to do about a value that is wrong, beside correcting it."""

    def read(self, table: Mapping[str, Field]) -> Values:
        """All fields of a table, in its order.

        Raises:
            ModelError: a key is missing, contradicts itself, has the wrong type or size, or asks for another
                architecture.
        """
        values: Values = {}
        for name, field in table.items():
            values[name] = self._value(field, values)
        return values

    def wrong(self, key: str, what: str) -> ModelError:
        return ModelError(
            f"{self.where}: {key} = {shown(value_at(self.data, key))} {what}. "
            f"Fix: {self.remedy}correct this key."
        )

    def missing(self, field: Field) -> ModelError:
        state = "null" if _has(self.data, field.key) else "missing"
        return ModelError(f"{self.where}: required key {field.key!r} is {state}. Fix: {field.remedy}.")

    def _value(self, field: Field, values: Values) -> Any:
        found = field.find(self.data)
        if not found:
            if field.default is REQUIRED:
                raise self.missing(field)
            return field.default(values) if callable(field.default) else field.default
        key, raw = found[0]
        for other, value in found[1:]:
            if value != raw:
                raise self.wrong(key, f"contradicts {other} = {shown(value)}")
        value = self._typed(field, key, raw, values)
        only = field.only(values) if callable(field.only) else field.only
        if only and value not in only:
            raise self.wrong(key, f"is not supported: this implementation needs {only[0]!r}")
        return value

    def _typed(self, field: Field, key: str, raw: Any, values: Values) -> Any:
        if field.kind == "flag":
            if not isinstance(raw, bool):
                raise self.wrong(key, "is neither true nor false")
            return raw
        if field.kind == "number":
            is_number = isinstance(raw, int | float) and not isinstance(raw, bool)
            if not is_number or not 0 < raw < math.inf or raw > 1e30:
                raise self.wrong(key, "is not a positive number")
            return float(raw)
        if field.kind == "ids":
            listed = raw if isinstance(raw, list) and raw else [raw]
            return tuple(self._id(key, value, values["vocab_size"]) for value in listed)
        if field.kind == "id":
            return self._id(key, raw, values["vocab_size"])
        return self._count(field, key, raw) if field.kind == "count" else raw

    def _count(self, field: Field, key: str, raw: Any) -> int:
        value = whole(raw)
        if value is None or value < field.least:
            raise self.wrong(key, f"is not an integer of at least {field.least}")
        if value > field.most:
            raise self.wrong(key, f"is more than the {field.most:,} that this implementation goes up to")
        return value

    def _id(self, key: str, raw: Any, rows: int) -> int:
        value = whole(raw)
        if value is None or value < 0:
            raise self.wrong(key, "is not an integer of at least 0")
        if value >= rows:
            raise self.wrong(key, f"lies beyond the {rows} rows of the embedding matrix")
        return value


def whole(value: Any) -> int | None:
    """An integer, also one that some writer of JSON made a float; None for anything else."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def write(table: Mapping[str, Field], values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a table under their published names, for a model made from scratch.

    Args:
        values: by our names; fields without one get `made`, or what alone is supported.
    """
    data: dict[str, Any] = {}
    for name, field in table.items():
        only = field.only(dict(values)) if callable(field.only) else field.only
        standard = field.made if field.made is not None or not only else only[0]
        value = values.get(name, standard)
        if value is not None:
            data = _put(data, field.key, value)
    return data
