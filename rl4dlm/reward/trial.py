"""How one function scores one batch: call after call, and what is done about a call that fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rl4dlm.reward.batch import FULL_CALL, Batch
from rl4dlm.reward.runner import Attempt, Runner
from rl4dlm.reward.scores import Outcome


@dataclass
class Pace:
    """What is known of how long the calls of one function take; kept from batch to batch."""

    timeout_s: float
    slow: bool = False
    """It was merely slow on a whole call, no sample being to blame."""

    def deadline(self, count: int) -> float:
        """Seconds that a call with `count` completions may take."""
        return self.timeout_s * (count if self.slow else -(-count // FULL_CALL))


@dataclass
class Patience:
    """How long one function may still keep one batch waiting for samples that fail; shared by threads."""

    left_s: float
    broken: Attempt | None = None
    """Why the function can no longer be loaded."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def exhausted(self) -> bool:
        return self.left_s <= 0

    def spend(self, seconds: float) -> None:
        with self._lock:
            self.left_s -= seconds


@dataclass(frozen=True)
class Trial:
    """One function and one batch."""

    index: int
    """Of the function."""
    name: str
    bounds: tuple[float, float] | None
    """Which it declares."""
    batch: Batch
    pace: Pace
    patience: Patience
    still_open: Callable[[], None]
    """Raises where the pool has been closed meanwhile."""

    def run(self, runner: Runner, parts: Sequence[range]) -> Outcome:
        """One call about the rows of all `parts`; where it fails, part by part, then sample by sample.

        Args:
            parts: rows that belong together, a group each; a single one for a function that compares all.
        """
        outcome = Outcome(self.name, self.bounds)
        rows: list[int] = [row for part in parts for row in part]
        if self.patience.broken:
            return fail_all(outcome, rows, self.patience.broken)
        attempt = self._attempt(runner, rows)
        if attempt.kind is None:
            return accept_all(outcome, rows, attempt)
        if not attempt.loaded:
            self.patience.broken = attempt
        if len(rows) == 1 or not attempt.loaded:
            self.patience.spend(attempt.seconds)
            return fail_all(outcome, rows, attempt)
        for part in parts:
            self.still_open()
            tried = len(parts) == 1 or self.patience.exhausted
            again = attempt if tried else self._attempt(runner, part)
            if again.kind is None:
                accept_all(outcome, part, again)
            else:
                self._isolate(runner, part, again, outcome)
        self._tell(attempt, len(rows), outcome)
        return outcome

    def _isolate(self, runner: Runner, rows: Sequence[int], whole: Attempt, outcome: Outcome) -> None:
        """Find the samples that fail alone, while patience lasts, and score the others together once more:
        what a reward makes of a group is not what it makes of its members one by one."""
        alone: dict[int, Attempt] = {}
        for row in rows:
            self.still_open()
            if self.patience.exhausted:
                outcome.fail(row, whole.kind or "raised", f"{whole.message} (with its call)")
                continue
            attempt = whole if len(rows) == 1 else self._attempt(runner, [row])
            if attempt.kind is None:
                alone[row] = attempt
            else:
                self.patience.spend(attempt.seconds)
                fail_all(outcome, [row], attempt)
        together = self._together(runner, list(alone), len(rows), whole)
        if together is not None and together.kind is None:
            accept_all(outcome, list(alone), together)
            return
        for row, attempt in alone.items():
            accept_all(outcome, [row], attempt)
        if len(alone) > 1:
            outcome.warn(
                f"{whole.kind} in a call",
                f"{whole.message} in a call with {len(rows)} completions, and it does not fail on each "
                f"alone: {len(alone)} were scored one by one, {len(alone)} calls for one. A reward that "
                "compares the completions of a prompt is wrong then.\n"
                "Fix: return one value for each completion of a call, None where it does not apply.",
            )

    def _together(self, runner: Runner, rows: Sequence[int], count: int, whole: Attempt) -> Attempt | None:
        """Samples that do not fail alone in one call; None where that call would be the one that failed."""
        if len(rows) < 2 or (len(rows) == count and whole.kind != "timeout"):
            return None
        attempt = runner.attempt(self.index, self.batch.call(rows), self.pace.timeout_s * len(rows))
        if attempt.kind is not None:
            self.patience.spend(attempt.seconds)
        return attempt

    def _attempt(self, runner: Runner, rows: Sequence[int]) -> Attempt:
        return runner.attempt(self.index, self.batch.call(rows), self.pace.deadline(len(rows)))

    def _tell(self, attempt: Attempt, count: int, outcome: Outcome) -> None:
        """Say that a call was killed though no sample of it fails; from now on the function has more time."""
        if attempt.kind != "timeout" or outcome.failures:
            return
        self.pace.slow = True
        outcome.warn(
            "slow",
            f"{attempt.message} for {count} completions: the call was killed and tried again in parts, which "
            f"all ended. From now on a call has reward.timeout_s = {self.pace.timeout_s:g} s for each of its "
            "completions.\nFix: raise reward.timeout_s where this is its normal speed; lower "
            "reward.groups_per_call, or raise reward.num_processes, to make it faster.",
        )


def accept_all(outcome: Outcome, rows: Sequence[int], attempt: Attempt) -> Outcome:
    """Take the values of a call that worked."""
    for row, value in zip(rows, attempt.values, strict=True):
        outcome.accept(row, value)
    outcome.metrics += [(name, value, len(rows)) for name, value in attempt.metrics]
    for column, values in attempt.extra.items():
        outcome.extra.setdefault(column, {}).update(zip(rows, values, strict=True))
    for misfit in attempt.misfits:
        outcome.warn(
            "log_extra", f"{misfit}; the column is left out.\nFix: give it one value per completion."
        )
    return outcome


def fail_all(outcome: Outcome, rows: Sequence[int], attempt: Attempt) -> Outcome:
    """Note that a call failed for all of its samples."""
    for row in rows:
        outcome.fail(row, attempt.kind or "raised", attempt.message)
    return outcome
