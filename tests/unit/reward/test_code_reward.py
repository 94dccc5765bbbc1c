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
        f"The function is this.\n\n{RIGHT}\nIt returns the sum.\nComplexity: O(1)\nDone",
        f"[BEGIN]\n{RIGHT}[DONE]\nAnother one:\n[BEGIN]\nx = 1\n[DONE]",
        f"{RIGHT}[DONE]\n\nYou are a programmer.",
        "def plus(a, end):\n    done = [a]\n    done[end - end] += end\n    code = [done]\n    end = 0\n"
        "    return code[end][end]\n\ndef add(a, b):\n    return plus(a, b)",
        f"[BEGIN]\n```python\n{RIGHT}```\n[DONE]",
        f"~~~\n{RIGHT}~~~\nThat is all.",
        f"````Python3\n{RIGHT}````",
        f"```{{.python .numberLines}}\n{RIGHT}```",
        "> ```py\n> def add(a, b):\n>     return a + b\n> ```",
        f"Open until the end:\n~~~python\n{RIGHT}\nThe rest is prose.",
        "In one line: ```python def add(a, b): return a + b```",
        f"<think>\n```python\ndef add(a, b): return 0\n```\n</think>\n<answer>\n{RIGHT}</answer>",
        "```\n>>> def add(a, b):\n...     return a + b\n...\n>>> add(1, 2)\n3\n```",
        "```python\ndef plus(a, b): return a + b\n```\nSo:\n```python\nadd = lambda a, b: plus(a, b)\n```",
        "```python\ndef add(a, b):\n    return operator.add(a, b)\n```\nand\n```py\nimport operator\n```",
        f"```python\n{RIGHT}```\nUse:\n```python\nr = add(int(input()), 2)\n```\n```\n3\n```",
        f"```python\ndef add(a, b): ...\n```\n```python\n{RIGHT}```\n```\ndef add(a, b): pass\n```",
        f"```text\n{RIGHT}```\n```bash\npython add.py\n```",
        '```python\ndef add(a, b):\n    """\n    ```\n    add(1, 2)\n    ```\n    """\n    return a + b\n```',
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
        "    return 2 * x\n\nThis doubles the number.",
        "return 2 * x\n\nThe body returns two times x.",
        "    return 2 * x\n```\nThe body is complete.",
        "    return 2 * x\n\n\nassert twice(2) == 5\nprint(twice(",
        "    return 2 * x\n\ndef twice(x):\n    return 0",
        "    return double(x)\n\ndef double(y):\n    return 2 * y\n",
        f"Sure, the whole function:\n\n{PROMPT}    return 2 * x\n\nDone.",
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


@pytest.mark.parametrize(
    ("program", "given", "wanted"),
    [
        ("print(input()[::-1])\nexit()\nprint('no')", "ab", "ba"),
        ("print(1)\nquit(0)", "", "1"),
        ("import sys\nprint(1)\nsys.exit()", "", "1"),
        ("print(10 ** 5000 + 3)", "", "1" + "0" * 4999 + "3"),
        ("print(sum(int(input()) for _ in range(2)))", ["3", "4"], "7"),
        ("n = int(input())\nprint(sum(map(int, input().split())), n)", [[2], [3, 4]], ["7 2"]),
        ("print(input())\nprint(input())", "a\r\nb", ["a", "b", ""]),
        ("print('a  ')\nprint('b\\n\\n')", "", "a\nb"),
        ("import fileinput\nprint(max(map(int, fileinput.input())))", "3\n9\n", "9"),
        ("import atexit\natexit.register(print, 'last')\nprint('first')", "", "first\nlast"),
        ("import threading\nthreading.Thread(target=lambda: print('x')).start()", "", "x"),
        ("import sys\nsys.setrecursionlimit(9999)\nprint(len(sys.argv))", "", "1"),
        ("def main():\n    print(int(input()) + 1)\n\nif __name__ == '__main__':\n    main()", "1", "2"),
    ],
)
def test_programs_run_as_they_would_elsewhere(program, given, wanted):
    assert score(program, inputs=[given], outputs=[wanted]) == 1.0


@pytest.mark.parametrize(
    "completion",
    [
        "```python\nn = int(input())\nprint(2 * n)\n```\nIt prints:\n```\n6\n```",
        "```python\nn = int(input())\nprint(2 * n)\n```\nFor instance:\n```python\nprint(2 * 3)\n```",
        "```python\ndef twice(n): return 2 * n\n```\nand\n```python\nprint(twice(int(input())))\n```",
        "```python\ndef main():\n    print(2 * int(input()))\n```\nRun it:\n```python\nmain()\n```",
        "The program:\n\nn = int(input())\nprint(2 * n)\n\nIt doubles the number (n).",
        "[BEGIN]\nprint(2 * int(input()))\n[DONE]",
        "~~~\nprint(2 * int(input()))\n~~~\n```bash\necho 3 | python twice.py\n```",
    ],
)
def test_the_program_in_a_completion_is_found(completion):
    assert score(completion, inputs=["3"], outputs=["6"]) == 1.0


