"""The actor that samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
import torch

from rl4dlm.decoding import SamplerSpec
from rl4dlm.learner.sampling import open_sampler
from rl4dlm.learner.weight_sync import Manifest
from rl4dlm.recipe import AnyRecipe
from rl4dlm.rollout import Request
from rl4dlm.types import Rollout


class _RolloutWorker:
    """Holds one copy of the policy; see `PolicySampler`."""

    def __init__(self, recipe: AnyRecipe, model_path: str) -> None:
        torch.set_num_threads(recipe.cluster.threads_per_worker)
        device = "cuda" if recipe.cluster.gpus_per_rollout_worker else "cpu"
        self.sampler = open_sampler(recipe, model_path, device)

    def ready(self) -> str:
        """Answers once the model is loaded: the node it runs on."""
        return str(ray.util.get_node_ip_address())

    def accept_loaded(self, version: int) -> None:
        """Declare the weights that came with the model folder to be this version (evaluation without a
        trainer)."""
        self.sampler.hold(version)

    def sync(self, manifest: Manifest) -> int:
        """Take over the published weights, chunk by chunk.

        Raises:
            SyncError: damaged, misshapen or incomplete.
        """
        self.sampler.sync(manifest, (ray.get(reference) for reference in manifest.chunks))
        return manifest.version

    def generate(self, requests: Sequence[Request], spec: SamplerSpec, version: int) -> list[Rollout]:
        """Sample with the weights of `version`, in the order of the requests.

        Raises:
            SyncError: this worker holds another version.
        """
        return self.sampler.generate(requests, spec, version)


RolloutWorker: Any = ray.remote(_RolloutWorker)
