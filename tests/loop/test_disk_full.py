"""A disk that fills up while a checkpoint is saved: one message, and what was complete stays."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import launch
import pytest
from launch import rows, wait_for

from rl4dlm.run.folder import RunFolder

pytestmark = pytest.mark.slow


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB; making one takes root."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if os.geteuid() != 0 or mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_stops_the_run_and_keeps_the_last_good_checkpoint(
    small_disk: Path, tmp_path: Path
) -> None:
    recipe = launch.write_recipe(tmp_path)
    driver = launch.start_driver(
        recipe, small_disk, "run.name=full", "trainer.max_steps=50", "trainer.save_total_limit=1"
    )
    run = small_disk / "full"
    wait_for(lambda: len(rows(run / "metrics.jsonl")) >= 2, "the first checkpoint")
    wait_for(lambda: RunFolder(run).find() is not None, "the first checkpoint")
    first = RunFolder(run).find()
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    (small_disk / "ballast").write_bytes(b"\0" * max(0, free - 40_000))
    assert driver.wait(timeout=240) == 2
    (small_disk / "ballast").unlink()
    message = (small_disk / min(p.name for p in small_disk.glob("driver-*.txt"))).read_text()
    assert "No space left" in message or "could not be written" in message
    kept = RunFolder(run).find()
    assert first is not None and kept is not None and kept.update >= first.update
    assert launch.weights_digest(kept.parts.model)
    assert not list((run / "checkpoints").glob(".unfinished_*"))
