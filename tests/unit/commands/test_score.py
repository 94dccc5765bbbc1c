"""`rl4dlm score`: saved completions, verdicts per row, what is refused, and the published figures."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from rl4dlm import cli
from rl4dlm.benchmarks import wilson_interval
from rl4dlm.commands.score import Columns, SavedRows, ScoreRequest, score_file
from rl4dlm.commands.score.columns import SavedSample
from rl4dlm.commands.score.published import published
from rl4dlm.commands.score.run import report_lines
from rl4dlm.errors import DataError, PluginError, RecipeError

DATA = Path(__file__).parents[4] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared data is not here")

ROWS = [
    {"question": "2+2", "generation": "It is 4.", "ground_truth": 4},
    {"question": "2+3", "generation": "\\boxed{6}", "ground_truth": 5},
    {"question": "2+4", "generation": "<answer>6</answer>", "ground_truth": "#### 6"},
    {"question": "2+5", "generation": "", "ground_truth": 7},
    {"question": "2+6", "generation": "8", "ground_truth": None},
]

PLUGIN = """
import os, time

def plug(prompts, completions, answer, **columns):
    scores = []
    for completion in completions:
        if completion == "raise":
            raise ValueError("does not like it")
        if completion == "hang":
            time.sleep(60)
        if completion == "die":
            os._exit(3)
        scores.append(float("nan") if completion == "nan" else None if completion == "none" else 0.5)
    return scores
