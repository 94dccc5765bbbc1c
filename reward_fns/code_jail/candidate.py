"""The process that runs a completion: it answers calls of what the completion defines, or is a script.

It holds neither tests nor expected values: they live in the tester's process. Whatever the completion does to
this interpreter, all that leaves it is the answer to a call.
"""

from __future__ import annotations

import atexit
import builtins
import os
import sys
from collections.abc import Callable, Mapping
from types import CodeType, ModuleType
from typing import Any, NoReturn

import objects
import reading
import wire

Job = Mapping[str, Any]


def code_of(job: Job) -> CodeType:
    """The completion as code: the first of its readings that is Python.

    Args:
        job: `sources` (readings), or `completion` (what `reading.sources` reads).

    Raises:
        SyntaxError, ValueError, RecursionError, MemoryError: why the last one is not.
    """
    sources = job["sources"] or reading.sources(job["completion"])
    for source in sources[:-1]:
        try:
            return compile(source, "<completion>", "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
    if not sources:
        raise SyntaxError("no code was found")
    return compile(sources[-1], "<completion>", "exec", dont_inherit=True)


def as_usual() -> None:
    """What a program finds in an interpreter that was started as usual: `exit`, `quit`, its arguments."""
    vars(builtins).update({"exit": _exit, "quit": _exit})
    sys.argv[:] = ["solution.py"]


def _exit(code: Any = None) -> NoReturn:
    raise SystemExit(code)


def run_script(job: Job) -> None:
    """Run a completion as a program: standard input to standard output. Ends the process with its status."""
    status = 1
    try:
        as_usual()
        exec(code_of(job), _fresh_module("__main__"))
        status = 0
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    try:
        # As at the end of any program: its threads, its exit handlers, what it has not written yet.
        if "threading" in sys.modules:
            sys.modules["threading"]._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
    except BrokenPipeError:
        status = status or 1
    finally:
        leave(status & 0xFF)


def serve(job: Job, read_fd: int, write_fd: int) -> None:
    """Define what the completion defines, then answer the tester until it is gone."""
    server = _Server(read_fd, write_fd)
    try:
        as_usual()
        exec(code_of(job), server.namespace)
    except BaseException as error:
        server.broken = error
    while True:
        try:
            request = wire.receive(read_fd)
        except (EOFError, OSError):
            return
        server.reply(request)


def _fresh_module(name: str) -> dict[str, Any]:
    """Namespace of a new module, which classes that are defined in it can find."""
    module = sys.modules[name] = ModuleType(name)
    return vars(module)


class _Server:
    """Answers what the tester asks about the completion's objects, and asks it about its own."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self.namespace = _fresh_module("solution")
        self.broken: BaseException | None = None
        self._read_fd, self._write_fd = read_fd, write_fd
        self._objects = objects.Objects(self._call_back)

    def reply(self, request: dict[str, Any]) -> None:
        """Answer one request: a value, or an exception."""
        try:
            if self.broken is not None:
                raise self.broken
            answer = {"id": request["id"], **self._answer(request)}
        except BaseException as error:
            answer = {"id": request["id"], "error": self._objects.error(error)}
        wire.send(self._write_fd, answer)

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["op"] == "names":
            known = {name: self.namespace[name] for name in request["names"] if name in self.namespace}
            return {"value": {name: self._objects.encode(value) for name, value in known.items()}}
        operation: Callable[..., Any] = objects.OPERATIONS[request["op"]]
        arguments = self._objects.decode(request["args"])
        if request["op"] in objects.ABOUT_OBJECTS:
            return {"value": operation(self._objects, *arguments)}
        found = operation(*arguments)
        if request["op"] == "call" and found is None:
            # It was called for what it does to what it was given.
            given = [type(value) in wire.MUTABLE and self._objects.encode(value) for value in arguments[1]]
            return {"value": None, "given": given}
        # What an attribute or an item gives belongs to its object: a list among it stays the object's list.
        part = request["op"] == "get" or (request["op"] == "special" and arguments[0] == "__getitem__")
        return {"value": self._objects.encode_part(found) if part else self._objects.encode(found)}

    def _call_back(self, number: int, operation: str, *arguments: Any) -> Any:
        """Have the tester do something to an object of its own; it may ask something meanwhile."""
        message = {"callback": number, "op": operation, "args": self._objects.encode(list(arguments))}
        wire.send(self._write_fd, message)
        while True:
            try:
                answer = wire.receive(self._read_fd)
            except (EOFError, OSError):
                leave(1)
            if "op" in answer:
                self.reply(answer)
            elif "error" in answer:
                raise self._objects.their_error(answer["error"])
            else:
                return self._objects.decode(answer["value"])


def leave(status: int) -> NoReturn:
    """End the process at once."""
    os._exit(status)
