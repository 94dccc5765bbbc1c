"""The completion's side of stand-ins: its objects by number, what may be done to them, objects of the tests.

An object that is no plain data crosses as a number and the number of its class; `standins` in the tester's
process makes a stand-in of them. Functions and objects of the tests arrive as stubs that call back.
"""

from __future__ import annotations

import builtins
import copy
import functools
import importlib
import operator
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import wire

CallBack = Callable[..., Any]
_PORTABLE = tuple(
    kind for kind in vars(builtins).values() if isinstance(kind, type) and issubclass(kind, BaseException)
)
_HEAP_TYPE = 1 << 9
_UNARY = {"len": len, "iter": iter, "next": next, "str": str, "repr": repr, "hash": hash, "abs": abs}
_UNARY |= {"int": int, "float": float, "complex": complex, "round": round, "format": format, "bool": bool}
_UNARY |= {"reversed": reversed, "bytes": bytes}
_ARITHMETIC = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "lshift", "rshift")
_ARITHMETIC += ("and", "or", "xor")
_DIRECT = ("lt", "le", "eq", "ne", "gt", "ge", "contains", "getitem", "setitem", "delitem", "index", "neg")
_DIRECT += ("pos", "invert", *(f"i{name}" for name in _ARITHMETIC))
FORWARDED = frozenset(
    f"__{name}__"
    for name in (
        *(*_UNARY, *_ARITHMETIC, *_DIRECT, *(f"r{name}" for name in _ARITHMETIC), "divmod", "rdivmod"),
        *("call", "enter", "exit", "aiter", "anext", "aenter", "aexit", "await", "floor", "ceil", "trunc"),
        *("fspath", "length_hint", "missing", "dir"),
    )
)
"""Special methods that a stand-in has where the class has them."""


def _special(name: str, value: Any, *arguments: Any) -> Any:
    """What Python does where it meets a special method, as `len(x)` for `__len__`."""
    bare = name.strip("_")
    if bare in _UNARY:
        return _UNARY[bare](value, *arguments)
    if bare[0] == "r" and bare[1:] in _ARITHMETIC:
        return getattr(operator, f"__{bare[1:]}__")(arguments[0], value)
    if bare in _ARITHMETIC and len(arguments) == 1 or bare in _DIRECT:
        return getattr(operator, name)(value, *arguments)
    return getattr(type(value), name)(value, *arguments)


def _inherited(kind: type, name: str, value: Any) -> Any:
    """An attribute as `kind` itself defines it, bound to an instance: what `super()` finds."""
    found = vars(kind)[name]
    return found.__get__(value, type(value)) if hasattr(type(found), "__get__") else found


def _awaited(value: Any) -> Any:
    async def wait() -> Any:
        return await value

    return _loop().run_until_complete(wait())


@functools.cache
def _loop() -> Any:
    """The one event loop of what the completion defines; few completions need any."""
    import asyncio

    return asyncio.new_event_loop()


def _subclass(name: str, bases: Sequence[type], namespace: Mapping[str, Any]) -> type:
    """A class that the tests derive from one of the completion."""
    members = {key: _member(value) for key, value in namespace.items()}
    return types.new_class(name, tuple(bases), {}, lambda room: room.update(members))


def _member(value: Any) -> Any:
    kind, content = value
    makers: Mapping[str, Any] = {"staticmethod": staticmethod, "classmethod": classmethod}
    if kind == "property":
        return property(*content)
    return makers[kind](content) if kind in makers else content


def _apply(module: str, name: str, args: Any, kwargs: Any) -> Any:
    return getattr(importlib.import_module(module), name)(*args, **kwargs)


OPERATIONS: Mapping[str, Callable[..., Any]] = {
    "call": lambda function, args, kwargs: function(*args, **kwargs),
    "get": getattr,
    "set": setattr,
    "delete": delattr,
    "special": _special,
    "inherited": _inherited,
    "await": _awaited,
    "subclass": _subclass,
    "apply": _apply,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "describe": lambda objects, kind: objects.describe(kind),
    "plain": lambda objects, value: objects.plain(value),
}
ABOUT_OBJECTS = ("describe", "plain")


