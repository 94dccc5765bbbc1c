"""The process that runs the tests, in a jail of its own, with stand-ins for what the completion defines.

A stand-in sends what is done to it to the candidate's process and gets plain data back (`wire`, `standins`).
Values are compared here: what the completion makes is not asked whether it equals a value of the tests,
except where the tests' text puts that object under test (`questions`). Arguments go by value.
"""

from __future__ import annotations

import ast
import importlib
import io
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import naming
import questions
from handles import TESTS_MODULE
from remote import Remote
from standins import StandIn, StandInClass, remote_of

Report = Callable[[dict[str, Any]], None]
_FLAGS = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
_COROUTINE = 0x80
# Functions that ask an object more than a stand-in can tell; the candidate calls them.
_ASKED_THERE = {
    "dataclasses": ("asdict", "astuple", "replace", "is_dataclass"),
    "inspect": ("iscoroutinefunction", "isgeneratorfunction", "isasyncgenfunction", "isgenerator"),
    "asyncio": ("iscoroutinefunction",),
}


def run(job: dict[str, Any], remote: Remote, report: Report) -> None:
    """Run the tests of one row and report on each.

    Args:
        job: `tests` (sources), `setup` (source), `preamble` (readings of trusted code for the tests), `entry`
            (an expression for what is under test, or None), `check` (each source defines `check`, to be
            called with it), `stop` (at the first test that fails).
        remote: the candidate.
        report: takes {"broken": text} where a test is no Python, {"passed": bool, "error": text} per test.
    """
    try:
        trees = [compile(source, "<test>", "exec", _FLAGS) for source in (job["setup"], *job["tests"])]
        row = _Row(job, remote, trees)
    except (SyntaxError, ValueError, RecursionError) as error:
        report({"broken": f"{type(error).__name__}: {error}"})
        return
    failed = _attempt(row.prepare)
    for index in range(1, len(trees)):
        error = failed or _attempt(lambda index=index: row.run(index)) or _lost(remote)
        report({"passed": error is None, "error": error or ""})
        if error is not None and job["stop"]:
            return


def _attempt(step: Callable[[], None]) -> str | None:
    """None where a step ends normally, else what it raised."""
    try:
        step()
    except BaseException as error:
        return f"{type(error).__name__}: {_text(error)}"[:300]
    return None


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException:
        return "an error that cannot be shown"


def _lost(remote: Remote) -> str | None:
    return "the candidate's process ended during the test" if remote.gone else None