"""


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def verdicts(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def plugin(tmp_path: Path) -> str:
    path = tmp_path / "plug.py"
    path.write_text(PLUGIN)
    return str(path)


def run_cli(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["rl4dlm", "score", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert isinstance(stop.value.code, int)
    return stop.value.code, *capsys.readouterr()


def test_the_mean_the_interval_and_a_verdict_per_row(tmp_path: Path) -> None:
    report = score_file(ScoreRequest("gsm8k", write(tmp_path / "rows.jsonl", ROWS)))
    found = report.as_json()
    assert (found["mean"], found["n"], found["scored"], found["not_applicable"]) == (0.5, 5, 4, 1)
    assert found["ci95"] == pytest.approx(wilson_interval(0.5, 4)) and found["failures"] == {}
    lines = verdicts(tmp_path / "rows.gsm8k.verdicts.jsonl")
    assert [line["verdict"] for line in lines] == ["right", "wrong", "right", "wrong", "not_applicable"]
    assert [line["row"] for line in lines] == [0, 1, 2, 3, 4] and report.verdicts.name in os.listdir(tmp_path)


def test_csv_and_parquet_give_what_jsonl_gives(tmp_path: Path) -> None:
    rows = [
        {**row, "ground_truth": None if row["ground_truth"] is None else str(row["ground_truth"])}
        for row in ROWS
    ]
    with open(tmp_path / "rows.csv", "w", newline="", encoding="utf-8-sig") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    reports = [
        score_file(ScoreRequest("gsm8k", path)).as_json()
        for path in (write(tmp_path / "all.jsonl", rows), tmp_path / "rows.csv", tmp_path / "rows.parquet")
    ]
    kept = [{key: report[key] for key in ("mean", "ci95", "n", "failures")} for report in reports]
    assert kept[0] == kept[1] == kept[2] and kept[0]["mean"] == 0.5


def test_failures_are_counted_by_kind_and_are_part_of_no_mean(tmp_path: Path, plugin: str) -> None:
    texts = ["fine", "raise", "hang", "die", "nan", "none", "raise"]
    kinds = [None, "raised", "timeout", "died", "not_finite", None, "raised"]
    rows = [{"question": "q", "generation": text, "ground_truth": 1} for text in texts]
    report = score_file(ScoreRequest(plugin, write(tmp_path / "rows.jsonl", rows), timeout_s=1.0))
    found = report.as_json()
    assert found["failures"] == {"died": 1, "not_finite": 1, "raised": 2, "timeout": 1}
    assert (found["mean"], found["scored"], found["not_applicable"], found["n"]) == (0.5, 1, 1, 7)
    assert found["ci95"] is None  # one value that is neither 0 nor 1 has no spread
    assert any("does not like it" in message for message in report.messages)
    lines = verdicts(report.verdicts)
    assert [line["verdict"] for line in lines] == ["scored", *["failed"] * 4, "not_applicable", "failed"]
    assert [line.get("failure") for line in lines] == kinds


def test_means_of_partial_rewards_have_the_normal_interval(tmp_path: Path) -> None:
    rows = [
        {"question": "21=", "generation": done, "ground_truth": "12", "answer": "12"}
        for done in ("12", "11", "21", "12")
    ]
    report = score_file(ScoreRequest("sort", write(tmp_path / "rows.jsonl", rows)))
    # 1, 1/2, 0, 1: mean 5/8; variance (9 + 1 + 25 + 9)/64/3 = 44/192; half = 1.96 * sqrt(44/192/4) = 0.4691.
    assert report.figure is not None and report.figure.value == 0.625
    assert report.figure.ci95 == pytest.approx((0.625 - 0.46914, 0.625 + 0.46914), abs=1e-4)


def test_countdown_counts_full_marks_unless_told_otherwise(tmp_path: Path) -> None:
    target = [[3, 5], 8]
    rows = [
        {"question": "q", "generation": done, "ground_truth": target}
        for done in ("3+5", "5-3", "8", "\\boxed{5+3}")
    ]
    path = write(tmp_path / "rows.jsonl", rows)
    report = score_file(ScoreRequest("countdown", path))
    assert report.as_json()["mean"] == 0.5 and report.as_json()["metric"] == "accuracy"
    assert report.as_json()["mean_reward"] == pytest.approx(0.525)
    assert [line["verdict"] for line in verdicts(report.verdicts)] == ["right", "partial", "wrong", "right"]
    mean = score_file(ScoreRequest("countdown", path, metric="mean"))
    assert mean.as_json()["mean"] == pytest.approx(0.525)


def test_rewards_get_the_target_under_their_own_names() -> None:
    columns = Columns("q", "done", "truth")
    grid = "3102200002100320"
    row = {"q": f"Solve: {grid}\n", "done": "x", "truth": "3142243142131324", "level": 2}
    given = columns.sample(row, "sudoku", "here").columns
    assert (given["puzzle"], given["solution"]) == (grid, "3142243142131324")
    assert given["answer"] == given["ground_truth"] == given["solution"] and given["level"] == 2
    text = {"q": "q", "done": "x", "truth": "[[3, 5], 8]"}
    assert columns.sample(text, "countdown", "here").columns["ground_truth"] == [[3, 5], 8]
    for truth in ({"target": 8, "numbers": [3, 5]}, '{"target": 8, "nums": [3, 5]}'):
        sample = columns.sample({**text, "truth": truth}, "countdown", "here")
        assert sample.columns["ground_truth"] == [[3, 5], 8]
        assert published("countdown", replace(sample, completion="5+3=8")).score == 1.0  # type: ignore[union-attr]
    own = {"q": "q", "done": "x", "truth": 1, "answer": 2, "puzzle": "1", "solution": "2"}
    given = columns.sample(own, "sudoku", "here").columns
    assert (given["answer"], given["ground_truth"], given["puzzle"]) == (2, 1, "1")
    with pytest.raises(DataError, match="row 3: the prompt holds no grid"):
        columns.sample({**row, "q": "no grid"}, "sudoku", "row 3")
    with pytest.raises(DataError, match="is not \\[numbers, target\\]"):
        columns.sample({**text, "truth": "3,5 to 8"}, "countdown", "row 3")


def test_end_of_text_is_no_part_of_a_completion(tmp_path: Path) -> None:
    texts = ["12<|eot_id|>", "12<|endoftext|><|eot_id|>", "12</s>", "12", "<|eot_id|>12", "</s>" * 100_000]
    rows = [{"question": "21=", "generation": text, "answer": "12"} for text in texts]
    report = score_file(ScoreRequest("sort:sort_exact", write(tmp_path / "rows.jsonl", rows)))
    assert [line["verdict"] for line in verdicts(report.verdicts)] == ["right"] * 4 + ["wrong"] * 2


def test_a_target_that_is_not_a_number_is_no_reference(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"question": "q", "generation": "nan", "ground_truth": NaN}\n'
        '{"question": "q", "generation": "4", "ground_truth": 4}\n'
    )
    found = score_file(ScoreRequest("gsm8k", path)).as_json()
    assert (found["mean"], found["scored"], found["not_applicable"]) == (1.0, 1, 1)


CODE_ROW = {"question": "Add.", "generation": "def add(a, b): return a + b"}


@pytest.mark.parametrize(
    ("reward", "row"),
    [
        ("gsm8k", {"generation": "4", "answer": "2+2 = 4\n#### 4"}),
        ("math", {"generation": "4", "solution": "It is $\\boxed{4}$."}),
        ("countdown", {"generation": "3+5", "input": "3,5", "output": "8"}),
        ("sudoku", {"generation": "3142243142131324", "Puzzle": "3102200002100320"}),
        ("code", {"generation": CODE_ROW["generation"], "test_list": ["assert add(1, 2) == 3"]}),
        ("length", {"generation": "word " * 30}),
    ],
)
def test_a_row_with_the_reward_s_own_columns_needs_no_target(
    reward: str, row: dict[str, Any], tmp_path: Path
) -> None:
    if reward == "sudoku":
        row = {**row, "Solution": row["generation"]}
    path = write(tmp_path / "rows.jsonl", [{"question": "q", **row}])
    assert score_file(ScoreRequest(reward, path)).as_json()["mean"] == 1.0
    bare = write(tmp_path / "bare.jsonl", [{"question": "q", "generation": "4"}])
    if reward != "length":
        with pytest.raises(DataError, match="row 0: no column `ground_truth`"):
            score_file(ScoreRequest(reward, bare))


def test_settings_of_the_reward_are_given_with_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"question": "q", "generation": text} for text in ("<think>a</think>", "a")]
    path = str(write(tmp_path / "rows.jsonl", rows))
    arguments = ["--reward", "format", path, "--set", "tags=think", "--set", "max_chars=20", "--json"]
    status, out, _ = run_cli(monkeypatch, capsys, *arguments)
    assert status == 0 and json.loads(out)["mean"] == 0.5
    for setting, told in (("max_chars", "has no value"), ("max_repetition=3", "is no share between 0 and 1")):
        status, _, err = run_cli(monkeypatch, capsys, "--reward", "format", path, "--set", setting)
        assert status == 2 and told in err and "Fix: " in err


def test_a_judge_that_does_not_answer_is_a_failure_of_every_row(tmp_path: Path) -> None:
    rows = [{"question": "q", "generation": "a"}]
    # Port 9 of this machine: nobody listens.
    settings = {"base_url": "http://127.0.0.1:9/v1", "model": "judge", "retries": 0}
    request = ScoreRequest("llm_judge", write(tmp_path / "rows.jsonl", rows), kwargs=settings)
    report = score_file(request)
    assert report.as_json()["failures"] == {"raised": 1} and report.figure is None
    assert "gave no score in 1 attempts" in report.messages[0]


def test_a_large_file_is_read_in_chunks_up_to_the_limit(tmp_path: Path) -> None:
    rows = [{"question": "q", "generation": str(i % 2), "ground_truth": 1} for i in range(1300)]
    path = write(tmp_path / "rows.jsonl", rows)
    assert score_file(ScoreRequest("gsm8k", path)).as_json()["n"] == 1300
    limited = score_file(ScoreRequest("gsm8k", path, limit=513)).as_json()
    assert (limited["n"], limited["mean"]) == (513, 256 / 513)


# --- Bad input. ---


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "no such file"),
        ("", "holds no rows"),
        ("\n\n", "holds no rows"),
        ('{"question": "q"}\n', "row 0: no column `generation`. Columns there are: `question`"),
        ('{"question": "q", "generation": "a", "ground_truth": 1}\n{"question": "q"}\n', "row 1: no column"),
        ('{"question": "q", "generation": null, "ground_truth": 1}\n', "row 0: `generation` is empty"),
        ('{"question": null, "generation": "a", "ground_truth": 1}\n', "row 0: `question` is empty"),
        ('{"question": "q", "generation": 7, "ground_truth": 1}\n', "row 0: `generation` holds a int"),
        ('{"question": "q", "generation": "a", "ground_truth": null}\n', "applies to none of the 1 rows"),
        ("[1]\n", "row 0 (line 1): holds a list, not an object"),
        ("{\n", "row 0 (line 1): not JSON"),
        (b'{"question": "\xff"}\n', "row 0 (line 1): not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_scored_is_refused_with_the_row(
    content: str | bytes | None,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "rows.jsonl"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    status, out, err = run_cli(monkeypatch, capsys, "--reward", "gsm8k", str(path), "--json")
    assert status == 2 and out == "" and told in err and "Fix: " in err and "Traceback" not in err
    assert [entry for entry in os.listdir(tmp_path) if "verdicts" in entry] == []


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("rows.txt", b"text", "unknown file type '.txt'"),
        ("rows.parquet", b"no parquet at all", "cannot be read"),
        ("rows.csv", b"question,generation,ground_truth\n", "holds no rows"),
        (
            "rows.csv",
            b"question,generation,ground_truth\nq,a\n",
            "row 0 (line 2): has 2 cells, and the header has 3",
        ),
        (
            "rows.csv",
            b"question,generation,ground_truth\nq,a,1,9\n",
            "row 0 (line 2): has 4 cells, and the header has 3",
        ),
        ("rows.csv", b'question,generation,ground_truth\n"q,a,1\n', "not CSV"),
    ],
)
def test_other_kinds_of_files_are_refused_too(name: str, content: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=re.escape(told)):
        score_file(ScoreRequest("gsm8k", tmp_path / name))


def test_rewards_and_options_that_are_wrong_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write(tmp_path / "rows.jsonl", ROWS))
    broken = tmp_path / "broken.py"
    broken.write_text("import not_installed_anywhere\n")
    for arguments, told in (
        (["--reward", "gsm9k"], "Did you mean gsm8k?"),
        (["--reward", str(broken)], "cannot be imported"),
        (["--reward", "gsm8k", "--metric", "median"], "--metric 'median' is not known"),
        (["--reward", "gsm8k", "--output", path], "nothing was overwritten"),
        (["--reward", "gsm8k", "--output", str(tmp_path / "no" / "x.jsonl")], "is no folder"),
        (["--reward", "gsm8k", "--target-column", "truth"], "no column `truth`"),
    ):
        status, out, err = run_cli(monkeypatch, capsys, path, *arguments)
        assert status == 2 and out == "" and told in err, (arguments, err)


def test_a_reward_that_fails_everywhere_ends_with_status_1(
    tmp_path: Path, plugin: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"question": "q", "generation": "raise", "ground_truth": 1}]
    path = str(write(tmp_path / "rows.jsonl", rows))
    status, out, _ = run_cli(monkeypatch, capsys, path, "--reward", plugin, "--json")
    assert status == 1
    assert json.loads(out)["mean"] is None and json.loads(out)["failures"] == {"raised": 1}
    status, out, _ = run_cli(monkeypatch, capsys, path, "--reward", plugin)
    assert "no row was scored" in out and "does not like it" in out


def test_json_is_one_object_on_stdout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "rows.jsonl", ROWS)
    arguments = [
        "--reward",
        "gsm8k",
        str(path),
        "--json",
        "--limit",
        "2",
        "--output",
        str(tmp_path / "v.jsonl"),
    ]
    status, out, err = run_cli(monkeypatch, capsys, *arguments)
    found = json.loads(out)
    assert status == 0 and err == "" and out.count("\n") == 1
    assert {"reward", "file", "mean", "n", "ci95", "failures"} <= found.keys()
    assert found["mean"] == 0.5 and len(verdicts(tmp_path / "v.jsonl")) == 2
    status, out, _ = run_cli(monkeypatch, capsys, "--reward", "gsm8k", str(path), "--limit", "2")
    assert status == 0 and "50.0 %" in out and "failures: none" in out


def test_a_read_only_folder_gets_no_verdicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, here = tmp_path / "data", tmp_path / "here"
    folder.mkdir()
    here.mkdir()
    path = write(folder / "rows.jsonl", ROWS)
    folder.chmod(0o555)
    monkeypatch.chdir(here)
    try:
        report = score_file(ScoreRequest("gsm8k", path))
        assert os.listdir(folder) == ["rows.jsonl"] and os.listdir(here) == [report.verdicts.name]
    finally:
        folder.chmod(0o755)


def test_a_killed_score_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [*ROWS, {"question": "q"}]
    with pytest.raises(DataError, match="row 5"):
        score_file(ScoreRequest("gsm8k", write(tmp_path / "rows.jsonl", rows)))
    assert os.listdir(tmp_path) == ["rows.jsonl"]


def test_unknown_rewards_and_taken_outputs_raise_their_types(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(PluginError):
        score_file(ScoreRequest("no_such_reward", path))
    with pytest.raises(RecipeError):
        score_file(ScoreRequest("gsm8k", path, output=path))


# --- The published evaluation. ---


@pytest.mark.parametrize(
    ("reward", "completion", "answer", "score", "read"),
    [
        ("gsm8k", "\\boxed{18}", 18.0, 1, "18"),
        ("gsm8k", "\\boxed{...} then \\boxed{18 eggs}", 18.0, 1, "18"),
        ("gsm8k", "\\boxed{43,500}", 43500.0, 0, "43"),
        ("gsm8k", "<answer>3 + 4 = 7</answer>", 7, 1, "7"),
        ("gsm8k", "the answer is 7", 7, 0, ""),
        ("gsm8k", "\\boxed{-10}", None, 0, "-10"),
        ("math", "\\boxed{\\dfrac12}", "\\frac{1}{2}", 1, "\\dfrac12"),
        ("math", "\\boxed{x = 5}", "5", 1, "x = 5"),
        ("math", "\\boxed{1} and \\boxed{2/3}", "\\frac{2}{3}", 1, "2/3"),
        ("math", "\\boxed{0.25}", "\\frac14", 0, "0.25"),
        ("math", "<answer>\\sqrt3</answer>", "\\sqrt{3}", 1, "\\sqrt3"),
        ("math", "no answer", "3", 0, ""),
        ("countdown", "\\boxed{(3 + 5) \\times 2 = 16}", [[5, 3, 2], 16], 1, "(3 + 5) * 2"),
        ("countdown", "I find 3 + 5*2 = 13 at last", [[5, 3, 2], 13], 1, "3 + 5*2"),
        ("countdown", "<answer>5/3</answer>", [[5, 3], 1.666666666], 1, "5/3"),
        ("countdown", "\\boxed{5/(3-3)}", [[5, 3, 3], 1], 0, "5/(3-3)"),
        ("countdown", "\\boxed{3 + 5}", [[5, 3, 2], 8], 0, "3 + 5"),
        ("countdown", "\\boxed{5**3}", [[5, 3], 125], 0, "5**3"),
        ("countdown", "\\boxed{__import__('os')}", [[], 0], 0, "__import__('os')"),
        ("countdown", "\\boxed{" + "(" * 90 + "5" + ")" * 90 + "}", [[5], 5], 1, None),
    ],
)
def test_published_readers_read_as_they_do(
    reward: str, completion: str, answer: Any, score: float, read: str | None
) -> None:
    found = published(reward, SavedSample("q", completion, {"answer": answer, "ground_truth": answer}))
    read = found.read if read is None and found is not None else read
    assert found is not None and (found.score, found.read) == (score, read)


@pytest.mark.parametrize("reward", ["gsm8k", "math", "countdown", "sudoku"])
@pytest.mark.parametrize(
    "text", ["<answer>", "\\boxed{", "\\boxed{1", "1" * 16, "1+", "(", "```", "</answer> ", "<answer>```1 "]
)
def test_published_readers_take_bounded_time(reward: str, text: str) -> None:
    columns = {"answer": 1, "ground_truth": [[1], 1], "puzzle": "0" * 16, "solution": "1" * 16}
    start = time.process_time()
    for length in (10_000, 10_001, 1_000_000):
        published(reward, SavedSample("q", (text * length)[:length], columns))
    assert time.process_time() - start < 1.5


def test_a_row_that_differs_from_the_published_evaluation_says_why(tmp_path: Path) -> None:
    rows = [
        {"question": "q", "generation": "\\boxed{43,500}", "ground_truth": 43500.0},
        {"question": "q", "generation": "\\boxed{7}", "ground_truth": 7.0},
    ]
    report = score_file(ScoreRequest("gsm8k", write(tmp_path / "rows.jsonl", rows)))
    assert report.as_json()["published"] == {"mean": 0.5, "n": 2, "differing": 1}
    first, second = verdicts(report.verdicts)
    assert first["published"] == 0 and "reads '43' and gives 0" in first["why"] and "43500.0" in first["why"]
    assert second["published"] == 1 and "why" not in second
    assert any("rows that differ, each with the reason: 1" in line for line in report_lines(report.as_json()))


@needs_data
@pytest.mark.parametrize(
    ("reward", "task", "expected", "above", "by_patterns"),
    [
        # Rewards that read more than the published patterns may lie above; every such row says why.
        ("gsm8k", "gsm8k", 69.3, 1.0, 69.3),
        pytest.param("math", "math500", 26.0, 4.0, 26.2, marks=pytest.mark.slow),
        ("countdown", "countdown", 20.7, 1.0, 21.1),
        ("sudoku", "sudoku", 11.7, 1.0, 11.7),
    ],
)
def test_the_published_figures_come_out_or_every_row_says_why(
    reward: str, task: str, expected: float, above: float, by_patterns: float, tmp_path: Path
) -> None:
    path = DATA / f"llada8b_generations_{task}_len128.jsonl"
    report = score_file(ScoreRequest(reward, path, output=tmp_path / "verdicts.jsonl"))
    found = report.as_json()
    assert found["failures"] == {} and found["n"] == sum(1 for _ in SavedRows(path))
    assert expected - 1 <= 100 * found["mean"] <= expected + above
    assert 100 * found["published"]["mean"] == pytest.approx(by_patterns, abs=0.1)
    differing = [line for line in verdicts(report.verdicts) if "why" in line]
    assert len(differing) == found["published"]["differing"]
    for line in differing:
        assert line.get("score", -1) != line["published"]


@needs_data
@pytest.mark.slow
def test_the_command_prints_the_published_figure(tmp_path: Path) -> None:
    file = DATA / "llada8b_generations_sudoku_len128.jsonl"
    code = "from rl4dlm.cli import main; main()"
    command = ["score", "--reward", "sudoku", str(file), "--json", "--output", str(tmp_path / "v.jsonl")]
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["mean"] == pytest.approx(0.117, abs=0.01)


GROUPED = """
def mates(prompts, completions):
    return [float(sum(other == mine for other in prompts)) for mine in prompts]

