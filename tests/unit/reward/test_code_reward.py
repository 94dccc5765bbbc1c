"""The `code` reward: forms of rows, what counts as the code of a completion, what is refused."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rl4dlm.errors import PluginError
from rl4dlm.recipe import shipped_folder
from rl4dlm.recipe.sections import RewardConfig
from rl4dlm.reward import sandbox
from rl4dlm.reward.batch import Scorable
from rl4dlm.reward.pool import RewardPool
from rl4dlm.types import Prompt

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or sandbox.layers()["jail"] != "on", reason="no jail can be set up here"
)
DATA = Path(__file__).parents[4] / "shared" / "data"


def load(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("code_reward", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reward = load(shipped_folder("reward_fns") / "code.py")


def score(completion: Any, *, prompt: Any = "p", fraction: bool = False, **row: Any) -> float | None:
    """Score of one completion; `row` holds the row's columns."""
    function = reward.code_fraction if fraction else reward.code
    (value,) = function([prompt], [completion], **{name: [value] for name, value in row.items()})
    return value


ADD = ["assert add(1, 2) == 3", "assert add(0, 0) == 0"]
RIGHT = "def add(a, b):\n    return a + b\n"


@pytest.mark.parametrize(
    "completion",
    [
        RIGHT,
        f"Sure:\n```python\n{RIGHT}```\nIt adds.",
        f"```\n{RIGHT}",
        f"```\ndef add(a, b): return 0\n```\nBetter:\n```python\n{RIGHT}```\nTry:\n```python\nadd(1, 2)\n```",
        "1. First\n   ```python\n   def add(a, b):\n       return a + b\n   ```",
        [{"role": "assistant", "content": f"```python\n{RIGHT}```"}],
        "import operator\nadd = operator.add",
        f"{RIGHT}\nif __name__ == '__main__':\n    raise SystemExit(1)",
    ],
)
def test_the_code_of_a_completion_is_found(completion):
    assert score(completion, test_list=ADD) == 1.0


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "add",
        "I cannot.",
        "def add(a, b): return 0",
        "def plus(a, b): return a + b",
        RIGHT + "#" * 100_000,
    ],
)
def test_other_completions_earn_nothing(completion):
    assert score(completion, test_list=ADD) == 0.0


def test_a_fraction_is_the_share_of_tests_passed():
    assert score("def add(a, b): return 0", fraction=True, test_list=ADD) == 0.5
    assert score("def add(a, b): return 0", test_list=ADD) == 0.0


def test_tests_may_come_as_json_and_bring_imports():
    tests = json.dumps(["assert math.isclose(add(1, 2), 3)", "assert gcd(4, add(1, 5)) == 2"])
    row = {"test_list": tests, "test_imports": ["import math", "from math import gcd"], "test_setup_code": ""}
    assert score(RIGHT, **row) == 1.0


PROMPT = '''def helper(x):
    return x + 1


def twice(x):
    """Two times x."""
'''
CHECK = "def check(candidate):\n    assert candidate(3) == helper(5)\n    assert candidate(0) == 0\n"


@pytest.mark.parametrize(
    "completion",
    [
        "    return 2 * x\n",
        "return 2 * x",
        "y = x\nreturn 2 * y",
        "y = x\n    return 2 * y",
        "def twice(x):\n    return helper(x) + x - 1",
        "```python\ndef twice(x):\n    return 2 * x\n```",
        "```python\n    return 2 * x\n```",
    ],
)
@pytest.mark.parametrize(
    "prompt", [PROMPT, f"Complete this:\n```python\n{PROMPT}```", f"Complete this function.\n\n{PROMPT}"]
)
def test_a_body_or_a_whole_function_answers_a_prompt_of_humaneval(prompt, completion):
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": prompt}]
    for given in ({"prompt": prompt}, {"prompt": messages}, {"code_prompt": prompt}):
        assert score(completion, test=CHECK, entry_point="twice", **given) == 1.0


def test_helpers_of_the_prompt_are_the_tests_own():
    # With its helper redefined the wrong function would pass.
    completion = "def helper(x):\n    return 0\n\ndef twice(x):\n    return 0"
    assert score(completion, prompt=PROMPT, test=CHECK, entry_point="twice") == 0.0


def test_a_program_is_judged_by_what_it_prints():
    row = {"inputs": ["1 2", "3 4"], "outputs": ["3", "7\n"]}
    assert score("a, b = map(int, input().split())\nprint(a + b, end=' \\n\\n')", **row) == 1.0
    assert score("print(3)", fraction=True, **row) == 0.5
    assert score("print(3)", **row) == 0.0
    assert score("print(3); print('passed')", fraction=True, **row) == 0.0


def test_rows_of_several_forms_and_of_other_tasks_go_together():
    scores = reward.code(
        ["p", "p", "p"],
        [RIGHT, "print(5)", "x"],
        test_list=[ADD, None, None],
        inputs=[None, [""], None],
        outputs=[None, ["5"], None],
    )
    assert scores == [1.0, 1.0, None]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answer": "3"}, "needs the column test_list, or test and entry_point, or inputs and outputs"),
        ({"test_list": []}, "row 0: column test_list is empty"),
        ({"test_list": ["assert add("]}, "row 0: a test is no Python: SyntaxError"),
        ({"inputs": ["1"], "outputs": ["1", "2"]}, "row 0: 1 inputs and 2 outputs"),
    ],
)
def test_a_row_that_cannot_be_tested_is_named(row, message):
    with pytest.raises(ValueError, match=message):
        score(RIGHT, **row)


