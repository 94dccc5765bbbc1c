"""The self-test passes good functions and catches those that are not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rl4dlm import cli
from rl4dlm.errors import PluginError
from rl4dlm.reward.selftest import HOSTILE, SelfTest, selftest

ROWS = [{"prompt": f"{i}=", "answer": str(100 + 7 * i)} for i in range(4)]


def try_out(folder: Path, body: str, rows: object = ROWS) -> SelfTest:
    file = folder / "mine.py"
    file.write_text("import os, random, re, time\nCALLS = []\ndef mine(completions, answer):\n    " + body)
    return selftest(str(file), rows, timeout_s=0.5)  # type: ignore[arg-type]


def failed(report: SelfTest) -> list[str]:
    return [check.name for check in report.checks if check.passed is False]


@pytest.mark.parametrize(
    "name", ["sort", "sort:sort_exact", "countdown", "sudoku", "format", "gsm8k", "math", "length"]
)
def test_every_built_in_reward_passes_on_its_own_examples(name):
    report = selftest(name)
    assert report.passed, failed(report)
    assert report.full_marks == 1.0
    assert len(report.checks) == 3 + len(HOSTILE)
    assert 0 < report.seconds_per_call < 1


def test_rows_of_a_dataset_serve_as_examples(tmp_path):
    report = try_out(tmp_path, "return [2.0 * (c == a) for c, a in zip(completions, answer)]\n")
    assert report.passed, failed(report)
    assert (report.full_marks, report.style) == (2.0, "trl")


@pytest.mark.parametrize(
    ("body", "caught"),
    [
        ("return [float(c == 'x') for c in completions]", "gold answers score full marks"),
        (
            "return [float(c == a == '100') for c, a in zip(completions, answer)]",
            "gold answers score full marks",
        ),
        ("return [1.0 for c in completions]", "empty and garbled answers do not"),
        ("return [float(len(c) == 3) for c in completions]", "empty and garbled answers do not"),
        ("return [random.random() for c in completions]", "equal calls agree, alone and in a batch"),
        ("return [float(c == a) / len(answer) for c, a in zip(completions, answer)]", "equal calls agree"),
        (
            "return [float(c == a or '9**9' in c) for c, a in zip(completions, answer)]",
            "hostile text: a tower",
        ),
        (
            "return [float(int(c) == int(a)) for c, a in zip(completions, answer)]",
            "hostile text: a megabyte of d",
        ),
        ("return [float(str(eval(c)) == a) for c, a in zip(completions, answer)]", "hostile text: a tower"),
        (
            "return [float(c == a) for c, a in zip(completions, answer) if '\\0' not in c]",
            "hostile text: NUL",
        ),
    ],
)
def test_a_bad_reward_is_caught_and_named(tmp_path, body, caught):
    report = try_out(tmp_path, body + "\n")
    assert not report.passed
    assert any(name.startswith(caught) for name in failed(report)), failed(report)


@pytest.mark.parametrize("layout", ["<answer>{}</answer>", "\\boxed{{{}}}", "#### {}"])
def test_a_reference_is_tried_in_the_layout_that_the_function_reads(tmp_path, layout):
    before, after = layout.split("{}", 1) if "boxed" not in layout else ("\\boxed{", "}")
    body = f"return [float(c == {before!r} + a + {after!r}) for c, a in zip(completions, answer)]\n"
    report = try_out(tmp_path, body)
    assert report.passed, failed(report)


def test_the_prompt_is_found_under_its_usual_names(tmp_path):
    file = tmp_path / "echo.py"
    file.write_text(
        "def echo(prompts, completions): return [float(p == c) for p, c in zip(prompts, completions)]"
    )
    for name in ("prompt", "question", "problem", "text"):
        rows = [{name: "first", "completion": "first"}, {name: "other", "completion": "other"}]
        assert selftest(str(file), rows).passed


@pytest.mark.slow
@pytest.mark.parametrize("name", ["code", "code:code_fraction"])
@pytest.mark.skipif(sys.platform != "linux", reason="the jail needs Linux")
def test_the_code_reward_passes_on_its_own_examples_and_on_reference_solutions(name):
    rows = [
        {"text": "Add.", "code": "def add(a, b):\n    return a + b", "test_list": ["assert add(1, 2) == 3"]},
        {
            "prompt": "def twice(x):\n",
            "canonical_solution": "    return 2 * x\n",
            "test": "def check(candidate):\n    assert candidate(3) == 6\n",
            "entry_point": "twice",
        },
    ]
    for report in (selftest(name), selftest(name, rows)):
        assert report.passed, failed(report)
        assert report.full_marks == 1.0


def test_a_step_wise_function_is_tried_on_the_trajectories_of_its_examples(tmp_path):
    body = (
        "def steps(completions, trajectory):\n"
        "    return [float(c == str(max(t['step_map']))) for c, t in zip(completions, trajectory)]\n"
    )
    examples = [
        {"prompt": "p", "completion": str(last), "columns": {}, "trajectory": record}
        for last in (2, 3)
        for record in [{"completion_ids": [5, 6], "step_map": [0, last], "num_steps": last + 1}]
    ]
    file = tmp_path / "steps.py"
    file.write_text(f"{body}EXAMPLES = {examples!r}\n")
    report = selftest(str(file))
    assert report.passed, failed(report)
    file.write_text(f"{body}EXAMPLES = {[{'prompt': 'p', 'completion': '2', 'columns': {}}]!r}\n")
    with pytest.raises(PluginError, match=r"(?s)an example has not.*Fix: give each of EXAMPLES"):
        selftest(str(file))


def test_rows_without_gold_answers_say_what_could_not_be_tried(tmp_path):
    report = selftest("countdown", [{"input": "1,2,3,4,5", "output": "15"}])
    assert report.passed
    untried = {check.name: check.detail for check in report.checks if check.passed is None}
    assert untried["gold answers score full marks"] == "the rows have no gold answer"


def test_a_function_without_examples_asks_for_data(tmp_path):
    with pytest.raises(PluginError, match=r"(?s)nothing to try it on.*Fix: add EXAMPLES"):
        try_out(tmp_path, "return []\n", None)


def test_a_function_that_cannot_be_loaded_is_an_error():
    with pytest.raises(PluginError, match="no such file"):
        selftest("not/here.py")


def command(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["rl4dlm", "rewards", "test", *arguments])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code, *capsys.readouterr()


def test_the_command_tries_rows_of_a_table_and_shows_the_time_per_call(tmp_path, monkeypatch, capsys):
    table = tmp_path / "rows.csv"
    table.write_text(
        "Puzzle,Solution\n3102200002100320,3142243142131324\n4320004330100004,4321124334122134\n"
    )
    status, out, _ = command(monkeypatch, capsys, "sudoku", "--data", str(table))
    assert status == 0 and "2 of 2 got 1" in out and "time per call" in out
    swapped = tmp_path / "swapped.csv"
    swapped.write_text("Puzzle,Solution\n3102200002100320,4321124334122134\n")
    status, out, _ = command(monkeypatch, capsys, "sudoku", "--data", str(swapped))
    assert status == 1 and "'4321124334122134' got 0.875" in out


def test_the_command_hands_settings_on(tmp_path, monkeypatch, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        '{"prompt": "p", "completion": "<think>So it is.</think>"}\n'
        '{"prompt": "q", "completion": "<think>Or not.</think>"}\n'
    )
    status, out, _ = command(
        monkeypatch, capsys, "format", "--data", str(rows), "--set", "tags=think", "--timeout-s", "9"
    )
    assert status == 0 and "2 of 2 got 1" in out
    status, out, _ = command(monkeypatch, capsys, "format", "--data", str(rows))
    assert status == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["gsm8k", "--data", "no.jsonl"], "no.jsonl: no such file"),
        (["gsm8k", "--data", "rows.txt"], "unknown file type '.txt'"),
        (["gsm8k", "--data", "empty.jsonl"], "holds no rows"),
        (["gsm8k", "--set", "tolerance=1"], "unknown kwargs key tolerance"),
        (["format", "--set", "tags"], "--set 'tags' has no value"),
        (["llm_judge"], "needs the settings base_url and model"),
    ],
)
def test_what_cannot_be_tried_is_refused(arguments, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.txt").write_text("x")
    (tmp_path / "empty.jsonl").touch()
    status, out, err = command(monkeypatch, capsys, *arguments)
    assert status == 2 and told in err and "Traceback" not in err
