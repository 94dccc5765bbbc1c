"""The channel on which the tester asks the candidate, and what answers become: data, or stand-ins."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable, Sequence
from typing import Any

import handles
import standins
import wire
from standins import Reference


class CandidateGone(BaseException):
    """The candidate's process ended, or answered with what is no answer. No test can catch it by accident."""


class Remote:
    """The candidate's process, asked over two pipes."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._read_fd, self._write_fd = read_fd, write_fd
        self._serial = 0
        self._classes: dict[int, type] = {}
        self._instances: dict[int, Any] = {}
        self._handles = handles.Handles(self)
        self.gone = False

    def names(self, names: Sequence[str]) -> dict[str, Any]:
        """Those of some global names that the completion defines, with their values or stand-ins."""
        found = self.ask({"op": "names", "names": list(names)}).get("value")
        if not isinstance(found, dict):
            raise self._fail("names are not a mapping")
        return {name: self.decoded(found[name]) for name in names if name in found}

    def do(self, operation: str, *arguments: Any, ends: bool = False) -> Any:
        """Have the candidate do something to its objects.

        Args:
            ends: the answer may be StopIteration.

        Raises:
            Exception: the exception that the candidate raised.
            CandidateGone: there is no answer.
        """
        reply = self.ask({"op": operation, "args": self.encoded(list(arguments))}, ends)
        if operation == "describe":
            return self._described(reply.get("value"))
        value = self.decoded(reply.get("value"))
        if operation == "call" and value is None:
            self._take_over(arguments[1], reply.get("given"))
        return value

    def encoded(self, value: Any) -> Any:
        """A value of the tests as JSON data."""
        return wire.encode(value, self._keep)

    def decoded(self, data: Any) -> Any:
        """The value that an answer stands for.

        Raises:
            CandidateGone: it stands for none.
        """
        try:
            return wire.decode(data, self._find)
        except (ValueError, OverflowError, RecursionError) as error:
            raise self._fail(str(error)) from None

    def adopt(self, kind: type, number: int) -> None:
        """Make a class that the tests derived stand for the one that the candidate made of it."""
        self._classes[number] = kind

    def _take_over(self, args: Sequence[Any], given: Any) -> None:
        """What a function that returned nothing made of the lists, dicts and sets that it was given."""
        if not isinstance(given, list) or len(given) != len(args):
            raise self._fail("not the arguments of a call")
        for value, data in zip(args, given, strict=True):
            if type(value) in wire.MUTABLE:
                changed = self.decoded(data)
                if type(changed) is not type(value):
                    raise self._fail("an argument became something else")
                standins.overwrite(value, changed)

    def ask(self, request: dict[str, Any], ends: bool = False) -> dict[str, Any]:
        if self.gone:
            raise CandidateGone("it had ended before")
        self._serial += 1
        serial = self._serial
        reply = self._exchange(request | {"id": serial})
        while isinstance(reply, dict) and "callback" in reply:
            reply = self._exchange(self._handles.serve(reply))
        if not isinstance(reply, dict) or reply.get("id") != serial:
            raise self._fail("not a reply")
        if "error" in reply:
            raise self._exception(reply["error"], ends)
        return reply

    def _exchange(self, message: dict[str, Any]) -> Any:
        try:
            wire.send(self._write_fd, message)
            return wire.receive(self._read_fd)
        except (EOFError, OSError, ValueError, RecursionError) as error:
            raise self._fail(str(error)) from None

    def _fail(self, why: str) -> CandidateGone:
        self.gone = True
        return CandidateGone(f"the candidate's process ended or broke its channel ({why})")

    def _keep(self, value: Any) -> Any:
        """What cannot cross to the candidate as data: stand-ins by number, the rest as `handles` say."""
        number = standins.number_of(value)
        return {"ref": number} if number is not None else self._handles.keep(value)

    def _find(self, kind: str, content: Any) -> Any:
        if kind == "theirs":
            return self._handles[content]
        if kind == "awaitable":
            return _awaiting(self, int(content))
        if kind == "class":
            return self._class(int(content))
        if kind == "object":
            number, of, held = content
            return self._instance(int(number), self._class(int(of)), held)
        raise KeyError(kind)

    def _described(self, answer: Any) -> dict[str, Any]:
        lists = ("bases", "special", "attributes")
        if not isinstance(answer, dict) or not all(isinstance(answer.get(name), list) for name in lists):
            raise self._fail("not a description of a class")
        for name in ("special", "attributes"):
            answer[name] = [item for item in answer[name] if isinstance(item, str)]
        return answer

    def _class(self, number: int) -> type:
        if number not in self._classes:
            # A class that is said to derive from itself ends here, and not in a recursion.
            self._classes[number] = standins.StandIn
            self._classes[number] = self._make_class(number)
        return self._classes[number]

    def _make_class(self, number: int) -> type:
        about = self.do("describe", Reference(number))
        known = _library_exception(str(about.get("module")), str(about.get("name")))
        if known is not None:
            return known
        return standins.class_like(self, number, about, [self.decoded(base) for base in about["bases"]])

    def _instance(self, number: int, kind: type, held: Any) -> Any:
        base = wire.base_of(kind)
        value = None if held is None else self.decoded(held)
        if number in self._instances:
            found = self._instances[number]
            if base in wire.MUTABLE and isinstance(value, base):
                standins.fill(found, base, value)
            return found
        if base is not None and not isinstance(value, base):
            raise ValueError("an object does not hold what its class says")
        made = _new(kind, base, value)
        if isinstance(made, standins.StandIn):
            standins.settle(made, self, number)
        self._instances[number] = made
        return made

    def _exception(self, error: Any, ends: bool) -> BaseException:
        """The exception to raise for one that the candidate reported."""
        if not isinstance(error, dict):
            return RuntimeError("an error that cannot be read")
        text = str(error.get("text"))
        value = {"theirs": error["theirs"]} if "theirs" in error else error.get("value")
        raised = self.decoded(value)
        if not isinstance(raised, BaseException):
            raised = _builtin(str(error.get("name")), self.decoded(error.get("args")), text)
        if isinstance(raised, StopIteration | StopAsyncIteration) and not ends:
            return RuntimeError(text)
        if isinstance(error.get("cause"), dict):
            raised.__cause__ = self._exception(error["cause"], ends)
        return raised


def _awaiting(remote: Remote, number: int) -> Any:
    """A coroutine of the tests' process that has the candidate wait for one of its own."""

    async def wait() -> Any:
        return remote.do("await", Reference(number), ends=True)

    return wait()


