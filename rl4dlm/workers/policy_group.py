"""The driver's view of all ranks of the policy: one call goes to every rank."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayActorError, RayTaskError

from rl4dlm.errors import Rl4dlmError, RunError, UpdateError
from rl4dlm.learner.protocols import RankDied, Say
from rl4dlm.learner.weight_sync import Manifest
from rl4dlm.loss.reduce import finish_metrics, merge_metrics
from rl4dlm.loss.value import with_explained_variance
from rl4dlm.recipe import AnyRecipe
from rl4dlm.trainers.method import Metrics
from rl4dlm.trainers.sft import SFTBatch
from rl4dlm.types import Rollout, TrainBatch
from rl4dlm.workers.placement import Seat, wait_all, worker_environment
from rl4dlm.workers.policy_worker import PolicyWorker


class PolicyGroup:
    """All DeepSpeed ranks. A rank that dies takes the others with it: `start` begins anew."""

    def __init__(self, recipe: AnyRecipe, seats: Sequence[Seat], say: Say) -> None:
        self._recipe, self._seats, self._say = recipe, list(seats), say
        self.ranks: list[Any] = []

    def start(self) -> None:
        """Start all ranks, those of before killed, and form the process group.

        Raises:
            RankDied: a rank could not start.
        """
        self.kill()
        environment = {"env_vars": worker_environment(self._recipe.cluster.threads_per_worker)}
        for rank, seat in enumerate(self._seats):
            actor = PolicyWorker.options(**seat.options(), runtime_env=environment)
            self.ranks.append(actor.remote(self._recipe, rank))
        start_s = self._recipe.cluster.start_timeout_s
        address, port = self._wait([self.ranks[0].address.remote()], "trainer rank 0 to start", start_s)[0]
        self._all("join", f"{len(self.ranks)} trainer ranks to meet", start_s, address, port)

    def load(self, model_path: str, supervised: bool = False, weight_decay: float | None = None) -> int:
        """Give every rank its engine; returns the number of trainable parameters."""
        what = f"{len(self.ranks)} trainer ranks to load the model"
        start_s = self._recipe.cluster.start_timeout_s
        return int(self._all("load", what, start_s, model_path, supervised, weight_decay)[0])

    def update(self, batch: TrainBatch, update: int) -> Metrics:
        """One update over all ranks; returns the metrics of the whole.

        Raises:
            RankDied: a rank died or did not answer within `cluster.update_timeout_s`.
            UpdateError: a loss or a gradient is not finite.
        """
        return with_explained_variance(self._summed("update", f"update {update}", ray.put(batch), update))

    def sft(self, batches: Sequence[SFTBatch], rates: Sequence[float], what: str) -> list[Metrics]:
        """Some steps of supervised fine-tuning; the metrics of each."""
        parts = self._all("sft", what, self._bound, ray.put(list(batches)), list(rates))
        return [finish_metrics(merge_metrics(step)) for step in zip(*parts, strict=True)]

    def held_out(self, batch: SFTBatch) -> np.ndarray:
        """Negative log-likelihood estimates of held-out rows, float64 `[rows]`, nats."""
        parts = self._all("held_out", "the held-out likelihood", self._bound, ray.put(batch))
        return np.sum(parts, axis=0)

    def replay_gap(
        self, rollouts: Sequence[Rollout], temperature: float, block_length: int | None = None
    ) -> float:
        """Mean |log-prob of the trainer - log-prob that the sampler recorded| over some recorded tokens,
        nats."""
        arguments = (list(rollouts), temperature, block_length)
        total, count = self._all("replay_gap", "replay check", self._bound, *arguments)[0]
        return total / max(1, count)

    def publish(self, version: int) -> Manifest:
        """The current weights, in the object store."""
        manifest = self._all("publish", f"weights of version {version}", self._bound, version)[0]
        assert isinstance(manifest, Manifest)
        return manifest

    def export(self, folder: Path) -> None:
        """Write a plain Hugging Face folder."""
        self._all("export", f"export to {folder}", self._bound, str(folder.resolve()))

    def save(self, folder: Path) -> None:
        """Write a checkpoint's parts into a folder."""
        self._all("save", f"checkpoint {folder.name}", self._bound, str(folder.resolve()))

    def restore(self, folder: Path) -> None:
        """Read weights and optimizer from a checkpoint's folder."""
        self._all("restore", f"checkpoint {folder.name}", self._bound, str(folder.resolve()))

    def close(self) -> None:
        """Leave in order."""
        try:
            self._all("close", "trainer ranks to leave", 30.0)
        finally:
            self.kill()

    def kill(self) -> None:
        """End the ranks at once."""
        while self.ranks:
            ray.kill(self.ranks.pop())

    @property
    def _bound(self) -> float:
        return self._recipe.cluster.update_timeout_s

    def _summed(self, method: str, what: str, *arguments: Any) -> Metrics:
        return finish_metrics(merge_metrics(self._all(method, what, self._bound, *arguments)))

    def _all(self, method: str, what: str, timeout_s: float, *arguments: Any) -> list[Any]:
        return self._wait([getattr(rank, method).remote(*arguments) for rank in self.ranks], what, timeout_s)

    def _wait(self, refs: list[ray.ObjectRef], what: str, timeout_s: float) -> list[Any]:
        try:
            return wait_all(refs, what, timeout_s, self._say)
        except RayActorError as error:
            raise RankDied(f"{_dead(refs)} died during {what}") from error
        except RayTaskError as error:
            raise self._own_cause(refs, error, what) from error
        except RunError as error:
            raise RankDied(str(error)) from error

    def _own_cause(self, refs: Sequence[ray.ObjectRef], error: RayTaskError, what: str) -> Rl4dlmError:
        """The reason among the failures of all ranks: ours, a death, else the first.

        When one rank dies the others report a broken collective, which is not the cause.
        """
        for reference in refs:
            try:
                ray.get(reference, timeout=5)
            except RayTaskError as other:
                if isinstance(other.cause, Rl4dlmError):
                    return other.cause
            except RayActorError:
                return RankDied(f"{_dead(refs)} died during {what}")
            except ray.exceptions.GetTimeoutError:
                continue
        first = str(error.cause or error).strip().splitlines()
        return UpdateError(
            f"{what} failed on a trainer rank: {first[0] if first else type(error.cause).__name__}"
        )


def _dead(refs: Sequence[ray.ObjectRef]) -> str:
    """Which ranks are gone, for messages; `refs` are one answer of each, in their order."""
    dead = []
    for rank, reference in enumerate(refs):
        try:
            ray.get(reference, timeout=0)
        except RayActorError:
            dead.append(str(rank))
        except (RayTaskError, ray.exceptions.GetTimeoutError):
            continue
    return f"trainer rank {', '.join(dead)}" if dead else "a trainer rank"
