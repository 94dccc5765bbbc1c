"""What samples on one device: a policy, the engine around it, and the version of the weights it holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from rl4dlm.decoding import SamplerSpec
from rl4dlm.errors import SyncError
from rl4dlm.learner.rank import weights_dtype
from rl4dlm.learner.unmask_rank import freezes_model, starting_net
from rl4dlm.learner.weight_sync import Manifest, WeightChunk, combined_checksum, load_into
from rl4dlm.models import LoadedModel, add_lora, denoiser, load, open_policy, options_of, trainable_state
from rl4dlm.recipe import AnyRecipe
from rl4dlm.rollout import Graphs, Request
from rl4dlm.rollout.external import Versioned, find_engine, sampling_engine
from rl4dlm.types import Rollout


class PolicySampler:
    """Samples with one policy, and only when it holds exactly the version that it is asked for."""

    def __init__(
        self, recipe: AnyRecipe, loaded: LoadedModel, module: nn.Module, synced: nn.Module, device: str
    ) -> None:
        """
        Args:
            loaded: the language model's tokenizer and facts.
            module: what samples: the network of `loaded`, with adapters under LoRA.
            synced: whose trainable weights follow the policy.
            device: where all of it lies.
        """
        self.module, self.synced = module, synced
        self.graphs = Graphs() if recipe.rollout.cuda_graphs else None
        self._model = denoiser(loaded, model=module, device=device)
        self._tokenizer: Any = loaded.tokenizer
        self._slots = recipe.rollout.slots
        factory = find_engine(recipe.rollout.engine)
        self._external = None if factory is None else Versioned(factory())
        self._version: int | None = None

    def hold(self, version: int | None) -> None:
        """Declare the weights at hand to be of this version; None: of no version, until a sync."""
        self._version = version

    def sync(self, manifest: Manifest, chunks: Iterable[WeightChunk]) -> None:
        """Replace the weights by published ones; the version counts only when all of it has arrived.

        Raises:
            SyncError: damaged, misshapen or incomplete.
        """
        self.hold(None)
        target = self._target()
        seen: set[str] = set()
        checksums = []
        for chunk in chunks:
            seen |= load_into(target, chunk)
            checksums.append(chunk.checksum)
        missing = set(target) - seen
        if missing or combined_checksum(checksums) != manifest.checksum:
            what = f"{sorted(missing)[0]} is missing" if missing else "the checksum differs"
            raise SyncError(f"weights of version {manifest.version} are incomplete: {what}.")
        self.hold(manifest.version)

    def _target(self) -> Mapping[str, Tensor]:
        return trainable_state(self.synced)

    def generate(self, requests: Sequence[Request], spec: SamplerSpec, version: int) -> list[Rollout]:
        """Sample with the weights of `version`, in the order of the requests.

        Raises:
            SyncError: another version is held.
        """
        if self._version != version:
            raise SyncError(
                f"rollouts of version {version} were asked for, this worker holds version {self._version}."
            )
        self.module.eval()
        engine = sampling_engine(self._external, self._model, spec, self._slots, self.graphs)
        return engine.generate(requests, policy_version=version, decode=self._decode)

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))


def open_sampler(recipe: AnyRecipe, model_path: str, device: str) -> PolicySampler:
    """A sampler with its own copy of a model folder; it holds no version yet.

    Where the language model is frozen, the weights that are synced are those of the sampler's policy.
    """
    loaded = load(
        model_path,
        dtype=weights_dtype(recipe),
        device=device,
        quantization=recipe.model.quantization,
        **options_of(recipe.model),
    )
    module: nn.Module = loaded.module
    if recipe.trainer.lora is not None:
        module = add_lora(module, recipe.trainer.lora, loaded.family, seed=recipe.run.seed)
    module.eval()
    synced = module
    if recipe.rollout.policy:
        start, seed = starting_net(recipe), recipe.run.seed
        policy = open_policy(recipe.rollout.policy, device=device, start=start, seed=seed)
        if freezes_model(recipe):
            assert isinstance(policy, nn.Module)
            synced = policy
    return PolicySampler(recipe, loaded, module, synced, device)
