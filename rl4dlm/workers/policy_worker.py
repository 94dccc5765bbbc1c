"""One DeepSpeed rank in a Ray actor."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray

from rl4dlm.learner.rank import set_up_torch
from rl4dlm.learner.unmask_rank import make_rank
from rl4dlm.learner.weight_sync import CHUNK_BYTES, Manifest, combined_checksum, pack
from rl4dlm.recipe import AnyRecipe
from rl4dlm.trainers.method import Metrics
from rl4dlm.trainers.sft import SFTBatch
from rl4dlm.types import Rollout, TrainBatch
from rl4dlm.workers import engine as ds


class _PolicyWorker:
    """A rank of the policy, see `PolicyRank`. Every method but `address` is a collective: the driver calls it
    on all ranks."""

    def __init__(self, recipe: AnyRecipe, rank: int) -> None:
        set_up_torch(recipe)
        self._recipe = recipe
        device = "cuda" if recipe.cluster.gpus_per_trainer else "cpu"
        self._networks = ds.DeepSpeedNetworks(recipe.trainer, rank, recipe.cluster.num_trainers, device)
        self.rank = make_rank(recipe, self._networks)

    def address(self) -> tuple[str, int]:
        """This node and a free port on it, for rank 0 to listen on."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return str(ray.util.get_node_ip_address()), int(probe.getsockname()[1])

    def join(self, address: str, port: int) -> None:
        """Form the process group."""
        own = self._networks
        timeout_s = self._recipe.cluster.update_timeout_s
        ds.join_process_group(own.rank, own.world_size, address, port, own.device, timeout_s)

    def load(self, model_path: str, supervised: bool = False, weight_decay: float | None = None) -> int:
        """Build the engine around a model folder; returns the number of trainable parameters."""
        return self.rank.load(model_path, supervised, weight_decay)

    def update(self, batch: TrainBatch, update: int) -> Metrics:
        """All optimizer steps on one batch; this rank's share of the metrics."""
        return self.rank.update(batch, update)

    def sft(self, batches: list[SFTBatch], rates: list[float]) -> list[Metrics]:
        """Supervised steps; this rank's share of the metrics of each."""
        return self.rank.sft(batches, rates)

    def held_out(self, batch: SFTBatch) -> np.ndarray:
        """Negative log-likelihood estimates of held-out rows; zeros for other ranks' rows."""
        return self.rank.held_out(batch)

    def replay_gap(
        self, rollouts: list[Rollout], temperature: float, block_length: int | None = None
    ) -> tuple[float, int]:
        """Sum and count of the differences between trainer and sampler."""
        return self.rank.replay_gap(rollouts, temperature, block_length)

    def publish(self, version: int) -> Manifest | None:
        """Put the current weights into the object store; rank 0 returns the manifest."""
        started = time.monotonic()
        chunks, checksums, num_bytes = [], [], 0
        with self.rank.published() as weights:
            if self._networks.rank != 0:
                return None
            for chunk in pack(weights, CHUNK_BYTES):
                chunks.append(ray.put(chunk))
                checksums.append(chunk.checksum)
                num_bytes += chunk.data.nbytes
        return Manifest(
            version, combined_checksum(checksums), num_bytes, tuple(chunks), time.monotonic() - started
        )

    def export(self, folder: str) -> None:
        """Write what was trained as a folder that others read."""
        self.rank.export(Path(folder))

    def save(self, folder: str) -> None:
        """Write this rank's part of a checkpoint."""
        self.rank.save(Path(folder))

    def restore(self, folder: str) -> None:
        """Read this rank's part of a checkpoint."""
        self.rank.restore(Path(folder))

    def close(self) -> None:
        """Leave the process group."""
        ds.leave_process_group()


PolicyWorker: Any = ray.remote(_PolicyWorker)
