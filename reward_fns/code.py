"""Code: the completion is run in a jail against the row's unit tests, or its output against what is expected.

`code` is all or nothing, `code_fraction` gives the share of tests passed. Full marks, 1.0, mean in both that
every test passed. None: the row has no tests and belongs to another task.

A row has one of four forms:

    MBPP        `test_list`: asserts about what the completion defines. `test_setup_code` and `test_imports`,
                if any, are run before them, on the side of the tests.
    HumanEval   `test`: source that defines check(candidate); `entry_point`: the function's name, or an
                expression such as `Solution().f`. The completion is the whole function, or the body that
                continues `code_prompt` (else the prompt). One test.
    programs    `inputs`, `outputs`: standard input and expected output of each run, texts or lists of lines.
                Lines are compared without trailing spaces, and the program has to end with status 0.
    calls       the same with `fn_name`: lists of arguments, and what the function gives for them. It may be
                a method of a class `Solution`.

`input_output` may hold the last two as one object, as in APPS and TACO. With `float_tolerance`, a setting or
a column, numbers that differ by no more are equal where one is no integer.

Of a completion the code counts that a careful reader would run, with or without fences: see
`code_jail/reading.py`. More than 100,000 characters earn nothing.

Gold: column `code` beside MBPP's tests, `canonical_solution` beside HumanEval's.

The tests call the completion from another process and get its answers as plain data: see `code_jail` beside
this file, which has to lie there, and `docs/jail.md`. Where no jail can be set up the reward raises, unless
`allow_unprotected` says in as many words that completions may run without one.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import math
import os
import re
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

RANGE = (0.0, 1.0)
EXAMPLES = [
    {
        "prompt": "Write a function to add one to a number.",
        "completion": "Here it is:\n```python\ndef add_one(number):\n    return number + 1\n```",
        "columns": {"test_list": ["assert add_one(1) == 2", "assert add_one(-1) == 0"]},
    },
    {
        "prompt": 'def twice(text: str) -> str:\n    """The text, written two times."""\n',
        "completion": "    return text * 2\n",
        "columns": {
            "test": "def check(candidate):\n    assert candidate('ab') == 'abab'\n",
            "entry_point": "twice",
            "code_prompt": 'def twice(text: str) -> str:\n    """The text, written two times."""\n',
        },
    },
    {
        "prompt": "Read numbers, one a line, and print their sum.",
        "completion": "```python\nimport sys\nprint(sum(int(line) for line in sys.stdin))\n```",
        "columns": {"inputs": ["1\n2\n", "40\n2\n"], "outputs": ["3\n", "42\n"]},
    },
]

MAX_CHARS = 100_000
MAX_PARALLEL = 4
_START_S = 2.0
_FENCE = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)
_CODE_LINE = re.compile(r"^(?:from|import|def|class|async def|@)\b.*", re.MULTILINE)


def _load_jail() -> ModuleType:
    """The jail, by its path: it is on no search path, and its name is nobody else's."""
    folder = Path(__file__).with_name("code_jail")
    name = f"code_jail_{zlib.crc32(str(folder).encode()):08x}"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None or not folder.is_dir():
        raise ImportError(f"the folder {folder} is missing; it has to lie beside {Path(__file__).name}")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_jail = _load_jail()
Score = Callable[[], "float | None"]


def code(
    prompts: list[Any],
    completions: list[Any],
    test_list: list[Any] | None = None,
    test_setup_code: list[Any] | None = None,
    test_imports: list[Any] | None = None,
    test: list[Any] | None = None,
    entry_point: list[Any] | None = None,
    code_prompt: list[Any] | None = None,
    inputs: list[Any] | None = None,
    outputs: list[Any] | None = None,
    fn_name: list[Any] | None = None,
    input_output: list[Any] | None = None,
    float_tolerance: float | list[Any] | None = None,
    timeout_s: float = 8.0,
    memory_mb: int = 1024,
    packages: str | Sequence[str] = "numpy",
    parallel: int | None = None,
    allow_unprotected: bool = False,
    **columns: Any,
) -> list[float | None]:
    """1.0 where every test passed, else 0.0; None for a row without tests.

    Args:
        float_tolerance: how far two numbers may be apart, absolutely and relatively, and still be equal;
            one for all rows, or a column. None: outputs are compared as text, values exactly.
        timeout_s: deadline of a completion with all its tests, or of one run of a program, seconds. The
            slowest reference solution of MBPP computes for three.
        memory_mb: address space of each process, MiB.
        packages: installed packages that completions may import, a list or names with commas between.
        parallel: completions under way at a time; None: one per core that this process may use, at most 4.
        allow_unprotected: run completions even where no jail can be set up.
    """
    given = {name: value for name, value in locals().items() if name in _COLUMNS}
    setup = _setup(timeout_s, memory_mb, packages, allow_unprotected)
    return _score_all(prompts, completions, given, setup, parallel, partial_credit=False)


