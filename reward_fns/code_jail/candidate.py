"""The process that runs a completion: it answers calls of what the completion defines, or is a script.

It holds neither tests nor expected values: they live in the tester's process. Whatever the completion does to
this interpreter, all that leaves it is the answer to a call.
"""

from __future__ import annotations

import builtins
import os
import sys
from collections.abc import Callable, Sequence
from types import CodeType, ModuleType
from typing import Any

import wire

_PORTABLE = tuple(
    kind for kind in vars(builtins).values() if isinstance(kind, type) and issubclass(kind, Exception)
)


def first_that_compiles(sources: Sequence[str], name: str) -> CodeType:
    """The first of several readings of a completion that is Python.

    Raises:
        SyntaxError, ValueError, RecursionError, MemoryError: why the last one is not.
    """
    for source in sources[:-1]:
        try:
            return compile(source, name, "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
    return compile(sources[-1], name, "exec", dont_inherit=True)


def run_script(sources: Sequence[str], code_to_exit: Callable[[int], None]) -> None:
    """Run a completion as a program: standard input to standard output.

    Args:
        sources: readings of the completion.
        code_to_exit: ends the process with a status.
    """
    status = 1
    try:
        exec(first_that_compiles(sources, "<completion>"), _fresh_module("__main__"))
        status = 0
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    try:
        sys.stdout.flush()
    finally:
        code_to_exit(status & 0xFF)


def serve(sources: Sequence[str], read_fd: int, write_fd: int) -> None:
    """Define what the completion defines, then answer the tester until it is gone."""
    server = _Server()
    try:
        exec(first_that_compiles(sources, "<completion>"), server.namespace)
    except BaseException as error:
        server.broken = error
    while True:
        try:
            request = wire.receive(read_fd)
        except (EOFError, OSError):
            return
        wire.send(write_fd, server.answer(request))


def _fresh_module(name: str) -> dict[str, Any]:
    """Namespace of a new module, which classes that are defined in it can find."""
    module = sys.modules[name] = ModuleType(name)
    return vars(module)


class _Server:
    """The completion's objects, and what the tester may do to them."""

    def __init__(self) -> None:
        self.namespace = _fresh_module("solution")
        self.broken: BaseException | None = None
        self._objects: list[Any] = []
        self._operations: dict[str, Callable[..., Any]] = {
            "call": lambda function, args, kwargs: function(*args, **kwargs),
            "getattr": getattr,
            "setattr": setattr,
            "iter": iter,
            "next": next,
            "len": len,
            "getitem": lambda container, key: container[key],
            "str": str,
            "repr": repr,
        }

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The reply to one request: a value, or the name and text of an exception."""
        try:
            if self.broken is not None:
                raise self.broken
            return {"id": request["id"], "value": self._value(request)}
        except BaseException as error:
            return {"id": request["id"], "error": [_portable_name(error), _text(error)]}

    def _value(self, request: dict[str, Any]) -> Any:
        if request["op"] == "names":
            known = {name: self.namespace[name] for name in request["names"] if name in self.namespace}
            return {name: wire.encode(value, self._keep) for name, value in known.items()}
        arguments = wire.decode(request["args"], self._objects.__getitem__)
        return wire.encode(self._operations[request["op"]](*arguments), self._keep)

    def _keep(self, value: Any) -> int:
        self._objects.append(value)
        return len(self._objects) - 1


def _portable_name(error: BaseException) -> str:
    """Name of the nearest builtin exception that an error is an instance of."""
    return next((kind.__name__ for kind in type(error).__mro__ if kind in _PORTABLE), "RuntimeError")


def _text(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:300]
    except BaseException:
        return "an error that cannot be shown"


def leave(status: int) -> None:
    """End the process at once."""
    os._exit(status)