def _new(kind: type, base: type | None, value: Any) -> Any:
    if issubclass(kind, BaseException):
        arguments = value if isinstance(value, list) else []
        return kind.__new__(kind, *arguments)
    if base is None:
        return object.__new__(kind)
    made = base.__new__(kind, value)  # type: ignore[call-overload]
    if base in wire.MUTABLE:
        standins.fill(made, base, value)
    return made


def _library_exception(module: str, name: str) -> type | None:
    """An exception class of the standard library that the tests have imported, so that they can catch it."""
    if module.partition(".")[0] not in sys.stdlib_module_names or module not in sys.modules:
        return None
    found = getattr(sys.modules[module], name, None)
    return found if isinstance(found, type) and standins.raisable(found) else None


def _builtin(name: str, arguments: Any, text: str) -> BaseException:
    """A builtin exception with the arguments that it had, else with its text."""
    kind: Callable[..., Any] | None = vars(builtins).get(name)
    if not isinstance(kind, type) or not issubclass(kind, Exception | SystemExit):
        return RuntimeError(text)
    for given in (arguments if isinstance(arguments, list) else [text], [text]):
        try:
            return kind(*given)
        except (TypeError, ValueError):
            continue
    return ValueError(text) if issubclass(kind, ValueError) else RuntimeError(text)
