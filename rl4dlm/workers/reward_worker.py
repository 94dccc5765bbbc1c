"""The actor that holds the killable reward processes, and the fan-out over such actors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from rl4dlm.errors import RewardError, Rl4dlmError
from rl4dlm.learner.protocols import Say
from rl4dlm.recipe.sections import RewardConfig
from rl4dlm.reward.entries import absolute_paths
from rl4dlm.reward.pool import RewardPool
from rl4dlm.reward.scores import merge
from rl4dlm.types import Scores
from rl4dlm.workers.placement import Seat, wait_all


class _RewardWorker:
    """A reward pool in an actor of its own, so that scoring can sit on any node."""

    def __init__(self, config: RewardConfig) -> None:
        self._pool = RewardPool(config)

    def score(
        self,
        prompts: list[Any],
        completions: list[str],
        columns: list[dict[str, Any]],
        trajectories: list[dict[str, Any]] | None,
        trainer_state: dict[str, Any],
    ) -> Scores:
        return self._pool.score(prompts, completions, columns, trajectories, trainer_state=trainer_state)

    def close(self) -> None:
        self._pool.close()


RewardWorker: Any = ray.remote(_RewardWorker)


class RewardWorkers:
    """Scores batches over all reward workers; a worker that dies is replaced once per batch."""

    def __init__(self, config: RewardConfig, seats: Sequence[Seat], say: Say) -> None:
        # A worker on another node has another working directory.
        self._config, self._seats, self._say = absolute_paths(config), list(seats), say
        self.workers: list[Any] = []
        try:
            for seat in self._seats:
                self.workers.append(self._spawn(seat))
        except BaseException:
            self.close()
            raise

    def score(
        self,
        prompts: Sequence[Any],
        completions: Sequence[str],
        columns: Sequence[dict[str, Any]],
        trajectories: Sequence[dict[str, Any]] | None,
        *,
        trainer_state: Mapping[str, Any],
    ) -> Scores:
        """Score samples in order.

        Args:
            trainer_state: what functions see under TRL's name, e.g. `{"global_step": 3}`.

        Raises:
            RewardError: a reward worker died twice on the same samples.
            PluginError: a plug-in no longer loads.
        """
        parts = len(self.workers)
        bounds = [len(prompts) * i // parts for i in range(parts + 1)]
        pieces = [
            (
                list(prompts[a:b]),
                list(completions[a:b]),
                list(columns[a:b]),
                None if trajectories is None else list(trajectories[a:b]),
                dict(trainer_state),
            )
            for a, b in zip(bounds[:-1], bounds[1:], strict=True)
        ]
        refs = [worker.score.remote(*piece) for worker, piece in zip(self.workers, pieces, strict=True)]
        return merge([self._collect(i, ref, pieces[i]) for i, ref in enumerate(refs)])

    def _collect(self, index: int, reference: ray.ObjectRef, piece: tuple[Any, ...]) -> Scores:
        # Every sample has its own deadline inside the worker; this bound only catches a worker that is lost.
        bound = 60 + 2 * self._config.timeout_s * (len(piece[0]) + 8) * len(self._config.functions)
        for attempt in range(2):
            try:
                return wait_all([reference], "reward worker to score", bound, self._say)[0]
            except RayActorError as error:
                if attempt:
                    raise RewardError(f"reward worker {index} died twice on one batch: {error}") from error
                self._say(f"reward worker {index} died and is replaced")
                self.workers[index] = self._spawn(self._seats[index])
                reference = self.workers[index].score.remote(*piece)
            except RayTaskError as error:
                if isinstance(error.cause, Rl4dlmError):
                    raise error.cause from error
                raise RewardError(f"reward worker {index} failed: {error.cause}") from error
        raise AssertionError("unreachable")

    def close(self) -> None:
        """End the reward processes, then the workers."""
        for worker in self.workers:
            try:
                ray.get(worker.close.remote(), timeout=10)
            except (RayActorError, ray.exceptions.GetTimeoutError):
                self._say("a reward worker did not end in time and is killed")
            ray.kill(worker)
        self.workers = []

    def _spawn(self, seat: Seat) -> Any:
        return RewardWorker.options(**seat.options()).remote(self._config)
