"""Signals that end a run: the turn under way may finish and be saved within a grace period, then the run
leaves."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from rl4dlm.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interruption:
    """What has been asked of a run by signals.

    Example: `with Interruption(60.0).watched() as interruption, interruption.turn(): ...`
    """

    def __init__(self, grace_s: float) -> None:
        """
        Args:
            grace_s: how long a turn may take after a signal; 0: no time at all.
        """
        self._grace_s, self._in_turn = grace_s, False
        self.signal: signal.Signals | None = None
        """The first one that came."""

    @property
    def asked(self) -> bool:
        """Whether the run is to end."""
        return self.signal is not None

    @contextmanager
    def watched(self) -> Iterator[Interruption]:
        """Take the signals over until the block ends; in another thread than the main one they stay as they
        are."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        taken = (*SIGNALS, signal.SIGALRM)
        before = {number: signal.getsignal(number) for number in taken}
        self.take_over()
        try:
            yield self
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in before.items():
                signal.signal(number, handler)

    def take_over(self) -> None:
        """Install the handlers, again where a library has replaced them."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._arrived)
            signal.signal(signal.SIGALRM, self._expired)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """A stretch that is let finish after a signal.

        Raises:
            Interrupted: a signal came, now or before; or a second one, or the grace period ended on the way.
        """
        self.leave()
        self._in_turn = True
        try:
            yield
        finally:
            self._in_turn = False
        self.leave()

    def leave(self) -> None:
        """End the run here if it was asked to.

        Raises:
            Interrupted: it was.
        """
        if self.signal is not None:
            raise Interrupted(self.signal)

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        again, self.signal = self.signal is not None, signal.Signals(number)
        if number == signal.SIGHUP:
            _detach_terminal()
        if again or not self._in_turn or not self._grace_s:
            raise Interrupted(self.signal)
        signal.setitimer(signal.ITIMER_REAL, self._grace_s)
        _tell(
            f"{self.signal.name}: this update is finished and saved if that takes at most "
            f"{self._grace_s:g} s (run.save_on_signal); a second signal ends the run at once"
        )

    def _expired(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise Interrupted(self.signal)


def _tell(text: str) -> None:
    """Past Python's streams: a signal may have come while one of them was writing."""
    with suppress(OSError):
        os.write(2, f"rl4dlm: {text}\n".encode())


def _detach_terminal() -> None:
    """Writing to a terminal that has gone fails, and would end the run in place of the signal."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream.isatty():
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        except (OSError, ValueError):
            continue  # not a file, or closed already
