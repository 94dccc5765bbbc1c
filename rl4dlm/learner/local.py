"""All of a run's work in this process, by torch alone: what a debugger, a notebook and one GPU want.

The same pure work as on a cluster: one rank of the policy, a sampler on its very weights, reward functions in
killable processes. Neither Ray nor DeepSpeed is imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch.utils import deterministic

from rl4dlm.decoding import SamplerSpec
from rl4dlm.learner.engine import PlainNetworks
from rl4dlm.learner.protocols import Reserve, Say
from rl4dlm.learner.rank import set_up_torch
from rl4dlm.learner.sampling import PolicySampler, open_sampler
from rl4dlm.learner.unmask_rank import freezes_model, make_rank
from rl4dlm.learner.weight_sync import Manifest
from rl4dlm.loss.reduce import finish_metrics, merge_metrics
from rl4dlm.loss.value import with_explained_variance
from rl4dlm.models import trainable_state
from rl4dlm.recipe import AnyRecipe
from rl4dlm.recipe.sections import RewardConfig
from rl4dlm.reward.pool import RewardPool
from rl4dlm.rollout import Request
from rl4dlm.trainers.method import Metrics
from rl4dlm.trainers.sft import SFTBatch
from rl4dlm.types import Rollout, TrainBatch


@contextmanager
def this_process(recipe: AnyRecipe) -> Iterator[Reserve]:
    """This process, with the recipe's threads and determinism while the block lasts."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    filling = deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    set_up_torch(recipe)
    try:
        yield lambda say: _here(recipe, say)
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict)
        deterministic.fill_uninitialized_memory = filling  # type: ignore[attr-defined]


@contextmanager
def _here(recipe: AnyRecipe, say: Say) -> Iterator[LocalWorkers]:
    yield LocalWorkers(recipe)


def device_of(recipe: AnyRecipe) -> str:
    """Where a local run's networks are, all of them."""
    return "cuda" if recipe.cluster.gpus_per_trainer else "cpu"


class LocalPolicy:
    """See `rl4dlm.learner.protocols.Policy`: one rank, called directly."""

    def __init__(self, recipe: AnyRecipe) -> None:
        self.rank = make_rank(recipe, PlainNetworks(device_of(recipe)))

    def start(self) -> None:
        return None

    def load(self, model_path: str, supervised: bool = False, weight_decay: float | None = None) -> int:
        return self.rank.load(model_path, supervised, weight_decay)

    def update(self, batch: TrainBatch, update: int) -> Metrics:
        return with_explained_variance(_whole(self.rank.update(batch, update)))

    def sft(self, batches: Sequence[SFTBatch], rates: Sequence[float], what: str) -> list[Metrics]:
        return [_whole(step) for step in self.rank.sft(list(batches), list(rates))]

    def held_out(self, batch: SFTBatch) -> np.ndarray:
        return self.rank.held_out(batch)

    def replay_gap(
        self, rollouts: Sequence[Rollout], temperature: float, block_length: int | None = None
    ) -> float:
        total, count = self.rank.replay_gap(list(rollouts), temperature, block_length)
        return total / max(1, count)

    def publish(self, version: int) -> Manifest:
        """Nothing is moved: the sampler reads the policy's own weights."""
        return Manifest(version, checksum="", num_bytes=0, chunks=())

    def export(self, folder: Path) -> None:
        self.rank.export(folder)

    def save(self, folder: Path) -> None:
        self.rank.save(folder)

    def restore(self, folder: Path) -> None:
        self.rank.restore(folder)

    def close(self) -> None:
        return None

    def kill(self) -> None:
        return None


def _whole(share: Metrics) -> Metrics:
    """The metrics of a lone rank, whose share is everything."""
    return finish_metrics(merge_metrics([share]))


class LocalSampler:
    """See `rl4dlm.learner.protocols.Sampler`: samples with the weights of a policy in this process, or
    without one with those of a model folder."""

    restarts = 0

    def __init__(self, recipe: AnyRecipe, policy: LocalPolicy | None, model_path: str) -> None:
        self._recipe, self._policy, self._model_path = recipe, policy, model_path
        self._sampler: PolicySampler | None = None

    def wait_ready(self) -> None:
        return None

    def accept_loaded(self, version: int) -> None:
        self._sampler = open_sampler(self._recipe, self._model_path, device_of(self._recipe))
        self._sampler.hold(version)

    def sync(self, manifest: Manifest) -> None:
        """Follow the policy. Where it is the sampler's own small network, its weights are copied."""
        assert self._policy is not None
        rank, recipe = self._policy.rank, self._recipe
        if freezes_model(recipe):
            if self._sampler is None:
                self._sampler = open_sampler(recipe, self._model_path, device_of(recipe))
            with rank.published() as weights, torch.no_grad():
                for name, tensor in trainable_state(self._sampler.synced).items():
                    tensor.copy_(weights[name])
        elif self._sampler is None or self._sampler.module is not rank.engine.module:
            module = rank.engine.module
            self._sampler = PolicySampler(recipe, rank.loaded, module, module, device_of(recipe))
        self._sampler.hold(manifest.version)

    def generate(self, requests: Sequence[Request], spec: SamplerSpec, version: int) -> list[Rollout]:
        assert self._sampler is not None, "sampled before a sync"
        return self._sampler.generate(requests, spec, version)

    def close(self) -> None:
        self._sampler = None


class LocalWorkers:
    """See `rl4dlm.learner.protocols.Workers`."""

    def __init__(self, recipe: AnyRecipe) -> None:
        self._recipe = recipe
        self._policy: LocalPolicy | None = None

    def describe(self) -> list[str]:
        return [f"everything in this process, on {device_of(self._recipe)}"]

    def policy(self) -> LocalPolicy:
        self._policy = LocalPolicy(self._recipe)
        return self._policy

    def sampler(self, model_path: str) -> LocalSampler:
        return LocalSampler(self._recipe, self._policy, model_path)

    def scorer(self, reward: RewardConfig) -> RewardPool:
        return RewardPool(reward)