def code_fraction(
    prompts: list[Any],
    completions: list[Any],
    test_list: list[Any] | None = None,
    test_setup_code: list[Any] | None = None,
    test_imports: list[Any] | None = None,
    test: list[Any] | None = None,
    entry_point: list[Any] | None = None,
    code_prompt: list[Any] | None = None,
    inputs: list[Any] | None = None,
    outputs: list[Any] | None = None,
    fn_name: list[Any] | None = None,
    input_output: list[Any] | None = None,
    float_tolerance: float | list[Any] | None = None,
    timeout_s: float = 8.0,
    memory_mb: int = 1024,
    packages: str | Sequence[str] = "numpy",
    parallel: int | None = None,
    allow_unprotected: bool = False,
    **columns: Any,
) -> list[float | None]:
    """Share of tests passed; None for a row without tests. Arguments as for `code`."""
    given = {name: value for name, value in locals().items() if name in _COLUMNS}
    setup = _setup(timeout_s, memory_mb, packages, allow_unprotected)
    return _score_all(prompts, completions, given, setup, parallel, partial_credit=True)


_COLUMNS = (
    "test_list",
    "test_setup_code",
    "test_imports",
    "test",
    "entry_point",
    "code_prompt",
    "inputs",
    "outputs",
    "fn_name",
    "input_output",
    "float_tolerance",
)


def _gold(columns: Mapping[str, Any]) -> str | None:
    """The reference solution of a row; None where it has none."""
    if columns.get("test_list") is not None:
        return columns.get("code")
    return columns.get("canonical_solution") if columns.get("test") is not None else None


GOLD = _gold


def _prepare_jail(
    float_tolerance: float | None = None,
    timeout_s: float = 8.0,
    memory_mb: int = 1024,
    packages: str | Sequence[str] = "numpy",
    parallel: int | None = None,
    allow_unprotected: bool = False,
) -> None:
    """Check the settings, and that a jail can be set up here, before any completion is there.

    Raises:
        ValueError: a setting cannot work.
        JailError: there is no jail on this machine, and nobody said to do without.
    """
    for name, value in (("timeout_s", timeout_s), ("memory_mb", memory_mb), ("parallel", parallel)):
        if value is not None and not value > 0:
            raise ValueError(f"{name} = {value!r} must be positive")
    _tolerance(float_tolerance, "float_tolerance")
    _setup(timeout_s, memory_mb, packages, allow_unprotected)


PREPARE = _prepare_jail


