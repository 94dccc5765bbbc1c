"""Messages between the processes of the jail: length-prefixed JSON that rebuilds known data and nothing else.

What arrives is made of exact None, bool, int, float, complex, str, bytes, bytearray, list, tuple, set,
frozenset, dict, range and slice, of builtin types, and of the plain values of the standard library that
`_LIBRARY` lists. An object of any other kind stays where it is and crosses as a number that stands for it. So
a class with an `__eq__` of its own cannot cross, and reading a message runs no code of the other side.
"""

from __future__ import annotations

import builtins
import importlib
import json
import os
import struct
from collections.abc import Callable, Mapping
from typing import Any

MAX_BYTES = 1 << 23
"""A longer message is no message."""
_LENGTH = struct.Struct("<I")
_PLAIN_INT = 1 << 53

Keep = Callable[[Any], Any]
"""JSON data for what is no plain data: it may store the object and name its number."""
Find = Callable[[str, Any], Any]
"""The object, or what stands for it, of a kind and content that `Keep` made. KeyError: no such kind."""

BASES: tuple[type, ...] = (int, float, str, tuple, list, dict, set, frozenset, bytes, bytearray, complex)
"""Builtin types whose subclasses hold plain data too."""
MUTABLE: tuple[type, ...] = (list, dict, set, bytearray)
_BARE: Mapping[type, Callable[[Any], Any]] = {
    int: int.__pos__,
    float: float.__pos__,
    complex: complex.__pos__,
    str: str.__str__,
    tuple: lambda value: tuple(tuple.__iter__(value)),
    list: lambda value: list(list.__iter__(value)),
    dict: lambda value: dict(dict.items(value)),
    set: lambda value: set(set.__iter__(value)),
    frozenset: lambda value: frozenset(frozenset.__iter__(value)),
    bytes: lambda value: bytes(memoryview(value)),
    bytearray: lambda value: bytearray(memoryview(value)),
}
_PARTS: Mapping[type, tuple[str, Callable[[Any], Any]]] = {
    tuple: ("tuple", list),
    set: ("set", list),
    frozenset: ("frozenset", list),
    range: ("range", lambda value: [value.start, value.stop, value.step]),
    slice: ("slice", lambda value: [value.start, value.stop, value.step]),
}
_BUILDERS: Mapping[str, Callable[[list[Any]], Any]] = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "range": lambda parts: range(*parts),
    "slice": lambda parts: slice(*parts),
}
# Module and name of a type, and the arguments that build a value again.
_LIBRARY: Mapping[tuple[str, str], Callable[[Any], list[Any]]] = {
    ("decimal", "Decimal"): lambda value: [str(value)],
    ("fractions", "Fraction"): lambda value: [value.numerator, value.denominator],
    ("datetime", "date"): lambda value: [value.year, value.month, value.day],
    ("datetime", "time"): lambda value: [*_clock(value), value.tzinfo],
    ("datetime", "datetime"): lambda value: [
        value.year,
        value.month,
        value.day,
        *_clock(value),
        value.tzinfo,
    ],
    ("datetime", "timedelta"): lambda value: [value.days, value.seconds, value.microseconds],
    ("datetime", "timezone"): lambda value: [value.utcoffset(None)],
    ("collections", "deque"): lambda value: [list(value), value.maxlen],
    ("collections", "Counter"): lambda value: [dict(value)],
    ("collections", "OrderedDict"): lambda value: [list(value.items())],
    ("collections", "defaultdict"): lambda value: [value.default_factory, dict(value)],
    ("uuid", "UUID"): lambda value: [value.hex],
    ("pathlib", "PosixPath"): lambda value: [str(value)],
    ("pathlib", "PurePosixPath"): lambda value: [str(value)],
}


def _clock(value: Any) -> list[int]:
    return [value.hour, value.minute, value.second, value.microsecond]


def send(fd: int, message: Any) -> None:
    """Write one message, blocking.

    Raises:
        OSError: the other end is closed.
        ValueError: it is longer than `MAX_BYTES`.
    """
    data = json.dumps(message).encode()
    if len(data) > MAX_BYTES:
        raise ValueError(f"a message of {len(data)} bytes is longer than {MAX_BYTES}")
    view = memoryview(_LENGTH.pack(len(data)) + data)
    while view:
        view = view[os.write(fd, view) :]


