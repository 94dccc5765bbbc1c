"""The process that runs the tests, in a jail of its own, with stand-ins for what the completion defines.

A stand-in sends a call to the candidate's process and gets plain data back (`wire`). It compares by identity,
so an object that the completion made equals nothing, whatever its `__eq__` says, and `in` compares its items
here, whatever its `__contains__` says. Arguments go by value: what a completion does to them stays with it.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import wire

Report = Callable[[dict[str, Any]], None]


class CandidateGone(BaseException):
    """The candidate's process ended, or answered with what is no answer. No test can catch it by accident."""


class Remote:
    """The candidate's process, asked over two pipes."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._read_fd, self._write_fd = read_fd, write_fd
        self._serial = 0
        self.gone = False

    def names(self, names: Sequence[str]) -> dict[str, Any]:
        """Those of some global names that the completion defines, with their values or stand-ins."""
        found = self._ask({"op": "names", "names": list(names)})
        if not isinstance(found, dict):
            raise self._fail("names are not a mapping")
        return {name: self._decoded(found[name]) for name in names if name in found}

    def do(self, operation: str, *arguments: Any) -> Any:
        """Have the candidate do something to its objects.

        Raises:
            Exception: the builtin exception that the candidate raised.
            CandidateGone: there is no answer.
        """
        request = {"op": operation, "args": wire.encode(list(arguments), _number_of)}
        return self._decoded(self._ask(request))

    def _ask(self, request: dict[str, Any]) -> Any:
        if self.gone:
            raise CandidateGone("it had ended before")
        self._serial += 1
        try:
            wire.send(self._write_fd, request | {"id": self._serial})
            reply = wire.receive(self._read_fd)
        except (EOFError, OSError, ValueError, RecursionError) as error:
            raise self._fail(str(error)) from None
        if not isinstance(reply, dict) or reply.get("id") != self._serial:
            raise self._fail("not a reply")
        if "error" in reply:
            raise _exception(reply["error"], request["op"])
        return reply.get("value")

    def _decoded(self, data: Any) -> Any:
        try:
            return wire.decode(data, lambda number: Proxy(self, number))
        except (ValueError, OverflowError, RecursionError) as error:
            raise self._fail(str(error)) from None

    def _fail(self, why: str) -> CandidateGone:
        self.gone = True
        return CandidateGone(f"the candidate's process ended or broke its channel ({why})")


class Proxy:
    """Stands for an object of the candidate. Equality is identity, and `in` looks at its items."""

    __slots__ = ("_number", "_remote")

    def __init__(self, remote: Remote, number: int) -> None:
        object.__setattr__(self, "_remote", remote)
        object.__setattr__(self, "_number", number)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._remote.do("call", self, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return self._remote.do("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._remote.do("setattr", self, name, value)

    def __iter__(self) -> Iterator[Any]:
        iterator = self._remote.do("iter", self)
        return iterator if isinstance(iterator, Proxy) else iter(iterator)

    def __next__(self) -> Any:
        return self._remote.do("next", self)

    def __len__(self) -> int:
        return self._remote.do("len", self)

    def __bool__(self) -> bool:
        return True

    def __getitem__(self, key: Any) -> Any:
        return self._remote.do("getitem", self, key)

    def __str__(self) -> str:
        return self._remote.do("str", self)

    def __repr__(self) -> str:
        return self._remote.do("repr", self)


def _number_of(value: Any) -> int:
    if isinstance(value, Proxy):
        return object.__getattribute__(value, "_number")
    raise TypeError(f"a test may pass plain data to the completion, not {type(value).__name__}")


def _exception(error: Any, operation: str) -> BaseException:
    """The exception to raise for one that the candidate reported."""
    name, text = (str(part) for part in error) if isinstance(error, list) and len(error) == 2 else ("", "")
    kind = getattr(builtins, name, None)
    usable = isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, UnicodeError)
    ends_a_loop = name in ("StopIteration", "StopAsyncIteration") and operation != "next"
    return kind(text) if usable and not ends_a_loop else RuntimeError(text)


def run(job: dict[str, Any], remote: Remote, report: Report) -> None:
    """Run the tests of one row and report on each.

    Args:
        job: `tests` (sources), `setup` (source), `preamble` (readings of trusted code for the tests), `entry`
            (name of the function under test, or None), `check` (call `check(entry)` after each test's
            source), `stop` (at the first test that fails).
        remote: the candidate.
        report: takes {"broken": text} where a test is no Python, {"passed": bool, "error": text} per test.
    """
    try:
        parsed = [
            compile(source, "<test>", "exec", ast.PyCF_ONLY_AST) for source in (job["setup"], *job["tests"])
        ]
        tests = [compile(tree, "<test>", "exec", dont_inherit=True) for tree in parsed]
    except (SyntaxError, ValueError, RecursionError) as error:
        report({"broken": f"{type(error).__name__}: {error}"})
        return
    namespace: dict[str, Any] = {"__name__": "tests"}
    failed = _attempt(lambda: _prepare(job, remote, namespace, parsed, tests[0]))
    for test in tests[1:]:
        error = failed or _attempt(lambda code=test: _one(code, job, namespace)) or _lost(remote)
        report({"passed": error is None, "error": error or ""})
        if error is not None and job["stop"]:
            return


def _attempt(step: Callable[[], None]) -> str | None:
    """None where a step ends normally, else what it raised."""
    try:
        step()
    except BaseException as error:
        return f"{type(error).__name__}: {error}"[:300]
    return None


def _lost(remote: Remote) -> str | None:
    return "the candidate's process ended during the test" if remote.gone else None


def _prepare(
    job: dict[str, Any], remote: Remote, namespace: dict[str, Any], parsed: Sequence[ast.Module], setup: Any
) -> None:
    """Fill the namespace of the tests: trusted code, modules, stand-ins, setup."""
    for source in job["preamble"]:
        try:
            code = compile(source, "<preamble>", "exec", dont_inherit=True)
        except SyntaxError:
            continue
        exec(code, namespace)
        break
    modules, wanted = _free_names(parsed, set(namespace))
    for name in modules:
        namespace[name] = importlib.import_module(name)
    if job["entry"]:
        wanted = [job["entry"], *([] if job["check"] else wanted)]
    namespace.update(remote.names(wanted or _called_builtins(parsed)))
    exec(setup, namespace)


def _one(code: Any, job: dict[str, Any], namespace: dict[str, Any]) -> None:
    exec(code, namespace)
    if job["check"]:
        namespace["check"](namespace[job["entry"]])


def _free_names(trees: Sequence[ast.Module], known: set[str]) -> tuple[list[str], list[str]]:
    """Names that tests use and do not define: modules of the standard library, and the completion's."""
    nodes = [node for tree in trees for node in ast.walk(tree)]
    used = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    bound = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    bound |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    bound |= {
        node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef)
    }
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            bound |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    free = sorted(used - bound - known - set(vars(builtins)))
    dotted = {
        node.value.id
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    modules = [name for name in free if name in dotted and name in sys.stdlib_module_names]
    return modules, [name for name in free if name not in modules]


def _called_builtins(trees: Sequence[ast.Module]) -> list[str]:
    """What asserts call first: where tests use builtin names only, the function under test is among them."""
    found = []
    for node in (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Assert)):
        call = next((inner for inner in ast.walk(node.test) if isinstance(inner, ast.Call)), None)
        if call is not None and isinstance(call.func, ast.Name):
            found.append(call.func.id)
    return sorted(set(found))
