"""The rollouts of an update, drawn now or ahead."""

from __future__ import annotations

import threading
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import tiny_groups, tiny_scores

from rl4dlm.errors import CheckpointError, RolloutError
from rl4dlm.loops.rollouts import Ahead
from rl4dlm.run.rollout_files import Drawn, load_drawn, require_fresh, save_drawn
from rl4dlm.run.rollout_metrics import rollout_metrics
from rl4dlm.types import RolloutGroup


@pytest.fixture
def groups() -> list[RolloutGroup]:
    return tiny_groups()


def aged(groups: list[RolloutGroup], version: int) -> list[RolloutGroup]:
    """The same, drawn by the weights of a version."""
    return [
        replace(group, rollouts=tuple(replace(one, policy_version=version) for one in group.rollouts))
        for group in groups
    ]


def test_rollouts_are_drawn_while_something_else_runs(groups: list[RolloutGroup]) -> None:
    begun, may_end, asked = threading.Event(), threading.Event(), []

    def draw(update: int, version: int) -> Drawn:
        asked.append((update, version, threading.current_thread() is threading.main_thread()))
        begun.set()
        assert may_end.wait(10)
        return Drawn(groups, version, 0.5)

    ahead = Ahead(draw)
    assert ahead.wait() is None and ahead.take(1) is None
    ahead.start(2, 0)
    assert begun.wait(10)
    may_end.set()
    assert ahead.wait() == ahead.wait() == Drawn(groups, 0, 0.5)  # it stays until it is taken
    assert ahead.take(2) == Drawn(groups, 0, 0.5)
    assert ahead.take(2) is None
    ahead.start(3, 1)
    assert ahead.take(7) is None and ahead.wait() is None  # another update's are dropped
    ahead.close()
    assert asked == [(2, 0, False), (3, 1, False)]


def test_what_went_wrong_while_drawing_is_told_to_who_waits_and_forgotten_when_dropped() -> None:
    def draw(update: int, version: int) -> Drawn:
        raise RolloutError(f"no rollouts for update {update}")

    ahead = Ahead(draw)
    ahead.start(2, 0)
    with pytest.raises(RolloutError, match="update 2"):
        ahead.wait()
    ahead.drop()
    assert ahead.wait() is None
    ahead.start(3, 1)
    with pytest.raises(RolloutError, match="update 3"):
        ahead.take(3)
    ahead.close()


@pytest.mark.parametrize(
    ("schedule", "drawn", "version", "fine"),
    [
        ("sync", 4, 4, True),
        ("sync", 3, 4, False),
        ("one_step_off", 4, 4, True),
        ("one_step_off", 3, 4, True),
        ("one_step_off", 2, 4, False),
        ("one_step_off", 5, 4, False),
    ],
)
def test_older_rollouts_than_the_schedule_allows_are_refused(
    groups: list[RolloutGroup], schedule: str, drawn: int, version: int, fine: bool
) -> None:
    found = Drawn(aged(groups, drawn), drawn, 0.0)
    if fine:
        return require_fresh(found, version, schedule)
    with pytest.raises(
        RolloutError, match=rf"(?s)update {drawn}.*schedule = {schedule}.*update {version}.*Fix"
    ):
        require_fresh(found, version, schedule)


def test_rollouts_survive_a_checkpoint(groups: list[RolloutGroup], tmp_path: Path) -> None:
    drawn = Drawn(aged(groups, 6), 6, 2.5)
    save_drawn(drawn, 8, tmp_path / "next.parquet")
    found = load_drawn(tmp_path / "next.parquet", [group.prompt for group in groups])
    assert (found.version, found.seconds) == (6, 0.0)
    for one, other in zip(drawn.groups, found.groups, strict=True):
        assert one.prompt == other.prompt
        for before, after in zip(one.rollouts, other.rollouts, strict=True):
            require_equal(before, after)


@pytest.mark.parametrize("damage", ["cut", "emptied"])
def test_damaged_rollouts_of_a_checkpoint_are_named(
    groups: list[RolloutGroup], tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "next.parquet"
    save_drawn(Drawn(groups, 0, 0.0), 1, path)
    path.write_bytes(path.read_bytes()[: 300 if damage == "cut" else 0])
    with pytest.raises(CheckpointError, match=r"next.parquet: cannot be read: (.|\n)*Fix: delete the file"):
        load_drawn(path, [group.prompt for group in groups])


def require_equal(before: Any, after: Any) -> None:
    """Records are equal down to their arrays."""
    if is_dataclass(before):
        for part in fields(before):
            require_equal(getattr(before, part.name), getattr(after, part.name))
    else:
        np.testing.assert_array_equal(before, after)


def test_speed_is_told_where_it_is_known(groups: list[RolloutGroup]) -> None:
    scores = tiny_scores([0.0, 1.0] * 6)
    correct = scores.reward > 0
    canvas = sum(len(rollout.completion_ids) for group in groups for rollout in group.rollouts)
    timed = rollout_metrics(groups, scores, correct, 0.25)
    assert timed["rollout/tokens_per_s"] == pytest.approx(canvas * 4)
    assert "rollout/tokens_per_s" not in rollout_metrics(groups, scores, correct, 0.0)