class _Row:
    """The tests of one row, and the namespace in which they run."""

    def __init__(self, job: Mapping[str, Any], remote: Remote, trees: Sequence[ast.Module]) -> None:
        self._job, self._remote = job, remote
        self._entry = compile(job["entry"], "<entry>", "eval", _FLAGS) if job["entry"] else None
        names = (node.id for node in _nodes(trees) if isinstance(node, ast.Name))
        self._asks_entry = self._entry is not None and (job["check"] or "candidate" in names)
        self._namespace = {"__name__": TESTS_MODULE, questions.ASK: questions.ask}
        self._trees = trees
        self._preamble = _first_that_compiles(job["preamble"])
        known = set(self._preamble.co_names) if self._preamble else set()
        free = [name for name in naming.free_names((job["setup"], *job["tests"])) if name not in known]
        self._modules = naming.modules_among(free, trees)
        wanted = [name for name in free if name not in self._modules]
        self._imported = naming.imported_from_solution(trees)
        self._wanted = wanted or naming.called_builtins(trees)
        if self._entry:
            self._wanted = [*_names(self._entry), *([] if job["check"] else wanted)]
        candidates = frozenset((*self._wanted, *self._imported, *_parameters_of_check(trees)))
        rewritten = questions.under_test(trees, candidates)
        self._codes = [
            compile(tree, "<test>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
            for tree in rewritten
        ]

    def prepare(self) -> None:
        """Fill the namespace: trusted code, modules, stand-ins, setup."""
        if self._preamble:
            exec(self._preamble, self._namespace)
        for name in self._modules:
            self._namespace[name] = importlib.import_module(name)
        _ask_there(self._trees)
        found = self._remote.names(sorted({*self._wanted, *self._imported}))
        solution = sys.modules["solution"] = types.ModuleType("solution")
        vars(solution).update(found)
        self._namespace.update({name: value for name, value in found.items() if name in self._wanted})
        self._execute(self._codes[0])

    def run(self, index: int) -> None:
        """One test: its source, then the functions that it defines for somebody to call."""
        before = set(self._namespace)
        entry = self._under_test()
        if self._job["check"]:
            # A function under test may be named so, too; the one of the test before is meant.
            self._namespace.pop("check", None)
        self._execute(self._codes[index])
        check = self._namespace.get("check")
        if self._job["check"] and isinstance(check, types.FunctionType):
            _finished(check(entry))
        elif self._job["check"] and not _asserts_itself(self._trees[index]):
            raise NameError("the test defines no check(candidate)")
        for name in _defined(self._trees[index]):
            if name not in before or name.startswith(("test", "Test")):
                _run_collected(self._namespace.get(name))

    def _under_test(self) -> Any:
        if not self._asks_entry:
            return None
        entry = eval(compile(self._entry, "<entry>", "eval", dont_inherit=True), self._namespace)
        self._namespace.setdefault("candidate", entry)
        return entry

    def _execute(self, code: types.CodeType) -> None:
        if code.co_flags & _COROUTINE:
            import asyncio

            asyncio.run(types.FunctionType(code, self._namespace)())
        else:
            exec(code, self._namespace)


def _run_collected(found: Any) -> None:
    """Call what a test runner would call: test functions without arguments, and cases of `unittest`."""
    if isinstance(found, types.FunctionType) and found.__name__.startswith("test"):
        if not found.__code__.co_argcount:
            _finished(found())
    elif isinstance(found, type) and not isinstance(found, StandInClass) and "unittest" in sys.modules:
        _run_case(found)


def _run_case(kind: type) -> None:
    import unittest

    if not issubclass(kind, unittest.TestCase):
        return
    tests = unittest.defaultTestLoader.loadTestsFromTestCase(kind)
    result = unittest.TextTestRunner(stream=io.StringIO()).run(tests)
    if not result.wasSuccessful():
        raise AssertionError((*result.failures, *result.errors)[0][1][-200:])


def _finished(result: Any) -> None:
    if isinstance(result, types.CoroutineType):
        import asyncio

        asyncio.run(result)


def _ask_there(trees: Sequence[ast.Module]) -> None:
    """Have functions that look into an object be called by the candidate where it is one of its own."""
    mentioned = {node.id for node in _nodes(trees) if isinstance(node, ast.Name)}
    mentioned |= {node.module or "" for node in _nodes(trees) if isinstance(node, ast.ImportFrom)}
    for node in _nodes(trees):
        if isinstance(node, ast.Import):
            mentioned |= {alias.name for alias in node.names}
    for name in mentioned & set(_ASKED_THERE):
        module = importlib.import_module(name)
        for function in _ASKED_THERE[name]:
            setattr(module, function, _asked_there(name, function, getattr(module, function)))


def _asked_there(module: str, name: str, local: Any) -> Any:
    def function(about: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(about, StandIn | StandInClass):
            return remote_of(about).do("apply", module, name, (about, *args), kwargs)
        return local(about, *args, **kwargs)

    return function


def _first_that_compiles(sources: Sequence[str]) -> types.CodeType | None:
    for source in sources:
        try:
            return compile(source, "<preamble>", "exec", dont_inherit=True)
        except (SyntaxError, ValueError):
            continue
    return None


def _nodes(trees: Sequence[ast.AST]) -> Iterator[ast.AST]:
    return (node for tree in trees for node in ast.walk(tree))


def _names(tree: ast.AST) -> list[str]:
    return sorted({node.id for node in ast.walk(tree) if isinstance(node, ast.Name)})


def _defined(tree: ast.Module) -> list[str]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [node.name for node in tree.body if isinstance(node, kinds)]


def _asserts_itself(tree: ast.Module) -> bool:
    """It needs no `check`: it asserts, or calls something, by itself."""
    return any(not isinstance(node, ast.Import | ast.ImportFrom | ast.Assign) for node in tree.body)


def _parameters_of_check(trees: Sequence[ast.Module]) -> list[str]:
    checks = (node for node in _nodes(trees) if isinstance(node, ast.FunctionDef) and node.name == "check")
    return ["candidate", *(argument.arg for check in checks for argument in check.args.args[:1])]
