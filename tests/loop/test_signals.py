"""A run that is told to end: by which signal, what it keeps, and what it says."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import launch
import pytest

from rl4dlm.run.folder import RunFolder

pytestmark = pytest.mark.slow

ONE_OF_EACH = ["cluster.num_trainers=1", "cluster.num_rollout_workers=1", "trainer.save_steps=1000"]


def events(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def test_sigterm_saves_the_update_under_way_and_names_the_command_that_resumes(tmp_path: Path) -> None:
    recipe = launch.write_recipe(tmp_path)
    run = tmp_path / "run"
    driver = launch.start_driver(recipe, tmp_path, *ONE_OF_EACH, "trainer.max_steps=400")
    launch.wait_for(lambda: len(launch.rows(run / "metrics.jsonl")) >= 2, "two updates")
    driver.send_signal(signal.SIGTERM)

    assert driver.wait(timeout=120) == 143
    saved = RunFolder(run).find()
    assert saved is not None and saved.update == len(launch.rows(run / "metrics.jsonl")) >= 2
    saved.verify()
    (log,) = tmp_path.glob("driver-*.txt")
    said = log.read_text()
    assert f"rl4dlm train {run} --resume` continues from update {saved.update}" in said
    assert "Traceback" not in said and "stack trace" not in said.lower()
    assert events(run)[-1]["kind"] == "interrupted"
    assert '<span class="pill interrupted">' in (run / "report.html").read_text()

    longer = f"trainer.max_steps={saved.update + 1}"
    resumed = launch.start_driver(run, tmp_path, "--resume", longer)
    launch.finish(resumed, tmp_path)
    assert [row["update"] for row in launch.rows(run / "metrics.jsonl")] == list(range(1, saved.update + 2))


def test_an_interrupted_start_promises_no_resume(tmp_path: Path) -> None:
    driver = launch.start_driver(launch.write_recipe(tmp_path), tmp_path, *ONE_OF_EACH)
    launch.wait_for(lambda: (tmp_path / "run" / "run.lock").exists(), "the lock of the folder")
    driver.send_signal(signal.SIGHUP)
    assert driver.wait(timeout=60) == 129
    (log,) = tmp_path.glob("driver-*.txt")
    if "nothing was started" in log.read_text():
        assert not (tmp_path / "run").exists() and "--resume" not in log.read_text()
    else:  # the signal came when the folder was there already: then the command it names works
        assert "continues from its beginning" in log.read_text()


def test_a_second_run_in_the_same_folder_is_refused_and_the_first_is_unharmed(tmp_path: Path) -> None:
    recipe = launch.write_recipe(tmp_path)
    run = tmp_path / "run"
    first = launch.start_driver(recipe, tmp_path, *ONE_OF_EACH, "trainer.max_steps=10000")
    launch.wait_for(lambda: len(launch.rows(run / "metrics.jsonl")) >= 1, "an update")
    status, said = launch.command("train", str(run), "--resume")
    assert status == 2 and f"in use by process {first.pid} on " in said
    before = len(launch.rows(run / "metrics.jsonl"))
    launch.wait_for(lambda: len(launch.rows(run / "metrics.jsonl")) > before, "another update")
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=120) == 143
    updates = [row["update"] for row in launch.rows(run / "metrics.jsonl")]
    assert updates == list(range(1, len(updates) + 1))