def _needs_s(count: int, timeout_s: float = 8.0, parallel: int | None = None, **settings: Any) -> float:
    """Seconds that a call takes where all of `count` completions loop, starts and ends of jails included."""
    return (timeout_s + _START_S) * -(-count // _at_a_time(parallel))


NEEDS_S = _needs_s


def _at_a_time(parallel: int | None) -> int:
    return parallel or min(MAX_PARALLEL, len(os.sched_getaffinity(0)))


def _setup(timeout_s: float, memory_mb: int, packages: str | Sequence[str], allow_unprotected: bool) -> Any:
    if allow_unprotected is not True:
        _jail.require()
    names = packages.split(",") if isinstance(packages, str) else packages
    return _jail.Setup(
        limits=_jail.Limits(seconds=float(timeout_s), memory_mb=int(memory_mb)),
        packages=tuple(name.strip() for name in names if name.strip()),
        allow_unprotected=allow_unprotected is True,
    )


def _score_all(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    columns: dict[str, Any],
    setup: Any,
    parallel: int | None,
    partial_credit: bool,
) -> list[float | None]:
    shared = columns.get("float_tolerance")
    if shared is not None and not isinstance(shared, list):
        columns["float_tolerance"] = [shared] * len(completions)
    present = {name: values for name, values in columns.items() if values is not None}
    if not any(form <= present.keys() for form in _FORMS):
        raise ValueError("needs the column test_list, or test and entry_point, or inputs and outputs")
    rows = []
    for index, completion in enumerate(completions):
        row = {name: values[index] for name, values in present.items() if values[index] is not None}
        row["code_prompt"] = _text(row.get("code_prompt") or prompts[index])
        rows.append(_prepare(row, _text(completion), index, setup, stop=not partial_credit))
    with ThreadPoolExecutor(_at_a_time(parallel)) as pool:
        shares = list(pool.map(lambda score: score(), rows))
    return [share if partial_credit or share is None else float(share == 1.0) for share in shares]


_FORMS = ({"test_list"}, {"test", "entry_point"}, {"inputs", "outputs"}, {"input_output"})


def _prepare(row: dict[str, Any], text: str, index: int, setup: Any, stop: bool) -> Score:
    """What is to be done for one completion; gives the share of tests passed."""
    row |= _input_output(row, index)
    if "test_list" in row:
        tests, completion = _mbpp(row, text, index)
    elif {"test", "entry_point"} <= row.keys():
        tests, completion = _humaneval(row, text, index)
    elif {"inputs", "outputs", "fn_name"} <= row.keys():
        tests, completion = _function_calls(row, text, index)
    elif {"inputs", "outputs"} <= row.keys():
        return _programs(row, text, index, setup, stop)
    else:
        return lambda: None
    # Without the name of what is under test nothing can be defined that a test finds.
    words = set(re.findall(r"\w+", text[: MAX_CHARS + 1]))
    if len(text) > MAX_CHARS or not (completion.stubs or words & set(completion.names)):
        return lambda: 0.0

    def run() -> float:
        try:
            return float(_jail.run_tests(completion, tests, setup, stop).share)
        except _jail.BrokenTests as error:
            raise ValueError(f"row {index}: a test is no Python: {error}") from None

    return run


def _input_output(row: Mapping[str, Any], index: int) -> dict[str, Any]:
    """The columns that are packed into `input_output`."""
    packed = row.get("input_output")
    if isinstance(packed, str):
        try:
            packed = json.loads(packed)
        except ValueError as error:
            raise ValueError(f"row {index}: column input_output is no JSON: {error}") from None
    if packed is None:
        return {}
    if not isinstance(packed, Mapping) or not {"inputs", "outputs"} <= packed.keys():
        raise ValueError(f"row {index}: column input_output needs inputs and outputs")
    return {name: packed[name] for name in ("inputs", "outputs", "fn_name") if packed.get(name) is not None}


def _mbpp(row: dict[str, Any], text: str, index: int) -> tuple[Any, Any]:
    sources = _strings(row["test_list"], "test_list", index)
    setup = [
        *_strings(row.get("test_imports", []), "test_imports", index),
        str(row.get("test_setup_code", "")),
    ]
    entry = str(row["entry_point"]) if row.get("entry_point") else None
    check = any(_defines_check(source, index) for source in sources)
    if check and entry is None:
        raise ValueError(f"row {index}: check(candidate) in column test_list needs the column entry_point")
    tests = _jail.Tests(tuple(sources), "\n".join(setup), entry=entry, check=check)
    return tests, _jail.Completion(text, _names((*sources, *setup), entry, index))


def _humaneval(row: dict[str, Any], text: str, index: int) -> tuple[Any, Any]:
    entry, test = str(row["entry_point"]), str(row["test"])
    stubs = _stubs(row["code_prompt"], entry)
    preamble = tuple(stub + end for stub in stubs for end in ("", "\n    pass\n"))
    tests = _jail.Tests((test,), preamble=preamble, entry=entry, check=True)
    names = _names((), entry, index)
    return tests, _jail.Completion(text, names, tuple(stubs), entry)


_CALLS = """
import json

def _target():
    try:
        return {name}
    except NameError:
        return Solution().{name}

def _same(found, wanted, tolerance):
    if isinstance(wanted, list) and isinstance(found, (list, tuple)):
        return len(found) == len(wanted) and all(_same(*pair, tolerance) for pair in zip(found, wanted))
    if tolerance is not None and isinstance(wanted, (int, float)) and isinstance(found, (int, float)):
        return abs(found - wanted) <= tolerance * max(1, abs(wanted))
    return found == wanted

def _check(given, wanted, tolerance):
    found, wanted = _target()(*json.loads(given)), json.loads(wanted)
    # Some collections pack the one result into a list.
    packed = isinstance(wanted, list) and len(wanted) == 1
    assert _same(found, wanted, tolerance) or packed and _same(found, wanted[0], tolerance)
"""


def _function_calls(row: dict[str, Any], text: str, index: int) -> tuple[Any, Any]:
    name = str(row["fn_name"])
    if not name.isidentifier():
        raise ValueError(f"row {index}: fn_name = {name!r} is no name of a function")
    pairs = _pairs(row, index)
    tolerance = _tolerance(row.get("float_tolerance"), f"row {index}: float_tolerance")
    sources = [
        f"_check({json.dumps(_arguments(given, index))!r}, {json.dumps(_value(wanted))!r}, {tolerance!r})"
        for given, wanted in pairs
    ]
    tests = _jail.Tests(tuple(sources), _CALLS.format(name=name))
    return tests, _jail.Completion(text, (name, "Solution"))


def _arguments(given: Any, index: int) -> list[Any]:
    """The arguments of one call: a list, or a text with one of them as JSON per line."""
    if isinstance(given, str):
        try:
            return [json.loads(line) for line in given.splitlines() if line.strip()]
        except ValueError as error:
            raise ValueError(
                f"row {index}: column inputs, with fn_name, holds no arguments: {error}"
            ) from None
    if not isinstance(given, Sequence):
        raise ValueError(f"row {index}: column inputs, with fn_name, has to hold lists of arguments")
    return list(given)


def _value(wanted: Any) -> Any:
    if isinstance(wanted, str):
        try:
            return json.loads(wanted)
        except ValueError:
            return wanted
    return wanted


def _programs(row: dict[str, Any], text: str, index: int, setup: Any, stop: bool) -> Score:
    pairs = [(_jail.as_text(given), _jail.as_text(wanted)) for given, wanted in _pairs(row, index)]
    tolerance = _tolerance(row.get("float_tolerance"), f"row {index}: float_tolerance")
    # A program that prints something calls something.
    if len(text) > MAX_CHARS or "(" not in text:
        return lambda: 0.0

    def run() -> float:
        right = 0
        for stdin, wanted in pairs:
            printed, _ = _jail.run_script(_jail.Completion(text), stdin, setup)
            passed = printed is not None and _jail.same_output(printed, wanted, tolerance)
            if stop and not passed:
                return 0.0
            right += passed
        return right / len(pairs)

    return run


def _pairs(row: Mapping[str, Any], index: int) -> list[tuple[Any, Any]]:
    """Inputs with their outputs; lists, which may come as JSON, or one of each."""
    given, wanted = row["inputs"], row["outputs"]
    lists = [_list(value) for value in (given, wanted)]
    # A text that is JSON is one input, as `[1, 2]`, where the other column is no list.
    both = lists if None not in lists else [[given], [wanted]]
    if len(both[0] or ()) != len(both[1] or ()):
        raise ValueError(f"row {index}: {len(both[0] or ())} inputs and {len(both[1] or ())} outputs")
    if not both[0]:
        raise ValueError(f"row {index}: column inputs is empty")
    return list(zip(both[0], both[1] or (), strict=True))


def _list(value: Any) -> list[Any] | None:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else None


def _tolerance(value: Any, where: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{where} = {value!r} must be a number, at least 0")
    return float(value)


def _strings(value: Any, column: str, index: int) -> list[str]:
    """A column that holds a list of texts, which may come as JSON or as one text."""
    texts = [str(item) for item in (_list(value) if _list(value) is not None else [value]) or ()]
    if not texts and column != "test_imports":
        raise ValueError(f"row {index}: column {column} is empty")
    return texts


def _parsed(source: str, index: int, mode: str = "exec") -> ast.AST:
    try:
        return ast.parse(source, "<test>", mode)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise ValueError(f"row {index}: a test is no Python: {type(error).__name__}: {error}") from None


def _names(sources: Sequence[str], entry: str | None, index: int) -> tuple[str, ...]:
    """What the tests ask of the completion. Names alone: it must not learn what they expect."""
    trees = [_parsed(source, index) for source in sources]
    names = {*_jail.free_names(sources), *_jail.imported_from_solution(trees)}
    if entry:
        names |= {node.id for node in ast.walk(_parsed(entry, index, "eval")) if isinstance(node, ast.Name)}
    return tuple(sorted(names or _jail.called_builtins(trees)))


def _defines_check(source: str, index: int) -> bool:
    """It defines check(candidate) and leaves calling it to others."""
    nodes = list(ast.walk(_parsed(source, index)))
    called = {
        node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef) and node.args.args}
    return "check" in defined and "check" not in called


def _stubs(prompt: str, entry: str) -> list[str]:
    """Readings of a prompt as the code that the completion continues."""
    wanted = re.compile(rf"^(?:async def|def) +{re.escape(entry)}\b", re.MULTILINE)
    places = [prompt, *_FENCE.findall(prompt)]
    first = _CODE_LINE.search(prompt)
    places += [prompt[first.start() :]] if first else []
    return [place for place in places if wanted.search(place)]


def _text(completion: Any) -> str:
    """The text of a completion or prompt, which is a string or a list of chat messages."""
    if not isinstance(completion, str):
        completion = completion[-1].get("content") if completion else ""
    if isinstance(completion, list):
        completion = "".join(str(part.get("text") or "") for part in completion)
    return completion or ""
