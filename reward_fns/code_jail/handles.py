"""Objects of the tests that the completion is given: functions to call, and what is public of their objects.

Data crosses as data (`wire`), values of the standard library are pickled: towards the completion, never back.
A function, a method, an iterator or an instance of a class that the tests define stays here, and the
completion can have it called or its public attributes read. It reaches nothing else through them: no name
that begins with an underscore, no frame, no module.
"""

from __future__ import annotations

import builtins
import functools
import types
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import standins
from objects import FORWARDED

if TYPE_CHECKING:
    from remote import Remote

TESTS_MODULE = "tests"
"""`__module__` of what the tests define."""


class Handles:
    """What the candidate may ask of the tests' objects, by number."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self._kept: list[Any] = []
        self._numbers: dict[int, int] = {}

    def __getitem__(self, number: Any) -> Any:
        if not isinstance(number, int) or not 0 <= number < len(self._kept):
            raise KeyError(number)
        return self._kept[number]

    def keep(self, value: Any) -> Any:
        """JSON data that stands for a value of the tests.

        Raises:
            TypeError: it is of a kind that does not cross.
        """
        if isinstance(value, BaseException) and vars(builtins).get(type(value).__name__) is type(value):
            return {"exception": [type(value).__name__, [str(argument) for argument in value.args]]}
        if _is_function(value):
            return {"theirs": {"number": self._number(value), "kind": "function", **_about(value)}}
        if _is_own(value) or hasattr(type(value), "__next__"):
            special = [name for name in FORWARDED if _defines(type(value), name)]
            about = {"kind": "object", "name": type(value).__name__, "special": special}
            return {"theirs": {"number": self._number(value), **about}}
        return {"pickle": _pickled(value)}

    def serve(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Do what the candidate asks of an object of the tests; the answer to send.

        Raises:
            CandidateGone: what it asks is no request.
        """
        try:
            target = self[request["callback"]]
            operation, arguments = request["op"], self._remote.decoded(request["args"])
            found = _OPERATIONS[operation](target, *arguments)
            return {"value": self._remote.encoded(found)}
        except Exception as error:
            return {"error": self._error(error)}

    def _error(self, error: BaseException) -> dict[str, Any]:
        number = standins.number_of(error)
        if number is not None:
            return {"ref": number}
        kinds = (kind for kind in type(error).__mro__ if vars(builtins).get(kind.__name__) is kind)
        about = {"name": next(kinds).__name__, "kind": type(error).__name__, "text": str(error)}
        return {"theirs": self._number(error), **about}

    def _number(self, value: Any) -> int:
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self._kept)
            self._kept.append(value)
        return self._numbers[id(value)]


def _is_function(value: Any) -> bool:
    """A function or method of the tests' own. Those of modules cross by name and run with the completion."""
    if isinstance(value, types.BuiltinFunctionType):
        return not isinstance(value.__self__, types.ModuleType)
    if isinstance(value, functools.partial | types.MethodType):
        return True
    return isinstance(value, types.FunctionType) and value.__module__ == TESTS_MODULE


def _is_own(value: Any) -> bool:
    kind = value if isinstance(value, type) else type(value)
    return kind.__module__ == TESTS_MODULE


def _defines(kind: type, name: str) -> bool:
    owner = next((parent for parent in kind.__mro__ if name in vars(parent)), object)
    return owner is not object and getattr(kind, name, None) is not None


def _about(function: Any) -> dict[str, Any]:
    import inspect

    try:
        found = inspect.signature(function).parameters.values()
        parameters = [(one.name, int(one.kind), one.default is not one.empty) for one in found]
    except (TypeError, ValueError):
        parameters = None
    return {
        "name": str(getattr(function, "__name__", "function")),
        "doc": getattr(function, "__doc__", None),
        "asynchronous": inspect.iscoroutinefunction(function),
        "parameters": parameters,
    }


def _pickled(value: Any) -> str:
    import pickle

    try:
        return pickle.dumps(value).hex()
    except Exception as error:
        raise TypeError(f"a test cannot pass {type(value).__name__} to the completion ({error})") from None


def _get(target: Any, name: str) -> Any:
    if not _is_own(target) or not isinstance(name, str) or name.startswith("_"):
        raise AttributeError(name)
    found = getattr(target, name)
    if isinstance(found, types.ModuleType):
        raise AttributeError(name)
    return found


def _set(target: Any, name: str, value: Any) -> None:
    if isinstance(target, type) or not _is_own(target) or not isinstance(name, str) or name.startswith("_"):
        raise AttributeError(name)
    setattr(target, name, value)


def _special(target: Any, name: str, args: Any, kwargs: Any) -> Any:
    if name not in FORWARDED or not _defines(type(target), name):
        raise AttributeError(name)
    return getattr(type(target), name)(target, *args, **kwargs)


def _wait(target: Any, args: Any, kwargs: Any) -> Any:
    """The result of a coroutine function, in a thread of its own: the tests' event loop may be running."""
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as threads:
        return threads.submit(lambda: asyncio.run(target(*args, **kwargs))).result()


_OPERATIONS: Mapping[str, Callable[..., Any]] = {
    "call": lambda target, args, kwargs: target(*args, **kwargs),
    "wait": _wait,
    "get": _get,
    "set": _set,
    "special": _special,
}
