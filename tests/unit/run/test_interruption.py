"""Signals that end a run: what is under way may finish, within bounds."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from rl4dlm.errors import Interrupted
from rl4dlm.run.interruption import SIGNALS, Interruption


@pytest.fixture
def interruption() -> Iterator[Interruption]:
    with Interruption(grace_s=5.0).watched() as watched:
        yield watched


def send(number: int) -> None:
    """A signal to this process, which has it when this returns."""
    os.kill(os.getpid(), number)
    time.sleep(0)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_turn_finishes_and_the_run_leaves_behind_it(number: int, interruption: Interruption) -> None:
    done = False
    with pytest.raises(Interrupted) as caught, interruption.turn():
        send(number)
        done = interruption.asked
    assert done and caught.value.exit_code == 128 + number


def test_outside_a_turn_the_run_leaves_at_once(interruption: Interruption) -> None:
    with pytest.raises(Interrupted, match="interrupted by SIGTERM"):
        send(signal.SIGTERM)
        pytest.fail("the run went on")
    with pytest.raises(Interrupted), interruption.turn():
        pytest.fail("another turn began")


def test_a_second_signal_ends_the_turn_at_once(interruption: Interruption) -> None:
    with pytest.raises(Interrupted), interruption.turn():
        send(signal.SIGINT)
        send(signal.SIGINT)
        pytest.fail("the turn went on")


def test_the_turn_ends_with_the_grace_period() -> None:
    began = time.monotonic()
    with Interruption(0.2).watched() as watched, pytest.raises(Interrupted), watched.turn():
        send(signal.SIGTERM)
        time.sleep(20)
    assert time.monotonic() - began < 10


def test_without_a_grace_period_the_turn_ends_at_once() -> None:
    with Interruption(0.0).watched() as watched, pytest.raises(Interrupted), watched.turn():
        send(signal.SIGTERM)
        pytest.fail("the turn went on")


def test_an_interruption_is_no_exception_that_a_handler_takes_for_a_failure() -> None:
    assert not issubclass(Interrupted, Exception)


def test_the_handlers_before_are_back_afterwards() -> None:
    def mine(number: int, frame: object) -> None: ...

    before = signal.signal(signal.SIGTERM, mine)
    try:
        with Interruption(1.0).watched() as watched:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as a library may
            watched.take_over()
            assert signal.getsignal(signal.SIGTERM) not in (mine, signal.SIG_DFL)
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_thread_that_may_not_set_handlers_runs_all_the_same() -> None:
    finished = []

    def work() -> None:
        with Interruption(1.0).watched() as watched, watched.turn():
            finished.append(watched.asked)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert finished == [False]