def test_outputs_are_equal_as_numbers_only_where_that_is_asked_for():
    row = {"inputs": [""], "outputs": ["0.3333333 2"]}
    assert score("print(f'{1 / 3:.5f}', 4 / 2)", **row) == 0.0
    assert score("print(f'{1 / 3:.5f}', 4 / 2)", float_tolerance=1e-4, **row) == 1.0
    columns = {name: [value] for name, value in row.items()}
    assert reward.code(["p"], ["print(1 / 3, 2.0)"], float_tolerance=1e-4, **columns) == [1.0]
    for wrong in (
        "print(1 / 3, 3)",
        "print(1 / 3)",
        "print(0.34, 2)",
        "print('nan', 2)",
        "print(1 / 3, 2, 2)",
    ):
        assert score(wrong, float_tolerance=1e-4, **row) == 0.0
    assert score("print(1000001)", inputs=[""], outputs=["1000000"], float_tolerance=1e-3) == 0.0
    with pytest.raises(ValueError, match="float_tolerance = -1 must be a number, at least 0"):
        reward.PREPARE(float_tolerance=-1)


def test_a_row_may_call_a_function_with_lists_of_arguments():
    row = {"fn_name": "scale", "inputs": [[[1, 2], 3], [[], 2]], "outputs": [[3, 6], []]}
    assert score("def scale(xs, k): return [x * k for x in xs]", **row) == 1.0
    assert score("def scale(xs, k): return tuple(x * k for x in xs)", **row) == 1.0
    assert score("class Solution:\n    def scale(self, xs, k): return [x * k for x in xs]", **row) == 1.0
    assert score("def scale(xs, k): return xs", **row) == 0.0
    assert score("def scale(xs, k): return []", fraction=True, **row) == 0.5
    assert score("print(3)", **row) == 0.0
    lines = {"fn_name": "half", "inputs": ["5"], "outputs": ["2.5"]}
    assert score("def half(x): return x / 2", **lines) == 1.0
    packed = json.dumps({"fn_name": "half", "inputs": [[1]], "outputs": [[0.33333]]})
    assert score("def half(x): return x / 3", input_output=packed) == 0.0
    assert score("def half(x): return x / 3", input_output=packed, float_tolerance=1e-3) == 1.0


CHECKED = "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(0) == 0\n"


@pytest.mark.parametrize(
    "row",
    [
        {"test_list": [CHECKED], "entry_point": "twice"},
        {"test_list": json.dumps([CHECKED + "\ncheck(twice)\n"])},
        {"test_list": "assert twice(2) == 4"},
        {"test_list": ["def test_it():\n    assert twice(2) == 4\n"]},
        {"test_list": ["from solution import twice\n\ndef test_it():\n    assert twice(2) == 4\n"]},
        {"test_list": ["assert candidate(2) == 4"], "entry_point": "twice"},
        {"test": CHECKED, "entry_point": "twice"},
        {"test": CHECKED + "\ncheck(twice)\n", "entry_point": "twice"},
        {"test": "assert twice(2) == 4 and candidate(0) == 0", "entry_point": "twice"},
        {
            "test": "import unittest\nclass TestIt(unittest.TestCase):\n"
            "    def test_it(self): self.assertEqual(twice(2), 4)\n",
            "entry_point": "twice",
        },
    ],
)
def test_tests_come_in_several_forms_and_are_run_in_all(row):
    assert score("def twice(x): return 2 * x", **row) == 1.0
    assert score("def twice(x): return x", **row) == 0.0


def test_a_function_may_be_named_check():
    tests = ["assert check(2) == True", "assert check(3) == False"]
    assert score("def check(n): return n % 2 == 0", test_list=tests) == 1.0


def test_reading_a_long_text_is_quick_enough_to_score_it():
    prose = "Then x = 3 (or 4) follows.\nimport is what we do, too.\nx = 4\n```python\ny = (\n```\n"
    assert score(prose * 1000 + RIGHT, test_list=ADD, fraction=True) == 1.0


def test_what_is_under_test_may_be_an_expression():
    row = {"test": CHECKED, "entry_point": "Solution().twice"}
    assert score("class Solution:\n    def twice(self, x): return 2 * x", **row) == 1.0
    assert score("class Solution:\n    def twice(self, x): return x", **row) == 0.0


def test_a_completion_does_not_learn_from_its_name_list_what_is_expected():
    tests = ["assert find('needle') == 'hay' and find(31337) == wanted"]
    assert reward._names(tests, None, 0) == ("find", "wanted")


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
        ({"inputs": [], "outputs": []}, "row 0: column inputs is empty"),
        (
            {"inputs": [3], "outputs": [4], "fn_name": "add"},
            "row 0: column inputs, with fn_name, has to hold lists",
        ),
        (
            {"inputs": ["x y"], "outputs": ["4"], "fn_name": "add"},
            "row 0: column inputs, with fn_name, holds no",
        ),
        ({"inputs": [[1]], "outputs": [4], "fn_name": "a.b"}, "row 0: fn_name = 'a.b' is no name"),
        ({"input_output": "{"}, "row 0: column input_output is no JSON"),
        ({"input_output": {"inputs": []}}, "row 0: column input_output needs inputs and outputs"),
        (
            {"test_list": [CHECKED]},
            "row 0: check.candidate. in column test_list needs the column entry_point",
        ),
        (
            {"inputs": [""], "outputs": [""], "float_tolerance": "x"},
            "row 0: float_tolerance = 'x' must be a number",
        ),
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
