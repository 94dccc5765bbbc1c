"""One rank of the policy: its networks, what it learns, what it saves. Every method but `load` of a lone rank
may be a collective: all ranks call it with the same arguments."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import deterministic

from rl4dlm.errors import CheckpointError, StorageError
from rl4dlm.learner.critic import Critic
from rl4dlm.learner.engine import Frozen, Networks, TrainingEngine, mix_reference, num_trainable
from rl4dlm.learner.learning_rate import learning_rate
from rl4dlm.learner.supervised import RankSFT
from rl4dlm.learner.update import RankUpdate
from rl4dlm.likelihood.trace import replay_gap
from rl4dlm.loss.reduce import merge_metrics
from rl4dlm.models import (
    LoadedModel,
    ValueModel,
    add_lora,
    denoiser,
    load,
    merge_into,
    merged_state_dict,
    options_of,
    reference,
    save,
    save_adapter,
    trainable_state,
)
from rl4dlm.models.base import FamilyModel
from rl4dlm.recipe import AnyRecipe, Recipe
from rl4dlm.recipe.algorithms import MethodConfig, Passes
from rl4dlm.run.folder import CheckpointParts
from rl4dlm.trainers import method_of, value_model_of
from rl4dlm.trainers.method import Method, Metrics
from rl4dlm.trainers.sft import SFTBatch
from rl4dlm.types import Denoiser, Rollout, TrainBatch


def weights_dtype(recipe: AnyRecipe) -> torch.dtype:
    """What a recipe's language model is held in, by trainers and samplers."""
    return torch.bfloat16 if recipe.trainer.bf16 else torch.float32


def set_up_torch(recipe: AnyRecipe) -> None:
    """Threads of this process, and deterministic kernels where the recipe wants them."""
    torch.set_num_threads(recipe.cluster.threads_per_worker)
    if recipe.run.deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
        # DeepSpeed overwrites the gigabytes that it allocates; filling them first takes seconds a step.
        deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a property, says torch


