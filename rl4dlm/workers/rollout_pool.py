"""Fan-out of rollouts over workers, surviving the loss of any of them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError

from rl4dlm.decoding import SamplerSpec
from rl4dlm.errors import Rl4dlmError, RolloutError
from rl4dlm.learner.protocols import Say
from rl4dlm.learner.weight_sync import Manifest
from rl4dlm.recipe import AnyRecipe
from rl4dlm.rollout import Request
from rl4dlm.types import Rollout
from rl4dlm.workers.placement import SAY_EVERY_S, Seat, WaitedTooLong, wait_all, worker_environment
from rl4dlm.workers.rollout_worker import RolloutWorker


@dataclass
class _Task:
    chunk: int
    worker: int
    deadline: float


class RolloutPool:
    """Rollout workers, and what it takes to keep them sampling with the right weights.

    Requests are cut into one chunk per worker of the recipe, whoever runs it: the result does not depend on
    which worker drew a chunk or on whether one died.
    """

    def __init__(self, recipe: AnyRecipe, model_path: str, seats: Sequence[Seat], say: Say) -> None:
        self._recipe, self._model_path, self._seats, self._say = recipe, model_path, list(seats), say
        self._manifest: Manifest | None = None
        self._loaded_version: int | None = None
        self.restarts = 0
        self._closed = False
        self.workers: list[Any] = []
        try:
            for seat in self._seats:
                self.workers.append(self._spawn(seat))
        except BaseException:
            self.close()
            raise

    def wait_ready(self) -> None:
        """Block until every worker has its model.

        Raises:
            RolloutError: a worker could not start.
        """
        refs = [worker.ready.remote() for worker in self.workers]
        try:
            wait_all(refs, f"{len(refs)} rollout workers to load the model", self._start_timeout, self._say)
        except (RayActorError, RayTaskError) as error:
            raise _cause(error, "a rollout worker could not start") from error

    def accept_loaded(self, version: int) -> None:
        """Sample with the weights of the model folder as `version`: evaluation without a trainer."""
        self._loaded_version = version
        refs = [worker.accept_loaded.remote(version) for worker in self.workers]
        wait_all(refs, f"{len(refs)} rollout workers to answer", self._start_timeout, self._say)

    def sync(self, manifest: Manifest) -> None:
        """Bring every worker to the published weights; one that dies meanwhile is replaced.

        Raises:
            SyncError, RolloutError: a worker cannot be brought there.
        """
        self._manifest = manifest
        refs = [worker.sync.remote(manifest) for worker in self.workers]
        deadline = time.monotonic() + self._timeout
        for index, ref in enumerate(refs):
            what = f"rollout worker {index} to load the weights of update {manifest.version}"
            try:
                wait_all([ref], what, max(0.0, deadline - time.monotonic()), self._say)
            except (RayActorError, WaitedTooLong) as error:
                self._replace(index, error)
            except RayTaskError as error:
                raise _cause(error, "weight sync failed") from error

    def generate(self, requests: Sequence[Request], spec: SamplerSpec, version: int) -> list[Rollout]:
        """Sample all requests, in their order.

        Raises:
            RolloutError: workers died more often than `cluster.max_rollout_restarts`, or sampling itself
                failed.
        """
        chunks = _split(requests, len(self._seats))
        results: list[list[Rollout] | None] = [None] * len(chunks)
        waiting, idle = deque(range(len(chunks))), deque(range(len(self.workers)))
        running: dict[ray.ObjectRef, _Task] = {}
        began = last_said = time.monotonic()
        while waiting or running:
            while waiting and idle:
                chunk, worker = waiting.popleft(), idle.popleft()
                reference = self.workers[worker].generate.remote(chunks[chunk], spec, version)
                running[reference] = _Task(chunk, worker, time.monotonic() + self._timeout)
            soonest = min(task.deadline for task in running.values())
            pause = min(soonest - time.monotonic(), SAY_EVERY_S)
            ready, _ = ray.wait(list(running), timeout=max(0.0, pause))
            if time.monotonic() - last_said >= SAY_EVERY_S:
                last_said = time.monotonic()
                done = sum(result is not None for result in results)
                self._say(
                    f"waiting for rollouts: {done} of {len(chunks)} parts ready "
                    f"after {last_said - began:.0f} s"
                )
            for reference in ready:
                task = running.pop(reference)
                results[task.chunk] = self._collect(reference, task, waiting)
                idle.append(task.worker)
            for reference in [r for r, task in running.items() if time.monotonic() > task.deadline]:
                task = running.pop(reference)
                self._replace(task.worker, TimeoutError(f"no answer within {self._timeout:g} s"))
                waiting.appendleft(task.chunk)
                idle.append(task.worker)
        return [rollout for chunk in results if chunk is not None for rollout in chunk]

    def _collect(self, reference: ray.ObjectRef, task: _Task, waiting: deque[int]) -> list[Rollout] | None:
        try:
            return ray.get(reference)
        except RayActorError as error:
            self._replace(task.worker, error)
            waiting.appendleft(task.chunk)
            return None
        except RayTaskError as error:
            raise _cause(error, "sampling failed") from error

    def close(self) -> None:
        """End the workers, and with an error whatever is being sampled in another thread."""
        self._closed = True
        for worker in self.workers:
            ray.kill(worker)

    @property
    def _timeout(self) -> float:
        return self._recipe.cluster.rollout_timeout_s

    @property
    def _start_timeout(self) -> float:
        return self._recipe.cluster.start_timeout_s

    def _spawn(self, seat: Seat) -> Any:
        environment = {"env_vars": worker_environment(self._recipe.cluster.threads_per_worker)}
        return RolloutWorker.options(**seat.options(), runtime_env=environment).remote(
            self._recipe, self._model_path
        )

    def _replace(self, index: int, reason: BaseException) -> None:
        """A fresh worker in the dead one's seat, brought to the current weights."""
        if self._closed:
            raise RolloutError("the run has ended.") from reason
        self.restarts += 1
        if self.restarts > self._recipe.cluster.max_rollout_restarts:
            raise RolloutError(
                f"rollout worker {index} died ({_first_line(reason)}), restart {self.restarts} of at most "
                f"cluster.max_rollout_restarts = {self._recipe.cluster.max_rollout_restarts}.\n"
                "Fix: look for memory pressure (rollout.slots) or a failing node."
            ) from reason
        self._say(f"rollout worker {index} is replaced ({_first_line(reason)})")
        if not isinstance(reason, ActorUnavailableError | RayActorError):
            ray.kill(self.workers[index])
        worker = self.workers[index] = self._spawn(self._seats[index])
        if self._manifest is not None:
            reference = worker.sync.remote(self._manifest)
        else:
            reference = worker.accept_loaded.remote(self._loaded_version)
        try:
            wait_all([reference], f"rollout worker {index} to restart", self._start_timeout, self._say)
        except RayActorError as error:
            self._replace(index, error)
        except RayTaskError as error:
            raise _cause(error, "a replaced rollout worker could not be synced") from error


def _split(requests: Sequence[Request], parts: int) -> list[Sequence[Request]]:
    """Contiguous chunks of nearly equal size, none empty."""
    bounds = [len(requests) * i // parts for i in range(parts + 1)]
    return [requests[a:b] for a, b in zip(bounds[:-1], bounds[1:], strict=True) if b > a]


def _cause(error: BaseException, what: str) -> Rl4dlmError:
    """Our own error inside a worker's, or a RolloutError that names it."""
    inner = getattr(error, "cause", None)
    if isinstance(inner, Rl4dlmError):
        return inner
    return RolloutError(f"{what}: {_first_line(inner or error)}")


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