def everyone(completions):
    return [float(len(completions))] * len(completions)
everyone.WHOLE_BATCH = True

def noted(completions, completion_ids, log_extra):
    log_extra("length", [len(ids) for ids in completion_ids])
    return [1.0] * len(completions)
noted.RANGE = (0.0, 1.0)
"""


def saved(tmp_path: Path, prompts: list[str], **columns: Any) -> Path:
    rows = [{"question": p, "generation": "x", "ground_truth": "1", **columns} for p in prompts]
    return write(tmp_path / "rows.jsonl", rows)


@pytest.mark.parametrize("processes", [1, 2])
def test_rows_of_a_prompt_are_called_together_across_the_chunks_of_a_file(
    tmp_path: Path, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rl4dlm.commands.score.run.CHUNK_ROWS", 16)
    (tmp_path / "grouped.py").write_text(GROUPED)
    sizes = [5, 7, 6, 20, 1, 3]
    file = saved(tmp_path, [f"p{at}" for at, size in enumerate(sizes) for _ in range(size)])
    for name, expected in (("mates", [size for size in sizes for _ in range(size)]), ("everyone", [42] * 42)):
        request = ScoreRequest(f"{tmp_path / 'grouped.py'}:{name}", file, num_processes=processes)
        report = score_file(request)
        assert [line["reward"] for line in verdicts(report.verdicts)] == expected
        assert report.messages == []


def test_a_prompt_that_comes_back_later_is_told(tmp_path: Path) -> None:
    (tmp_path / "grouped.py").write_text(GROUPED)
    report = score_file(ScoreRequest(f"{tmp_path / 'grouped.py'}:mates", saved(tmp_path, ["a", "b", "a"])))
    assert any("a prompt comes back after others" in message for message in report.messages)


def test_a_reward_without_full_marks_is_a_number_and_judges_nothing_right(tmp_path: Path) -> None:
    (tmp_path / "grouped.py").write_text(GROUPED)
    file = saved(tmp_path, ["a"] * 3 + ["b"] * 2, completion_ids=[4, 5, 9, 9], completion_len=3)
    report = score_file(ScoreRequest(f"{tmp_path / 'grouped.py'}:mates", file))
    assert {line["verdict"] for line in verdicts(report.verdicts)} == {"scored"}
    (line,) = [line for line in report_lines(report.as_json()) if line.startswith("mean reward")]
    # 2.6 +- 1.96 * 0.5477 / sqrt(5).
    assert line == "mean reward: 2.6 (2.12 to 3.08), over 5 rows"
    noted = score_file(ScoreRequest(f"{tmp_path / 'grouped.py'}:noted", file))
    assert [(line["verdict"], line["extra"]) for line in verdicts(noted.verdicts)] == [
        ("right", {"length": 3})
    ] * 5
    (line,) = [line for line in report_lines(noted.as_json()) if line.startswith("mean reward")]
    assert line == "mean reward: 100.0 % (56.6 to 100.0), over 5 rows"


def test_references_in_reward_model_and_tests_in_input_output_need_no_target_column(tmp_path: Path) -> None:
    held = {"style": "rule", "ground_truth": "12"}
    verl = {"question": "q", "generation": "\\boxed{12}", "data_source": "d", "reward_model": held}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(verl) + "\n" + json.dumps(verl | {"generation": "\\boxed{13}"}) + "\n")
    assert score_file(ScoreRequest("math", path)).as_json()["mean"] == 0.5
    tests = {"inputs": ["x\n"], "outputs": ["x\n"]}
    row = {"question": "q", "generation": "print(input())", "input_output": json.dumps(tests)}
    assert Columns().sample(row, "code", "here").columns["input_output"] == row["input_output"]
