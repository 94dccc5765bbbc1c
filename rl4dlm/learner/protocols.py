"""What a loop asks of those who do a run's work, wherever they are: policy, sampler, scorer, and who has
them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import numpy as np

from rl4dlm.decoding import SamplerSpec
from rl4dlm.errors import RunError
from rl4dlm.learner.weight_sync import Manifest
from rl4dlm.recipe.sections import RewardConfig
from rl4dlm.reward.rollout_scores import Scorer
from rl4dlm.rollout import Request
from rl4dlm.trainers.method import Metrics
from rl4dlm.trainers.sft import SFTBatch
from rl4dlm.types import Rollout, TrainBatch

Say = Callable[[str], None]
"""Tells what is being done or waited for."""


class RankDied(RunError):
    """A rank is gone or hangs: all ranks must be started again and restored from a checkpoint."""


class Policy(Protocol):
    """What is trained: all of its ranks, as one. Metrics are those of the whole.

    Every method may raise RankDied.
    """

    def start(self) -> None:
        """Bring the ranks up, also again after one has died; they hold no model yet."""
        ...

    def load(self, model_path: str, supervised: bool = False, weight_decay: float | None = None) -> int:
        """Take a model folder's weights, with a new optimizer; the number of trainable parameters.

        Args:
            supervised: for `sft`, without a method and a reference.
            weight_decay: None: the recipe's.
        """
        ...

    def update(self, batch: TrainBatch, update: int) -> Metrics:
        """All optimizer steps on one batch of rollouts.

        Raises:
            UpdateError: a loss or a gradient is not finite.
        """
        ...

    def sft(self, batches: Sequence[SFTBatch], rates: Sequence[float], what: str) -> list[Metrics]:
        """Supervised steps with their learning rates; the metrics of each. `what` names them in messages."""
        ...

    def held_out(self, batch: SFTBatch) -> np.ndarray:
        """Negative log-likelihood estimates of held-out rows, float64 `[rows]`, nats."""
        ...

    def replay_gap(
        self, rollouts: Sequence[Rollout], temperature: float, block_length: int | None = None
    ) -> float:
        """Mean |log-prob of the trainer - log-prob that the sampler recorded| over recorded tokens, nats."""
        ...

    def publish(self, version: int) -> Manifest:
        """The current weights, for samplers."""
        ...

    def export(self, folder: Path) -> None:
        """Write what was trained as a folder that others read."""
        ...

    def save(self, folder: Path) -> None:
        """Write a checkpoint's parts into a folder."""
        ...

    def restore(self, folder: Path) -> None:
        """Take weights and optimizer from a checkpoint's folder.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        ...

    def close(self) -> None:
        """Leave in order."""
        ...

    def kill(self) -> None:
        """End the ranks at once; harmless where they have ended."""
        ...


class Sampler(Protocol):
    """Whoever samples, as one."""

    restarts: int
    """Workers that were replaced over the run."""

    def wait_ready(self) -> None:
        """Block until the model is loaded."""
        ...

    def accept_loaded(self, version: int) -> None:
        """Sample with the weights of the model folder as `version`: evaluation without a policy."""
        ...

    def sync(self, manifest: Manifest) -> None:
        """Take over published weights.

        Raises:
            SyncError, RolloutError: that was not possible.
        """
        ...

    def generate(self, requests: Sequence[Request], spec: SamplerSpec, version: int) -> list[Rollout]:
        """Sample all requests, in their order, with the weights of a version.

        Raises:
            SyncError: other weights are held.
            RolloutError: sampling failed.
        """
        ...

    def close(self) -> None:
        """End the workers, and with an error whatever is being sampled in another thread."""
        ...


class ScoringWorkers(Scorer, Protocol):
    """Whoever scores, as one."""

    def close(self) -> None:
        """End the reward processes."""
        ...


class Workers(Protocol):
    """Those who do a run's work, on resources that are held for them."""

    def describe(self) -> list[str]:
        """One line per kind of worker: how many, with what, where."""
        ...

    def policy(self) -> Policy:
        """The ranks that train; none is started yet."""
        ...

    def sampler(self, model_path: str) -> Sampler:
        """Begin to load a model folder where sampling is done."""
        ...

    def scorer(self, reward: RewardConfig) -> ScoringWorkers:
        """Reward functions, ready to score."""
        ...


Reserve = Callable[[Say], AbstractContextManager[Workers]]
"""Holds a run's resources while the block lasts."""
