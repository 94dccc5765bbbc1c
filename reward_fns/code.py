"""Code: the completion is run in a jail against the row's unit tests, or its output against what is expected.

`code` is all or nothing, `code_fraction` gives the share of tests passed. Full marks, 1.0, mean in both that
every test passed. None: the row has no tests and belongs to another task.

A row has one of three forms:

    MBPP        `test_list`: asserts about what the completion defines. `test_setup_code` and `test_imports`,
                if any, are run before them, on the side of the tests.
    HumanEval   `test`: source that defines check(candidate); `entry_point`: the function's name. The
                completion is the whole function, or the body that continues `code_prompt` (else the
                prompt). One test.
    programs    `inputs`, `outputs`: standard input and expected output of each run. Lines are compared
                without trailing spaces, and the program has to end with status 0.

Of a completion with fenced blocks the last one counts that defines a name of the tests, else the last one.
More than 100,000 characters earn nothing.

Gold: column `code` beside MBPP's tests, `canonical_solution` beside HumanEval's.

The tests call the completion from another process and get its answers as plain data: see `code_jail` beside
this file, which has to lie there, and `docs/jail.md`. Where no jail can be set up the reward raises, unless
`allow_unprotected` says in as many words that completions may run without one.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
import textwrap
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
_DEFINED = re.compile(r"^(?:async def|def|class) +(\w+)|^(\w+) *=", re.MULTILINE)
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
    timeout_s: float = 8.0,
    memory_mb: int = 1024,
    packages: str | Sequence[str] = "numpy",
    parallel: int | None = None,
    allow_unprotected: bool = False,
    **columns: Any,
) -> list[float | None]:
    """1.0 where every test passed, else 0.0; None for a row without tests.

    Args:
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
)


def _gold(columns: Mapping[str, Any]) -> str | None:
    """The reference solution of a row; None where it has none."""
    if columns.get("test_list") is not None:
        return columns.get("code")
    return columns.get("canonical_solution") if columns.get("test") is not None else None


GOLD = _gold


def _prepare_jail(
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
    present = {name: values for name, values in columns.items() if values is not None}
    if not (
        "test_list" in present
        or {"test", "entry_point"} <= set(present)
        or {"inputs", "outputs"} <= set(present)
    ):
        raise ValueError("needs the column test_list, or test and entry_point, or inputs and outputs")
    rows = []
    for index, completion in enumerate(completions):
        row = {name: values[index] for name, values in present.items() if values[index] is not None}
        row["code_prompt"] = _text(row.get("code_prompt") or prompts[index])
        rows.append(_prepare(row, _text(completion), index, setup, stop=not partial_credit))
    with ThreadPoolExecutor(_at_a_time(parallel)) as pool:
        shares = list(pool.map(lambda score: score(), rows))
    return [share if partial_credit or share is None else float(share == 1.0) for share in shares]


def _prepare(row: dict[str, Any], text: str, index: int, setup: Any, stop: bool) -> Score:
    """What is to be done for one completion; gives the share of tests passed."""
    if "test_list" in row:
        tests, sources = _mbpp(row, text, index)
    elif {"test", "entry_point"} <= row.keys():
        tests, sources = _humaneval(row, text)
    elif {"inputs", "outputs"} <= row.keys():
        return _programs(row, text, index, setup, stop)
    else:
        return lambda: None
    if len(text) > MAX_CHARS or not sources:
        return lambda: 0.0

    def run() -> float:
        try:
            return float(_jail.run_tests(sources, tests, setup, stop).share)
        except _jail.BrokenTests as error:
            raise ValueError(f"row {index}: a test is no Python: {error}") from None

    return run


def _mbpp(row: dict[str, Any], text: str, index: int) -> tuple[Any, list[str]]:
    sources = _strings(row["test_list"], "test_list", index)
    setup = [
        *_strings(row.get("test_imports", []), "test_imports", index),
        str(row.get("test_setup_code", "")),
    ]
    tests = _jail.Tests(tuple(sources), "\n".join(setup), entry=row.get("entry_point"))
    names = set(re.findall(r"\w+", "\n".join((*sources, *setup))))
    found = _block(text, names)
    # Without the name of the function under test nothing can be defined that a test finds.
    return tests, [found] if names & set(re.findall(r"\w+", found)) else []


def _humaneval(row: dict[str, Any], text: str) -> tuple[Any, list[str]]:
    entry = str(row["entry_point"])
    stubs = _stubs(row["code_prompt"], entry)
    preamble = tuple(stub + end for stub in stubs for end in ("", "\n    pass\n"))
    tests = _jail.Tests((str(row["test"]),), preamble=preamble, entry=entry, check=True)
    found = _block(text, {entry})
    if re.search(rf"^(?:async def|def) +{re.escape(entry)}\b|^{re.escape(entry)} *=", found, re.MULTILINE):
        return tests, [*(f"{stub}\n{found}" for stub in stubs), found]
    if not re.search(r"\b(?:return|yield|raise)\b", found):
        return tests, []
    bodies = (found, f"    {found}", textwrap.indent(found, "    "))
    return tests, [f"{stub.rstrip()}\n{body}" for stub in stubs for body in bodies]


def _programs(row: dict[str, Any], text: str, index: int, setup: Any, stop: bool) -> Score:
    given = _strings(row["inputs"], "inputs", index)
    expected = _strings(row["outputs"], "outputs", index)
    if len(given) != len(expected):
        raise ValueError(f"row {index}: {len(given)} inputs and {len(expected)} outputs")
    source = textwrap.dedent(_block(text, set()))
    # A program that prints something calls something.
    if len(text) > MAX_CHARS or "(" not in source:
        return lambda: 0.0

    def run() -> float:
        right = 0
        for stdin, stdout in zip(given, expected, strict=True):
            printed, _ = _jail.run_script([source], stdin, setup)
            passed = printed is not None and _lines(printed) == _lines(stdout)
            if stop and not passed:
                return 0.0
            right += passed
        return right / len(given)

    return run


def _strings(value: Any, column: str, index: int) -> list[str]:
    """A column that holds a list of texts, which may come as JSON or as one text."""
    if isinstance(value, str):
        try:
            loaded = json.loads(value)
        except ValueError:
            loaded = value
        value = loaded if isinstance(loaded, list) else [value]
    texts = [str(item) for item in value]
    if not texts and column != "test_imports":
        raise ValueError(f"row {index}: column {column} is empty")
    return texts


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _block(text: str, names: set[str]) -> str:
    """The fenced block that defines one of the names, else the last one, else the text itself."""
    blocks = _FENCE.findall(text[:MAX_CHARS])
    if not blocks:
        return text
    telling = [block for block in map(textwrap.dedent, blocks) if names & _defined(block)]
    return (telling or blocks)[-1]


def _defined(block: str) -> set[str]:
    return {name for pair in _DEFINED.findall(block) for name in pair}


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
