"""The actor that samples: a model, the plain engine, and the version of the weights it holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
import torch

from rl4dlm.decoding import SamplerSpec
from rl4dlm.errors import SyncError
from rl4dlm.models import add_lora, denoiser, load, open_policy, options_of, trainable_state
from rl4dlm.recipe import AnyRecipe
from rl4dlm.rollout import Graphs, Request
from rl4dlm.rollout.external import Versioned, find_engine, sampling_engine
from rl4dlm.types import Rollout
from rl4dlm.workers.unmask_worker import freezes_model, starting_net
from rl4dlm.workers.weight_sync import Manifest, combine, load_into


class _RolloutWorker:
    """Holds one copy of the policy. It samples only when it holds exactly the version it is asked for."""

    def __init__(self, recipe: AnyRecipe, model_path: str) -> None:
        torch.set_num_threads(recipe.cluster.threads_per_worker)
        self._device = "cuda" if recipe.cluster.gpus_per_rollout_worker else "cpu"
        dtype = torch.bfloat16 if recipe.trainer.bf16 else torch.float32
        loaded = load(
            model_path,
            dtype=dtype,
            device=self._device,
            quantization=recipe.model.quantization,
            **options_of(recipe.model),
        )
        self._tokenizer = loaded.tokenizer
        module = loaded.module
        if recipe.trainer.lora is not None:
            module = add_lora(module, recipe.trainer.lora, loaded.family, seed=recipe.run.seed)
        module.eval()
        self._lora = recipe.trainer.lora is not None
        self._module: Any = module
        self._denoiser = denoiser(loaded, model=module, device=self._device)
        self._open_policy(recipe)
        self._slots = recipe.rollout.slots
        self._graphs = Graphs() if recipe.rollout.cuda_graphs else None
        factory = find_engine(recipe.rollout.engine)
        self._external = None if factory is None else Versioned(factory())
        self._version: int | None = None

    def _open_policy(self, recipe: AnyRecipe) -> None:
        """Make the sampler's policy known, where it has one; where the language model is frozen, weights that
        are synced are the policy's."""
        name = recipe.rollout.policy
        if not name:
            return
        start, seed = starting_net(recipe), recipe.run.seed
        policy = open_policy(name, device=self._device, start=start, seed=seed)
        if freezes_model(recipe):
            self._module = policy

    def ready(self) -> str:
        """Answers once the model is loaded: the node it runs on."""
        return str(ray.util.get_node_ip_address())

    def accept_loaded(self, version: int) -> None:
        """Declare the weights that came with the model folder to be this version (evaluation without a
        trainer)."""
        self._version = version

    def sync(self, manifest: Manifest) -> int:
        """Replace the weights by the published ones; the version counts only when all of it has arrived.

        Raises:
            SyncError: damaged, misshapen or incomplete.
        """
        self._version = None
        target = trainable_state(self._module) if self._lora else dict(self._module.named_parameters())
        seen: set[str] = set()
        checksums = []
        for reference in manifest.chunks:
            chunk = ray.get(reference)
            seen |= load_into(target, chunk)
            checksums.append(chunk.checksum)
        missing = set(target) - seen
        if missing or combine(checksums) != manifest.checksum:
            what = f"{sorted(missing)[0]} is missing" if missing else "the checksum differs"
            raise SyncError(f"weights of version {manifest.version} are incomplete: {what}.")
        self._version = manifest.version
        return manifest.version

    def generate(self, requests: Sequence[Request], spec: SamplerSpec, version: int) -> list[Rollout]:
        """Sample with the weights of `version`, in the order of the requests.

        Raises:
            SyncError: this worker holds another version.
        """
        if self._version != version:
            raise SyncError(
                f"rollouts of version {version} were asked for, this worker holds version {self._version}."
            )
        engine = sampling_engine(self._external, self._denoiser, spec, self._slots, self._graphs)
        return engine.generate(requests, policy_version=version, decode=self._decode)

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))


RolloutWorker: Any = ray.remote(_RolloutWorker)