def test_settings_of_a_recipe_reach_the_jail():
    loop = "def add(a, b):\n    while True: pass"
    assert reward.code(["p"], [loop], [ADD], timeout_s=0.3) == [0.0]
    hungry = "def add(a, b):\n    bytes(3 << 28)\n    return a + b"
    assert reward.code(["p"], [hungry], [ADD]) == [1.0]
    assert reward.code(["p"], [hungry], [ADD], memory_mb=512) == [0.0]
    imports = f"import numpy\n{RIGHT}"
    assert reward.code(["p"], [imports], [ADD], packages="") == [0.0]


def test_no_jail_means_no_score_unless_the_recipe_says_so(monkeypatch):
    def none_here():
        raise reward._jail.JailError("no jail for code on this machine")

    monkeypatch.setattr(reward._jail, "require", none_here)
    with pytest.raises(RuntimeError, match="no jail for code"):
        score(RIGHT, test_list=ADD)
    assert reward.code(["p"], [RIGHT], [ADD], allow_unprotected=True) == [1.0]
    for not_in_so_many_words in ("true", 1):
        with pytest.raises(RuntimeError, match="no jail for code"):
            reward.code(["p"], [RIGHT], [ADD], allow_unprotected=not_in_so_many_words)


@pytest.mark.parametrize("path", ["code", "code:code_fraction"])
def test_a_run_without_a_jail_is_refused_before_it_starts(tmp_path, path):
    folder = shipped_folder("reward_fns")
    shutil.copytree(folder / "code_jail", tmp_path / "code_jail")
    shutil.copy(folder / "code.py", tmp_path / "mine.py")
    with open(tmp_path / "mine.py", "a") as file:
        file.write(
            "\ndef _none():\n    raise _jail.JailError('no jail for code on this machine')\n"
            "_jail.require = _none\n"
        )
    mine = f"{tmp_path / 'mine.py'}:{path.rpartition(':')[2]}"
    row = Prompt(0, "p", "p", (), {"test_list": ADD, "code": RIGHT})
    for kwargs, told in (({}, "no jail for code"), ({"allow_unprotected": "true"}, "no jail for code")):
        with RewardPool(RewardConfig(functions=[{"path": mine, "kwargs": kwargs}])) as rewards:
            with pytest.raises(PluginError, match=told):
                rewards.check([row])
    allowed = {"path": mine, "kwargs": {"allow_unprotected": True}}
    with RewardPool(RewardConfig(functions=[allowed])) as rewards:
        assert rewards.check([row]) == {path.rpartition(":")[2]: [1.0]}


@pytest.mark.parametrize("kwargs", [{"timeout_s": 0}, {"memory_mb": -1}, {"parallel": 0}])
def test_settings_that_cannot_work_are_named(kwargs):
    with pytest.raises(ValueError, match=f"{next(iter(kwargs))} = .* must be positive"):
        reward.PREPARE(**kwargs)


def test_completions_that_loop_are_worth_nothing_and_no_failure_of_the_reward():
    function = {"path": "code", "kwargs": {"timeout_s": 0.7, "parallel": 2}}
    loop = "def add(a, b):\n    while True: pass"
    # 0.5 s for a call: less than the jail's own deadline, which counts.
    with RewardPool(RewardConfig(functions=[function], timeout_s=0.5, num_processes=1)) as rewards:
        scores = rewards.score([[Scorable("p", text, {"test_list": ADD}) for text in (loop, RIGHT, loop)]])
    assert scores.errors == {} and scores.reward.tolist() == [0.0, 1.0, 0.0]


def test_a_run_refuses_a_row_whose_reference_solution_fails():
    row = Prompt(7, "p", "p", (), {"test_list": ADD, "code": "def add(a, b):\n    return a - b\n"})
    with RewardPool(RewardConfig(functions=["code"])) as rewards:
        with pytest.raises(PluginError, match="gives the gold answer of row 7 0 instead of 1"):
            rewards.check([row])
        assert rewards.check([Prompt(8, "p", "p", (), {"test_list": ADD})]) == {"code": [0.0]}


def test_it_works_where_it_is_copied_to_with_its_folder_and_says_so_without(tmp_path):
    folder = shipped_folder("reward_fns")
    shutil.copy(folder / "code.py", tmp_path / "mine.py")
    with pytest.raises(ImportError, match="code_jail is missing; it has to lie beside mine.py"):
        load(tmp_path / "mine.py")
    shutil.copytree(folder / "code_jail", tmp_path / "code_jail")
    assert load(tmp_path / "mine.py").code(["p"], [RIGHT], [ADD]) == [1.0]


def rows_of(name: str) -> list[dict[str, Any]]:
    file = DATA / name
    if not file.is_file():
        pytest.skip(f"{file} is not here")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_every_reference_solution_of_mbpp_passes():
    rows = rows_of("mbpp.jsonl")
    columns = {name: [row[name] for row in rows] for name in ("test_list", "test_setup_code")}
    codes = [row["code"] for row in rows]
    scores = reward.code(codes, codes, **columns, timeout_s=20.0, parallel=2)
    assert [row["task_id"] for row, value in zip(rows, scores, strict=True) if value != 1.0] == []


@pytest.mark.slow
def test_every_reference_solution_of_humaneval_passes_and_no_empty_body():
    rows = rows_of("humaneval.jsonl")
    columns = {name: [row[name] for row in rows] for name in ("test", "entry_point")}
    prompts = [row["prompt"] for row in rows]
    solutions = [row["canonical_solution"] for row in rows]
    scores = reward.code(prompts, solutions, **columns, timeout_s=20.0, parallel=2)
    assert [row["task_id"] for row, value in zip(rows, scores, strict=True) if value != 1.0] == []
    assert set(reward.code(prompts, ["    return None"] * len(rows), **columns, parallel=2)) == {0.0}