class PolicyRank:
    """The language model on one rank, with its reference and its value model where the method has them."""

    def __init__(self, recipe: AnyRecipe, networks: Networks) -> None:
        self._recipe, self._networks = recipe, networks
        self._engine: TrainingEngine | None = None
        self._critic: Critic | None = None
        self._frozen: Frozen | None = None
        self._update: RankUpdate | None = None
        self._sft: RankSFT | None = None

    @property
    def engine(self) -> TrainingEngine:
        """The policy's; there is one after `load`."""
        assert self._engine is not None, "the rank has not loaded its model"
        return self._engine

    @property
    def loaded(self) -> LoadedModel:
        """The policy's tokenizer and facts; its network may hold adapters."""
        return self._loaded

    def load(self, model_path: str, supervised: bool = False, weight_decay: float | None = None) -> int:
        """Build the engine around a model folder; returns the number of trainable parameters.

        A second call replaces the engine: warm start and RL have optimizers of their own.

        Args:
            supervised: for `sft`, which needs neither a method nor a reference.
            weight_decay: None: the trainer's.
        """
        recipe = self._recipe
        self._release()
        self._loaded = self._load_model(model_path)
        module = self._trained_module(self._loaded.module, self._loaded.family)
        count = num_trainable(module)
        frozen: Denoiser | None = None
        method: Method[MethodConfig] | None = None
        if isinstance(recipe, Recipe) and not supervised:
            method = method_of(recipe, self._loaded.spec)
            # LoRA needs no copy: with its adapters off the policy is the reference.
            if recipe.algorithm.keeps_reference and recipe.trainer.lora is None:
                frozen = self._reference_copy(model_path)
        self._engine = self._networks.train(module, recipe.trainer, weight_decay)
        self._denoiser = denoiser(self._loaded, model=self._engine, device=self._networks.device)
        if method is None:
            ranks = (self._networks.rank, self._networks.world_size)
            self._sft = RankSFT(self._engine, self._denoiser, *ranks, recipe.trainer.micro_batch_tokens)
            return count
        self._update = self._rank_update(self._engine, self._denoiser, method)
        self._update = replace(self._update, reference=frozen)
        if recipe.trainer.lora is not None:
            self._update = replace(self._update, as_reference=lambda: reference(module))
        self._critic = self._make_critic(model_path)
        return count

    def _release(self) -> None:
        """Close what an earlier `load` made."""
        critic = None if self._critic is None else self._critic.update.engine
        for held in (self._engine, critic, self._frozen):
            if held is not None:
                held.close()
        self._engine = self._critic = self._frozen = self._update = self._sft = None

    def _trained_module(self, module: nn.Module, family: str) -> nn.Module:
        """A network as the recipe trains it: activations recomputed, adapters added, where it says so."""
        trainer = self._recipe.trainer
        if trainer.gradient_checkpointing:
            cast(FamilyModel, module).gradient_checkpointing_enable()
        if trainer.lora is None:
            return module
        return add_lora(module, trainer.lora, family, seed=self._recipe.run.seed)

    def _rank_update(self, engine: TrainingEngine, model: Denoiser, method: Method[Passes]) -> RankUpdate:
        settings = self._recipe.trainer
        return RankUpdate(
            engine=engine,
            denoiser=model,
            method=method,
            rank=self._networks.rank,
            world_size=self._networks.world_size,
            token_budget=settings.micro_batch_tokens,
            num_minibatches=settings.num_minibatches,
        )

    def _make_critic(self, model_path: str) -> Critic | None:
        """The value model with an engine of its own, where the method has one: a copy of the policy's
        backbone with a value head; under LoRA adapters and head are trained."""
        recipe = self._recipe
        assert isinstance(recipe, Recipe)
        method = value_model_of(recipe, self._loaded.spec)
        if method is None:
            return None
        loaded = self._load_model(model_path)
        module = ValueModel(loaded.module)
        module.backbone = cast(FamilyModel, self._trained_module(module.backbone, loaded.family))
        engine = self._networks.train(module, recipe.trainer)
        model = Denoiser(engine, self._loaded.spec, self._networks.device)
        return Critic(self._rank_update(engine, model, method.learns), method, self._networks.sum_over_ranks)

    def _load_model(self, path: str) -> LoadedModel:
        return load(
            path,
            dtype=weights_dtype(self._recipe),
            device=self._networks.device,
            quantization=self._recipe.model.quantization,
            assemble=self._networks.assemble(),
            **options_of(self._recipe.model),
        )

    def _reference_copy(self, path: str) -> Denoiser:
        """Frozen weights of a model folder."""
        loaded = self._load_model(path)
        self._frozen = self._networks.freeze(loaded.module, self._recipe.trainer)
        return denoiser(loaded, model=self._frozen, device=self._networks.device)

    def update(self, batch: TrainBatch, update: int) -> Metrics:
        """All optimizer steps on one batch of rollouts; metrics are this rank's share, to be added over
        ranks.

        The value model's rate follows the policy's schedule. While it warms up the policy stands still.

        Raises:
            UpdateError: a loss or a gradient is not finite.
        """
        assert self._update is not None, "a rank that was loaded for supervised steps"
        rate = learning_rate(self._recipe.trainer, update)
        self.engine.set_learning_rate(rate)
        judged: Metrics = {}
        if self._critic is not None:
            value = self._critic.method.value
            share = rate / self._recipe.trainer.learning_rate
            self._critic.update.engine.set_learning_rate(value.learning_rate * share)
            batch, judged = self._critic.run(batch)
            if update <= value.warmup_updates:
                return judged
        metrics = merge_metrics([judged, self._update.run(batch)])
        self._sync_reference(update)
        if self._networks.rank == 0:
            metrics["learning_rate"] = rate
        return metrics

    def _sync_reference(self, update: int) -> None:
        """Move the reference towards the policy where it is time to."""
        assert isinstance(self._recipe, Recipe)
        algorithm, frozen = self._recipe.algorithm, self._frozen
        steps = algorithm.optimizer_steps(self._recipe.trainer.num_minibatches)
        if frozen is not None and algorithm.syncs_reference_at(update, steps):
            mix_reference(self.engine, frozen, algorithm.reference_share)

    def sft(self, batches: list[SFTBatch], rates: list[float]) -> list[Metrics]:
        """Optimizer steps of supervised fine-tuning, with their learning rates; metrics of each, this rank's
        share."""
        assert self._sft is not None, "a rank that was not loaded for supervised steps"
        parts = []
        for batch, rate in zip(batches, rates, strict=True):
            self.engine.set_learning_rate(rate)
            parts.append(self._sft.step(batch))
        return parts

    def held_out(self, batch: SFTBatch) -> np.ndarray:
        """Negative log-likelihood estimates of held-out rows, see `RankSFT.held_out`."""
        assert self._sft is not None, "a rank that was not loaded for supervised steps"
        return self._sft.held_out(batch)

    def replay_gap(
        self, rollouts: list[Rollout], temperature: float, block_length: int | None = None
    ) -> tuple[float, int]:
        """Sum over tokens of |log-prob now - log-prob at commit| on recorded steps, and the number of
        tokens."""
        self.engine.eval()
        return replay_gap(self._denoiser, rollouts, temperature, block_length)

    @contextmanager
    def published(self) -> Iterator[dict[str, Tensor]]:
        """What samplers need: the weights by name, under LoRA the adapters."""
        with self.engine.whole():
            yield trainable_state(self.engine.module)

    def export(self, folder: Path) -> None:
        """Write the policy as a Hugging Face folder (adapters merged); rank 0 writes, all ranks gather.

        Raises:
            StorageError: the disk refused.
        """
        with self.engine.whole():
            if self._networks.rank == 0:
                save(self._loaded, folder, self._loaded.tokenizer, state_dict=self._whole_state())

    def _whole_state(self) -> dict[str, Tensor]:
        """Weights under their published names, adapters merged in; where the base is quantised, into the
        weights that it was made of."""
        lora, model, module = self._recipe.trainer.lora, self._recipe.model, self.engine.module
        if lora is None or model.quantization == "none":
            return merged_state_dict(module)
        assert self._loaded.source is not None
        base = load(self._loaded.source, dtype=weights_dtype(self._recipe), **options_of(model))
        return merge_into(base, trainable_state(module), lora)

    def save(self, folder: Path) -> None:
        """Write this rank's part of a checkpoint: the engines' states, and the model (under LoRA the
        adapters) as safetensors that need no engine to be read.

        Raises:
            StorageError: the disk refused.
        """
        parts = CheckpointParts(folder)
        try:
            for engine, part in self._engines(parts):
                engine.save(part)
        except (OSError, RuntimeError) as error:
            raise StorageError(f"{folder}: the checkpoint could not be written: {_line(error)}") from error
        if self._recipe.trainer.lora is None:
            self.export(parts.model)
            self._save_reference(parts.reference)
            return
        with self.engine.whole():
            if self._networks.rank == 0:
                save_adapter(self.engine.module, parts.adapter)

    def _save_reference(self, folder: Path) -> None:
        """Keep a reference that follows the policy; any other is the model that the run starts from."""
        if not self._follows():
            return
        assert self._frozen is not None
        with self._frozen.whole() as module:
            if self._networks.rank == 0:
                state = merged_state_dict(module)
                save(self._loaded, folder, self._loaded.tokenizer, state_dict=state)

    def _follows(self) -> bool:
        """Whether the reference policy is moved."""
        recipe = self._recipe
        return isinstance(recipe, Recipe) and recipe.algorithm.reference_follows

    def restore(self, folder: Path) -> None:
        """Read this rank's part of a checkpoint: weights and optimizer.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        parts = CheckpointParts(folder)
        for engine, part in self._engines(parts):
            try:
                engine.restore(part)
            except FileNotFoundError as error:
                raise _unreadable(folder, f"the files of {part.name} are missing") from error
            except (OSError, RuntimeError, ValueError, KeyError, EOFError, UnpicklingError) as error:
                raise _unreadable(folder, _line(error)) from error
        if not self._follows():
            return
        if not parts.reference.is_dir():
            raise _unreadable(folder, f"the reference policy, {parts.reference.name}, is missing")
        assert self._frozen is not None and self._update is not None
        self._frozen.close()
        self._update = replace(self._update, reference=self._reference_copy(str(parts.reference)))

    def _engines(self, parts: CheckpointParts) -> list[tuple[TrainingEngine, Path]]:
        """Everything with an optimizer, and where a checkpoint keeps it."""
        engines = [(self.engine, parts.engine)]
        if self._critic is not None:
            engines.append((self._critic.update.engine, parts.value))
        return engines


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _unreadable(folder: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{folder}: the checkpoint cannot be read: {reason}.\n"
        "Fix: resume from an earlier one with --resume step=N, or remove this folder."
    )