def receive(fd: int) -> Any:
    """Read one message, blocking.

    Raises:
        EOFError: the other end is closed.
        ValueError: what came is no message.
    """
    (length,) = _LENGTH.unpack(_exactly(fd, _LENGTH.size))
    if length > MAX_BYTES:
        raise ValueError(f"a message of {length} bytes is longer than {MAX_BYTES}")
    return json.loads(_exactly(fd, length))


def _exactly(fd: int, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        chunk = os.read(fd, min(1 << 16, count - len(data)))
        if not chunk:
            raise EOFError("the channel is closed")
        data += chunk
    return bytes(data)


def base_of(kind: type) -> type | None:
    """The builtin data type that a type derives from, or is."""
    return next((base for base in BASES if issubclass(kind, base)), None)


def bare(value: Any, base: type) -> Any:
    """The plain data in an instance of a subclass of `base`, without asking its methods."""
    return _BARE[base](value)


def encode(value: Any, keep: Keep) -> Any:
    """A value as JSON data.

    Args:
        value: anything.
        keep: called for what is not exactly plain data.

    Raises:
        RecursionError: it is nested too deeply, or contains itself.
    """
    kind = type(value)
    if value is None or kind is bool or kind is float or kind is str:
        return value
    if kind is int:
        return value if -_PLAIN_INT < value < _PLAIN_INT else {"int": hex(value)}
    if kind is list:
        return [encode(item, keep) for item in value]
    if kind is dict:
        return {"dict": [[encode(key, keep), encode(item, keep)] for key, item in value.items()]}
    if kind in _PARTS:
        name, parts = _PARTS[kind]
        return {name: [encode(item, keep) for item in parts(value)]}
    if kind is bytes or kind is bytearray:
        return {kind.__name__: value.hex()}
    if kind is complex:
        return {"complex": [value.real, value.imag]}
    if isinstance(value, type) and vars(builtins).get(value.__name__) is value:
        return {"type": value.__name__}
    if value is Ellipsis or value is NotImplemented:
        return {"constant": repr(value)}
    return _encode_library(value, kind, keep)


def _encode_library(value: Any, kind: type, keep: Keep) -> Any:
    place = (kind.__module__, kind.__qualname__)
    # A class of the completion may say that it is from the library; reading it then gives the library's.
    if place not in _LIBRARY:
        return keep(value)
    return {"library": [*place, [encode(part, keep) for part in _LIBRARY[place](value)]]}


def decode(data: Any, find: Find) -> Any:
    """The value that JSON data stands for.

    Args:
        find: called for what `Keep` made.

    Raises:
        ValueError: the data was not made by `encode`.
        RecursionError: it is nested too deeply.
    """
    if data is None or isinstance(data, bool | int | float | str):
        return data
    if isinstance(data, list):
        return [decode(item, find) for item in data]
    try:
        ((kind, content),) = data.items()
        return _decode_one(kind, content, find)
    except (AttributeError, KeyError, TypeError, LookupError, ArithmeticError) as error:
        raise ValueError(f"not a value: {error}") from None


def _decode_one(kind: str, content: Any, find: Find) -> Any:
    if kind in _BUILDERS:
        return _BUILDERS[kind]([decode(item, find) for item in content])
    if kind == "dict":
        return {decode(key, find): decode(item, find) for key, item in content}
    if kind == "complex":
        return complex(*map(float, content))
    if kind == "type":
        return _builtin_type(content)
    if kind == "library":
        return _from_library(content, find)
    simple = _SIMPLE.get(kind)
    return find(kind, content) if simple is None else simple(content)


_SIMPLE: Mapping[str, Callable[[Any], Any]] = {
    "int": lambda text: int(text, 16),
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "constant": lambda name: {"Ellipsis": Ellipsis, "NotImplemented": NotImplemented}[name],
}


def _builtin_type(name: Any) -> type:
    found = vars(builtins).get(name)
    if not isinstance(found, type):
        raise ValueError(f"{name!r:.50} is no builtin type")
    return found


def _from_library(content: Any, find: Find) -> Any:
    module, name, parts = content
    if (module, name) not in _LIBRARY:
        raise ValueError(f"{module!r:.50}.{name!r:.50} is no plain value")
    return getattr(importlib.import_module(module), name)(*(decode(part, find) for part in parts))
