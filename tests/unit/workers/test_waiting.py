"""Waits speak, have the bound that they were given, and name who died. Ray's answers are stood in for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest
import ray
from ray.exceptions import GetTimeoutError, RayActorError

from rl4dlm.workers import placement, policy_group
from rl4dlm.workers.placement import WaitedTooLong, wait_all


class Answer:
    """A reference that is ready after some seconds, or whose actor is dead."""

    def __init__(self, ready_s: float = 0.0, dead: bool = False) -> None:
        self.at, self.dead = time.monotonic() + ready_s, dead


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(refs: Sequence[Answer], num_returns: int, timeout: float) -> tuple[list[Answer], list[Answer]]:
        deadline = time.monotonic() + timeout
        while not (ready := [r for r in refs if r.at <= time.monotonic()]) and time.monotonic() < deadline:
            time.sleep(0.005)
        return ready[:1], [r for r in refs if r not in ready[:1]]

    def get(refs: Any, timeout: float | None = None) -> Any:
        for reference in refs if isinstance(refs, list) else [refs]:
            if reference.dead:
                raise RayActorError
            if timeout is not None and reference.at > time.monotonic() + timeout:
                raise GetTimeoutError
        return refs

    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(placement, "SAY_EVERY_S", 0.1)


def test_a_wait_says_what_it_waits_for_and_how_many_are_ready() -> None:
    said: list[str] = []
    wait_all([Answer(), Answer(0.35)], "2 ranks to start", 5.0, said.append)
    assert len(said) >= 2 and said[0].startswith("waiting for 2 ranks to start: 1 of 2 ready after")


def test_the_bound_is_the_one_that_was_given() -> None:
    began = time.monotonic()
    with pytest.raises(WaitedTooLong, match="sync: 0 of 1 ready after 0 s; given up"):
        wait_all([Answer(60.0)], "sync", 0.25, lambda text: None)
    assert 0.25 <= time.monotonic() - began < 0.34  # not up to the next time that it speaks


def test_the_ranks_that_died_are_named() -> None:
    refs: list[Any] = [Answer(), Answer(dead=True), Answer(60.0), Answer(dead=True)]
    assert policy_group._dead(refs) == "trainer rank 1, 3"
    assert policy_group._dead(refs[:1]) == "a trainer rank"
