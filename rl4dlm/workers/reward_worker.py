"""The actor that holds the killable reward processes, and the fan-out over such actors."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from rl4dlm.errors import RewardError, Rl4dlmError
from rl4dlm.learner.protocols import Say
from rl4dlm.recipe.sections import RewardConfig
from rl4dlm.reward.batch import Batch, Groups
from rl4dlm.reward.entries import absolute_paths, entries_of
from rl4dlm.reward.loading import Traits
from rl4dlm.reward.pool import RewardPool, weights_of
from rl4dlm.reward.scores import Outcome, combine
from rl4dlm.types import Scores
from rl4dlm.workers.placement import Seat, wait_all

SILENCE_S = 60.0
"""A worker that does not say for so long that it is alive, or that is so late with a deadline of its own,
hangs."""
_LOOK_EVERY_S = 10.0


class _RewardWorker:
    """A reward pool in an actor of its own, so that scoring can sit on any node.

    It has two threads: one scores, the other one answers `overdue_s` meanwhile.
    """

    def __init__(self, config: RewardConfig) -> None:
        self._pool = RewardPool(config)

    def traits(self) -> list[Traits]:
        return self._pool.traits()

    def outcomes(self, batch: Batch, functions: Sequence[int]) -> list[Outcome]:
        return self._pool.outcomes(batch, functions)

    def overdue_s(self) -> float:
        return self._pool.overdue_s

    def close(self) -> None:
        self._pool.close()


RewardWorker: Any = ray.remote(_RewardWorker)


class _Hangs(Exception):
    """A worker gives no sign of life."""


@dataclass(frozen=True)
class _Part:
    """What one worker is asked for."""

    worker: int
    batch: Batch
    functions: Sequence[int]
    first_row: int
    """Where its rows begin in the whole batch."""


class RewardWorkers:
    """Scores batches over all reward workers; a worker that dies or hangs is replaced once per batch."""

    def __init__(
        self,
        config: RewardConfig,
        seats: Sequence[Seat],
        say: Say,
        *,
        start_timeout_s: float = 300.0,
        silence_s: float = SILENCE_S,
    ) -> None:
        """Start the workers; the first batch waits until they are up.

        Args:
            config: the recipe's section.
            seats: where they sit.
            say: tells what is waited for.
            start_timeout_s: bound on a worker's start, seconds (`cluster.start_timeout_s`).
            silence_s: bound on its silence, seconds.
        """
        # A worker on another node has another working directory.
        self._config, self._seats, self._say = absolute_paths(config), list(seats), say
        self._start_timeout_s, self._silence_s = start_timeout_s, silence_s
        self._weights = weights_of(entries_of(self._config))
        self._traits: list[Traits] | None = None
        self.workers: list[Any] = []
        try:
            for seat in self._seats:
                self.workers.append(self._spawn(seat))
        except BaseException:
            self.close()
            raise

    def score(self, groups: Groups, *, trainer_state: Mapping[str, Any]) -> Scores:
        """Rewards in the order of the flattened groups; see `RewardPool.score`.

        Which completions are called together does not depend on the number of workers.

        Raises:
            RewardError: a reward worker died or hung twice on the same samples.
        """
        batch = Batch.of(groups, trainer_state)
        parts = self._parts(batch)
        started = [self._start(part) for part in parts]
        outcomes = [
            outcome.shifted(part.first_row)
            for part, reference in zip(parts, started, strict=True)
            for outcome in self._collect(part, reference)
        ]
        return combine(len(batch), self._weights, outcomes)

    def _parts(self, batch: Batch) -> list[_Part]:
        """Whole calls, spread over the workers; functions that see the whole batch take turns."""
        whole = [index for index, traits in enumerate(self._known_traits()) if traits.whole_batch]
        others = [index for index in range(len(self._weights)) if index not in whole]
        parts = [_Part(turn % len(self.workers), batch, [index], 0) for turn, index in enumerate(whole)]
        calls, rows = batch.calls(self._config.groups_per_call), batch.group_rows()
        bounds = [len(calls) * i // len(self.workers) for i in range(len(self.workers) + 1)]
        for worker, (a, b) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
            if a < b and others:
                start, stop = calls[a].start, calls[b - 1].stop
                parts.append(_Part(worker, batch.part(start, stop), others, rows[start].start))
        return parts

    def _known_traits(self) -> list[Traits]:
        """What the functions say of themselves, asked of the first worker until it could load them all."""
        if self._traits is None:
            self._wait_up(self.workers)
            found = self._traits_of_first()
            if any(traits.error for traits in found):
                return found
            self._traits = found
        return self._traits

    def _traits_of_first(self) -> list[Traits]:
        for last in (False, True):
            try:
                return self._await(0, self.workers[0].traits.remote(), "load its functions")
            except (RayActorError, _Hangs) as error:
                self._replace(0, error, "while it loaded its functions", last)
        raise AssertionError("unreachable")

    def _start(self, part: _Part) -> ray.ObjectRef:
        return self.workers[part.worker].outcomes.remote(part.batch, part.functions)

    def _collect(self, part: _Part, reference: ray.ObjectRef) -> list[Outcome]:
        for last in (False, True):
            try:
                return self._await(part.worker, reference, f"score {len(part.batch)} completions")
            except (RayActorError, _Hangs) as error:
                self._replace(part.worker, error, "on one batch", last)
                reference = self._start(part)
            except RayTaskError as error:
                if isinstance(error.cause, Rl4dlmError):
                    raise error.cause from error
                raise RewardError(f"reward worker {part.worker} failed: {error.cause}") from error
        raise AssertionError("unreachable")

    def _await(self, index: int, reference: ray.ObjectRef, what: str) -> Any:
        """What a worker answers, however long that takes while it gives signs of life: every call of a
        function has a deadline inside the worker.

        Raises:
            _Hangs: it gives none.
            RayActorError: it died.
            RayTaskError: it raised.
        """
        worker, began = self.workers[index], time.monotonic()
        while not ray.wait([reference], timeout=min(_LOOK_EVERY_S, self._silence_s))[0]:
            try:
                overdue_s = ray.get(worker.overdue_s.remote(), timeout=self._silence_s)
            except GetTimeoutError:
                raise _Hangs(f"no sign of life for {self._silence_s:g} s") from None
            if overdue_s > self._silence_s:
                raise _Hangs(f"{overdue_s:.0f} s behind a deadline of its own")
            self._say(f"waiting for reward worker {index} to {what}: {time.monotonic() - began:.0f} s")
        return ray.get(reference)

    def _replace(self, index: int, reason: Exception, when: str, last: bool) -> None:
        """A new worker in the seat of one that died or hangs.

        Raises:
            RewardError: it is the second one.
        """
        hangs = isinstance(reason, _Hangs)
        if last:
            raise RewardError(
                f"reward worker {index} {'hung' if hangs else 'died'} twice {when}: {reason}.\n"
                "Fix: look for memory pressure or a failing node; then --resume."
            ) from reason
        self._say(f"reward worker {index} {f'hangs ({reason})' if hangs else 'died'} and is replaced")
        if hangs:
            ray.kill(self.workers[index])
        self.workers[index] = self._spawn(self._seats[index])
        self._wait_up([self.workers[index]])

    def _wait_up(self, workers: Sequence[Any]) -> None:
        """Until each of them answers; a worker that dies meanwhile is seen to by who asks it for something.

        Raises:
            RunError: not within `cluster.start_timeout_s`.
        """
        with suppress(RayActorError):
            answers = [worker.overdue_s.remote() for worker in workers]
            wait_all(answers, "reward workers to start", self._start_timeout_s, self._say)

    def close(self) -> None:
        """End the reward processes, then the workers."""
        for worker in self.workers:
            try:
                ray.get(worker.close.remote(), timeout=10)
            except (RayActorError, GetTimeoutError):
                self._say("a reward worker did not end in time and is killed")
            ray.kill(worker)
        self.workers = []

    def _spawn(self, seat: Seat) -> Any:
        return RewardWorker.options(**seat.options(), max_concurrency=2).remote(self._config)