class Objects:
    """Numbers of the completion's objects, stubs for those of the tests."""

    def __init__(self, call_back: CallBack) -> None:
        """No object is known yet.

        Args:
            call_back: does something to an object of the tests: number, operation, arguments.
        """
        self._call_back = call_back
        self._kept: list[Any] = []
        self._numbers: dict[int, int] = {}
        self._stubs: dict[int, Any] = {}
        self._theirs: dict[int, int] = {}

    def encode(self, value: Any) -> Any:
        """A value as JSON data."""
        return wire.encode(value, self._keep)

    def encode_part(self, value: Any) -> Any:
        """A value that belongs to an object: a container crosses together with its number."""
        live = type(value) in wire.MUTABLE
        return self._as_object(value, self.encode(value)) if live else self.encode(value)

    def decode(self, data: Any) -> Any:
        """The value that JSON data of the tester stands for."""
        return wire.decode(data, self._find)

    def plain(self, value: Any) -> Any:
        """JSON data of what an instance of a subclass of a builtin holds."""
        base = wire.base_of(type(value))
        assert base is not None
        return self.encode(wire.bare(value, base))

    def describe(self, kind: type) -> Any:
        """What a stand-in for a class has to know."""
        base = wire.base_of(kind)
        special = {name: _definer(kind, name) for name in FORWARDED - {"__hash__"}}
        hashing = _definer(kind, "__hash__")
        builtin = kind in wire.BASES
        return {
            "name": str(kind.__name__),
            "module": str(kind.__module__),
            "bases": [self.encode(parent) for parent in ((base,) if builtin else kind.__bases__)],
            "special": [
                name for name, owner in special.items() if owner not in (None, object, base, BaseException)
            ],
            "hash": "none" if kind.__hash__ is None else "own" if hashing not in (object, base) else "same",
            "attributes": [name for name in vars(kind) if not name.startswith("__") and not builtin],
            "creates": "__init__" in vars(kind) and not builtin,
        }

    def error(self, error: BaseException) -> dict[str, Any]:
        """An exception as JSON data: its nearest builtin, its text, and itself where it is no builtin."""
        if id(error) in self._theirs:
            return {"theirs": self._theirs[id(error)]}
        kind = next((kind for kind in type(error).__mro__ if kind in _PORTABLE), RuntimeError)
        message = {"name": kind.__name__, "text": _text(error), "args": None, "value": None, "cause": None}
        try:
            own = type(error) is not kind
            message["value"] = self.encode(error) if own else None
            message["args"] = None if own else self.encode(list(error.args))
            message["cause"] = self.error(error.__cause__) if error.__cause__ is not None else None
        except Exception as failure:
            message["text"] = f"{message['text']} ({type(failure).__name__} while it was told)"
        return message

    def their_error(self, error: Mapping[str, Any]) -> BaseException:
        """The exception to raise for one that a function of the tests raised."""
        if "ref" in error:
            return self._kept[error["ref"]]
        parent = next(kind for kind in _PORTABLE if kind.__name__ == error["name"])
        kind = parent if error["kind"] == parent.__name__ else type(error["kind"], (parent,), {})
        raised = kind(error["text"])
        self._kept.append(raised)
        self._theirs[id(raised)] = error["theirs"]
        return raised

    def _keep(self, value: Any) -> Any:
        """JSON data for what is not exactly plain data."""
        if id(value) in self._theirs:
            return {"theirs": self._theirs[id(value)]}
        kind = type(value)
        if isinstance(value, type):
            return {"class": self._number(value)}
        if hasattr(kind, "__await__") and not kind.__flags__ & _HEAP_TYPE:
            return {"awaitable": self._number(value)}
        base = wire.base_of(kind)
        if base is not None:
            plain = self.encode(wire.bare(value, base))
            return self._as_object(value, plain) if kind.__flags__ & _HEAP_TYPE else plain
        if hasattr(kind, "tolist"):
            return self.encode(value.tolist())
        if isinstance(value, BaseException):
            return self._as_object(value, self.encode(list(value.args)))
        return self._as_object(value, None)

    def _as_object(self, value: Any, content: Any) -> Any:
        return {"object": [self._number(value), self._number(type(value)), content]}

    def _number(self, value: Any) -> int:
        """The same for the same object: what was given a number is never let go."""
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self._kept)
            self._kept.append(value)
        return self._numbers[id(value)]

    def _find(self, kind: str, content: Any) -> Any:
        if kind == "ref":
            return self._kept[content]
        if kind == "pickle":
            import pickle

            return pickle.loads(bytes.fromhex(content))
        if kind == "exception":
            return getattr(builtins, content[0])(*content[1])
        if kind != "theirs":
            raise KeyError(kind)
        number = content["number"]
        if number not in self._stubs:
            stub = self._stubs[number] = _stub(number, content, self._call_back)
            self._theirs[id(stub)] = number
        return self._stubs[number]


def _definer(kind: type, name: str) -> type | None:
    return next((parent for parent in kind.__mro__ if name in vars(parent)), None)


def _text(error: BaseException) -> str:
    try:
        return str(error)[:300]
    except BaseException:
        return "an error that cannot be shown"


def _stub(number: int, content: Mapping[str, Any], call_back: CallBack) -> Any:
    """What the completion gets for a function or an object of the tests."""
    if content["kind"] == "function":
        return _function(number, content, call_back)
    made = type(content["name"], (_Theirs,), {name: _forward(name) for name in content["special"]})
    stub = object.__new__(made)
    object.__setattr__(stub, "_do", lambda *arguments: call_back(number, *arguments))
    return stub


def _function(number: int, content: Mapping[str, Any], call_back: CallBack) -> Any:
    def function(*args: Any, **kwargs: Any) -> Any:
        return call_back(number, "call", args, kwargs)

    async def coroutine(*args: Any, **kwargs: Any) -> Any:
        return call_back(number, "wait", args, kwargs)

    made = coroutine if content["asynchronous"] else function
    made.__name__ = made.__qualname__ = content["name"]
    made.__doc__ = content["doc"]
    if content["parameters"] is not None:
        import inspect

        kinds = [inspect._ParameterKind(index) for index in range(5)]
        parameters = [
            inspect.Parameter(name, kinds[kind], default=None if optional else inspect.Parameter.empty)
            for name, kind, optional in content["parameters"]
        ]
        vars(made)["__signature__"] = inspect.Signature(parameters)
    return made


def _forward(name: str) -> Any:
    def special(self: Any, *args: Any, **kwargs: Any) -> Any:
        return object.__getattribute__(self, "_do")("special", name, args, kwargs)

    return special


class _Theirs:
    """An object of the tests: what is public of it can be read, set and called, by asking the tester."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return object.__getattribute__(self, "_do")("get", name)

    def __setattr__(self, name: str, value: Any) -> None:
        object.__getattribute__(self, "_do")("set", name, value)
