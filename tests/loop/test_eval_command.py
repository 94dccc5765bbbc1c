"""`rl4dlm eval --tasks` on a tiny random model, on Ray and in one process, and what a second call does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rl4dlm.models import build_bpe_tokenizer, create, save
from rl4dlm.recipe.sections import ModelInit

pytestmark = pytest.mark.slow

LENGTH = 32


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and the tasks' files."""
    folder = tmp_path_factory.mktemp("eval")
    tokenizer = build_bpe_tokenizer(["Numbers: [1, 2, 3]\nTarget: 6 <answer>"], 300, chat_template=True)
    init = ModelInit(d_model=16, n_layers=1, n_heads=2, mlp_hidden_size=16, max_sequence_length=1024)
    save(create(init, tokenizer, seed=0), folder / "model", tokenizer)
    data = folder / "data"
    data.mkdir()
    questions = [{"question": f"What is {i} + {i}?", "answer": f"#### {2 * i}"} for i in range(6)]
    sums = [{"input": f"{i},2,3", "output": str(i + 5)} for i in range(6)]
    for name, rows in (("gsm8k_test.jsonl", questions), ("countdown_cd3_test.jsonl", sums)):
        (data / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def evaluate(place: Path, tasks: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = "from rl4dlm.cli import main; main()"
    command = ["eval", "--tasks", tasks, "--model", "model", "--data-dir", "data", "--output", "results"]
    sizes = ["--length", str(LENGTH), "--limit", "4", "--num-samples", "2"]
    return subprocess.run(
        [sys.executable, "-c", code, *command, *sizes, *arguments],
        cwd=place,
        env={**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_two_tasks_are_evaluated_and_what_is_finished_stays(place: Path) -> None:
    done = evaluate(place, "gsm8k,countdown", "--wandb")
    assert done.returncode == 0, done.stdout + done.stderr
    results = place / "results"
    for task in ("gsm8k", "countdown"):
        result = json.loads((results / f"{task}_len{LENGTH}.json").read_text())
        assert result["figures"].keys() == {
            "pass@1 greedy",
            "mean reward greedy",
            "avg@2",
            "pass@1",
            "pass@2",
        }
        assert result["figures"]["pass@1 greedy"]["n"] == 4 and len(result["figures"]["avg@2"]["ci95"]) == 2
        assert (
            result["decode"]["greedy"]["temperature"] == 0 and result["decode"]["sampled"]["temperature"] == 1
        )
        assert result["decode"]["greedy"]["diffusion_steps"] == LENGTH // 2
        assert {"torch", "ray", "python", "device", "dtype"} <= result["environment"].keys()
        completions = rows(results / f"{task}_len{LENGTH}.jsonl")[1:]
        assert len(completions) == 4 + 8 and len({row["completion"] for row in completions}) > 1
    assert f"| gsm8k | {LENGTH} | pass@1 greedy |" in (results / "results.md").read_text()
    assert list((results / "wandb").glob("offline-run-*"))

    # Nothing is left to do: no worker starts, no file changes.
    before = {path: path.stat().st_mtime_ns for path in results.glob("*_len*")}
    again = evaluate(place, "countdown,gsm8k")
    assert again.returncode == 0 and "starting a local Ray cluster" not in again.stdout
    assert again.stdout.count("finished before") == 2
    assert before == {path: path.stat().st_mtime_ns for path in results.glob("*_len*")}

    # Countdown was killed in the middle: what is there stays, the rest comes out as before.
    lines, result = results / f"countdown_len{LENGTH}.jsonl", results / f"countdown_len{LENGTH}.json"
    whole, figures = lines.read_bytes(), json.loads(result.read_text())["figures"]
    lines.write_bytes(b"".join(whole.splitlines(keepends=True)[:6]) + b'{"mode": "sam')
    result.unlink()
    resumed = evaluate(place, "gsm8k,countdown")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "gsm8k: finished before" in resumed.stdout
    assert "countdown: 7 completions to sample" in resumed.stdout
    assert lines.read_bytes() == whole and json.loads(result.read_text())["figures"] == figures

    # Other settings: the same folder is refused at the same length.
    other = evaluate(place, "gsm8k", "--temperature", "0.5")
    assert other.returncode == 2
    assert "decode.sampled.temperature = 1.0, now 0.5" in other.stderr and "Traceback" not in other.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--tasks", "gsm9k", "--model", "model"], "Did you mean gsm8k?"),
        (["--tasks", "gsm8k"], "none is named"),
        (["quickstart", "--length", "64"], "--length goes with --tasks"),
        (["--tasks", "gsm8k", "--model", "no-such-model", "--data-dir", "data"], "no such folder"),
        (
            ["--tasks", "gsm8k", "--model", "model", "--data-dir", "data", "--length", "1024"],
            "has room for 0",
        ),
        (["--tasks", "sudoku", "--model", "model", "--data-dir", "data"], "sudoku_4x4_test.csv"),
        (["--tasks", "gsm8k", "--model", "model", "eval.num_prompts=3"], "with --tasks only"),
        (
            ["--tasks", "gsm8k", "--model", "model", "--data-dir", "data", "rollout.cache=block"],
            "rollout.cache = block is for block_causal attention",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_anything_starts(
    place: Path, arguments: list[str], told: str
) -> None:
    code = "from rl4dlm.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "eval", *arguments, "--output", "refused"],
        cwd=place,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2 and told in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert "Ray" not in done.stdout and not (place / "refused").exists()


def test_one_process_gives_the_figures_of_the_workers(place: Path) -> None:
    figures = []
    for name, arguments in (("ray", ()), ("local", ("cluster.backend=local",))):
        done = evaluate(place, "gsm8k", "--output", name, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        figures.append((place / name / f"gsm8k_len{LENGTH}.jsonl").read_text())
    assert figures[0] == figures[1]
