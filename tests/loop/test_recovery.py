"""Killed drivers, ranks and workers: the run ends with the very weights of the uninterrupted one."""

from __future__ import annotations

import json
import shutil
import signal
import threading
from pathlib import Path

import launch
import psutil
import pytest
from launch import rows, wait_for, weights_digest, without_clock

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return launch.write_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module")
def uninterrupted(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that all others must equal."""
    output = tmp_path_factory.mktemp("uninterrupted")
    driver = launch.start_driver(recipe, output, "run.name=whole")
    launch.finish(driver, output)
    return output / "whole"


def test_the_run_leaves_what_it_promises(uninterrupted: Path) -> None:
    metrics = rows(uninterrupted / "metrics.jsonl")
    assert [row["update"] for row in metrics] == [1, 2, 3, 4]
    for row in metrics:
        assert row["replay/logprob_abs_diff"] < 1e-5
        assert row["sync/version"] == row["update"]
    assert [row["update"] for row in rows(uninterrupted / "evaluations.jsonl")] == [0, 2, 4]
    for name in ("report.html", "recipe.yaml", "model/config.json", "checkpoints/latest"):
        assert (uninterrupted / name).is_file()
    assert len(list((uninterrupted / "rollouts").glob("*.parquet"))) == 4
    assert (uninterrupted / "checkpoints" / "latest").read_text() == "step_000004"


def test_the_exported_model_is_that_of_the_last_checkpoint(uninterrupted: Path, tmp_path: Path) -> None:
    from rl4dlm.commands.export import export

    exported = export(uninterrupted, tmp_path / "out")
    assert weights_digest(exported) == weights_digest(uninterrupted / "model")
    earlier = export(uninterrupted, tmp_path / "earlier", step=2)
    assert weights_digest(earlier) != weights_digest(exported)


def test_the_weights_move_in_every_leg(uninterrupted: Path) -> None:
    digests = {weights_digest(uninterrupted / name) for name in ("initial_model", "warm_start", "model")}
    assert len(digests) == 3


def test_a_driver_killed_twice_resumes_to_bit_equal_weights(
    recipe: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    run = tmp_path / "killed"
    first = launch.start_driver(recipe, tmp_path, "run.name=killed")
    wait_for(lambda: bool(rows(run / "phases.jsonl")), "the warm start to begin")
    first.send_signal(signal.SIGKILL)
    first.wait()

    second = launch.start_driver(recipe, tmp_path, "run.name=killed", "--resume")
    wait_for(lambda: len(rows(run / "metrics.jsonl")) >= 3, "update 3, after the checkpoint of update 2")
    children = psutil.Process(second.pid).children(recursive=True)
    second.send_signal(signal.SIGKILL)
    second.wait()
    _, alive = psutil.wait_procs(children, timeout=30)
    # Two agents of Ray's own look for their dead raylet for about two minutes before they leave.
    names = {process.name() for process in alive if process.is_running()}
    assert names <= {"ray::DashboardAgent", "ray::RuntimeEnvAgent"}

    launch.finish(launch.start_driver(recipe, tmp_path, "run.name=killed", "--resume"), tmp_path)
    assert weights_digest(run / "model") == weights_digest(uninterrupted / "model")
    resumed, whole = rows(run / "metrics.jsonl"), rows(uninterrupted / "metrics.jsonl")
    assert [without_clock(row) for row in resumed] == [without_clock(row) for row in whole]
    resumed, whole = rows(run / "evaluations.jsonl"), rows(uninterrupted / "evaluations.jsonl")
    assert [without_clock(row) for row in resumed] == [without_clock(row) for row in whole]


def test_killed_and_hung_rollout_workers_and_a_killed_rank_change_nothing_but_time(
    recipe: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    run = tmp_path / "wounded"
    driver = launch.start_driver(recipe, tmp_path, "run.name=wounded", "cluster.rollout_timeout_s=15")

    def send(title: str, what: signal.Signals) -> None:
        launch.ray_workers(title, driver.pid)[0].send_signal(what)

    def wound() -> None:
        wait_for(lambda: len(rows(run / "metrics.jsonl")) >= 1, "update 1")
        send("_RolloutWorker", signal.SIGKILL)
        wait_for(lambda: len(rows(run / "metrics.jsonl")) >= 2, "update 2")
        send("_RolloutWorker", signal.SIGSTOP)  # it hangs from now on
        wait_for(lambda: len(rows(run / "metrics.jsonl")) >= 3, "update 3")
        send("_PolicyWorker", signal.SIGKILL)

    assassin = threading.Thread(target=wound)
    assassin.start()
    launch.finish(driver, tmp_path)
    assassin.join()
    metrics = rows(run / "metrics.jsonl")
    assert metrics[-1]["rollout/restarts"] == 2
    assert "rebuilt" in (run / "events.jsonl").read_text()
    assert weights_digest(run / "model") == weights_digest(uninterrupted / "model")
    whole = rows(uninterrupted / "metrics.jsonl")
    assert [without_clock(row) for row in metrics] == [without_clock(row) for row in whole]


def test_a_resume_with_another_model_size_is_refused(
    recipe: Path, uninterrupted: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    driver = launch.start_driver(
        recipe, uninterrupted.parent, "run.name=whole", "model.init.d_model=64", "--resume"
    )
    assert driver.wait(timeout=60) == 2
    message = max(uninterrupted.parent.glob("driver-*.txt")).read_text()
    assert "model.init.d_model" in message and "32" in message and "64" in message
    assert "Traceback" not in message


def test_the_decode_settings_stand_beside_the_score(uninterrupted: Path) -> None:
    row = rows(uninterrupted / "evaluations.jsonl")[-1]
    assert row["decode"]["greedy"]["temperature"] == 0
    assert row["decode"]["sampled"]["k"] == 2
    assert json.dumps(row["decode"]).count("block_length") == 2


def test_eval_on_the_exported_model_gives_the_score_of_the_loop(
    recipe: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    output = tmp_path / "scores.json"
    command = [str(recipe), "--model", str(uninterrupted / "model"), "--output", str(output)]
    status, text = launch.command("eval", *command)
    assert status == 0, text
    scores = json.loads(output.read_text())
    row = rows(uninterrupted / "evaluations.jsonl")[-1]
    expected = {name: value for name, value in row.items() if name.startswith("eval/")}
    assert scores["metrics"] == pytest.approx(expected)
    assert scores["decode"] == row["decode"]
    assert scores["environment"]["torch"] and len(scores["samples"]) == 8


def test_sample_writes_a_completion_of_the_canvas_length_at_most(uninterrupted: Path) -> None:
    model = str(uninterrupted / "model")
    status, text = launch.command(
        "sample", "--model", model, "--recipe", str(uninterrupted), "--prompt", "3142=", "-n", "2"
    )
    assert status == 0, text
    assert all(len(line) <= 4 and line.strip("0123456789=") == "" for line in text.split("\n"))
    again = launch.command(
        "sample", "--model", model, "--recipe", str(uninterrupted), "--prompt", "3142=", "-n", "2"
    )
    assert again == (status, text)


def test_a_damaged_checkpoint_is_named_and_an_earlier_one_still_works(
    recipe: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    shutil.copytree(uninterrupted, tmp_path / "whole")
    newest = tmp_path / "whole" / "checkpoints" / "step_000004" / "engine"
    for shard in newest.glob("*.pt"):
        shard.write_bytes(shard.read_bytes()[:1000])
    arguments = (
        str(recipe),
        f"run.output_dir={tmp_path}",
        "run.name=whole",
        "trainer.max_steps=5",
        "--resume",
    )
    status, text = launch.command("train", *arguments)
    assert status == 2 and "step_000004" in text and "step=N" in text, text
    status, text = launch.command("train", *arguments, "step=2")
    assert status == 0, text
    assert [row["update"] for row in rows(tmp_path / "whole" / "metrics.jsonl")] == [1, 2, 3, 4, 5]
