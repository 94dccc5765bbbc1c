"""Rollouts drawn while the update before runs, and a reference that follows: they outlive whatever dies."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import launch
import pyarrow.parquet as pq
import pytest
from launch import rows, wait_for, weights_digest, without_clock

pytestmark = pytest.mark.slow

OVERLAPPED = "cluster.schedule=one_step_off"
FOLLOWED = (
    *("algorithm.beta=0.05", "algorithm.sync_ref_model=true", "algorithm.ref_model_sync_steps=1"),
    "trainer.zero_stage=3",  # weights of policy and reference are partitions
)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return launch.write_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module")
def uninterrupted(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("uninterrupted")
    launch.finish(launch.start_driver(recipe, output, "run.name=whole", OVERLAPPED, *FOLLOWED), output)
    return output / "whole"


def columns_of(run: Path, *names: str) -> list[list[list]]:
    """Per update the columns of its rollouts."""
    tables = [
        pq.read_table(path, columns=list(names)) for path in sorted((run / "rollouts").glob("*.parquet"))
    ]
    return [[table.column(name).to_pylist() for name in names] for table in tables]


def test_rollouts_are_one_update_old(uninterrupted: Path) -> None:
    metrics = rows(uninterrupted / "metrics.jsonl")
    assert [row["rollout/staleness"] for row in metrics] == [0, 1, 1, 1]
    versions = [set(version) for (version,) in columns_of(uninterrupted, "policy_version")]
    assert versions == [{0}, {0}, {1}, {2}]
    assert metrics[0]["replay/logprob_abs_diff"] < 1e-5  # of the very weights
    assert all(row["replay/logprob_abs_diff"] > 1e-5 for row in metrics[1:])  # the policy has moved since
    assert (uninterrupted / "checkpoints/step_000002/next_rollouts.parquet").is_file()
    assert not (uninterrupted / "checkpoints/step_000004/next_rollouts.parquet").exists()


def test_the_reference_follows_the_policy(uninterrupted: Path) -> None:
    checkpoints = uninterrupted / "checkpoints"
    references = [checkpoints / f"step_00000{update}" / "reference" for update in (2, 4)]
    folders = (uninterrupted / "warm_start", *references, uninterrupted / "model")
    assert len({weights_digest(folder) for folder in folders}) == 4


def test_where_the_weights_hardly_move_the_schedules_draw_the_same(recipe: Path, tmp_path: Path) -> None:
    still = ("trainer.learning_rate=1e-30", "trainer.max_steps=3", "eval.steps=0")
    found = []
    for name in ("sync", "one_step_off"):
        driver = launch.start_driver(recipe, tmp_path, f"run.name={name}", f"cluster.schedule={name}", *still)
        launch.finish(driver, tmp_path)
        found.append(columns_of(tmp_path / name, "prompt_uid", "completion_ids", "seed", "reward"))
    assert found[0] == found[1]


def test_killed_drivers_workers_and_ranks_change_nothing_but_time(
    recipe: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    run = tmp_path / "wounded"
    first = launch.start_driver(recipe, tmp_path, "run.name=wounded", OVERLAPPED, *FOLLOWED)
    wait_for(lambda: len(rows(run / "metrics.jsonl")) >= 3, "update 3, after the checkpoint of update 2")
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = rows(run / "metrics.jsonl")
    driver = launch.start_driver(recipe, tmp_path, "run.name=wounded", OVERLAPPED, *FOLLOWED, "--resume")

    def wound() -> None:
        wait_for(lambda: rows(run / "metrics.jsonl")[2:] not in ([], before[2:]), "update 3 again")
        for title in ("_RolloutWorker", "_PolicyWorker"):
            launch.ray_workers(title, driver.pid)[0].send_signal(signal.SIGKILL)

    assassin = threading.Thread(target=wound)
    assassin.start()
    launch.finish(driver, tmp_path)
    assassin.join()
    assert "rebuilt" in (run / "events.jsonl").read_text()
    assert weights_digest(run / "model") == weights_digest(uninterrupted / "model")
    whole = [without_clock(row) for row in rows(uninterrupted / "metrics.jsonl")]
    assert [without_clock(row) for row in rows(run / "metrics.jsonl")] == whole
