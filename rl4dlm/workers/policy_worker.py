"""One DeepSpeed rank in a Ray actor."""

from __future__ import annotations

import socket
import time
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import ray
import torch

from rl4dlm.errors import CheckpointError, StorageError
from rl4dlm.learner.critic import Critic
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
from rl4dlm.recipe import AnyRecipe, Recipe
from rl4dlm.run.folder import CheckpointParts
from rl4dlm.trainers import make_trainer, setting_of
from rl4dlm.trainers.base import Metrics
from rl4dlm.trainers.sft import SFTBatch
from rl4dlm.trainers.trace_value import TraceValue
from rl4dlm.types import Denoiser, Rollout, TrainBatch
from rl4dlm.workers import engine as ds
from rl4dlm.workers.sharded import assemble_sharded, whole_shape
from rl4dlm.workers.weight_sync import CHUNK_BYTES, Manifest, combine, pack


class _PolicyWorker:
    """A rank of the policy. Every method but `address` is a collective: the driver calls it on all ranks."""

    def __init__(self, recipe: AnyRecipe, rank: int) -> None:
        torch.set_num_threads(recipe.cluster.threads_per_worker)
        if recipe.run.deterministic:
            torch.use_deterministic_algorithms(True, warn_only=True)
            # DeepSpeed allocates buckets of gigabytes that it overwrites; filling them first takes seconds a
            # step.
            torch.utils.deterministic.fill_uninitialized_memory = False
        self._recipe, self._rank, self._world_size = recipe, rank, recipe.cluster.num_trainers
        self._device = "cuda" if recipe.cluster.gpus_per_trainer else "cpu"
        self._engine: Any = None
        self._critic: Critic | None = None

    def address(self) -> tuple[str, int]:
        """This node and a free port on it, for rank 0 to listen on."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return str(ray.util.get_node_ip_address()), int(probe.getsockname()[1])

    def join(self, address: str, port: int) -> None:
        """Form the process group."""
        timeout_s = self._recipe.cluster.update_timeout_s
        ds.join_process_group(self._rank, self._world_size, address, port, self._device, timeout_s)

    def load(self, model_path: str, supervised: bool = False, weight_decay: float | None = None) -> int:
        """Build the engine around a model folder; returns the number of trainable parameters.

        A second call replaces the engine: warm start and RL have optimizers of their own.

        Args:
            supervised: for `sft`, which needs neither a trainer nor a reference.
            weight_decay: None: the trainer's.
        """
        recipe, trainer = self._recipe, self._recipe.trainer
        if self._engine is not None:
            self._engine.destroy()
        if self._critic is not None:
            self._critic.update.engine.destroy()
        self._loaded = self._load_model(model_path)
        module = self._loaded.module
        if trainer.gradient_checkpointing:
            module.gradient_checkpointing_enable()
        if trainer.lora is not None:
            module = add_lora(module, trainer.lora, self._loaded.family, seed=recipe.run.seed)
        trainable = sum(whole_shape(p).numel() for p in module.parameters() if p.requires_grad)
        if not isinstance(recipe, Recipe) or supervised:
            self._engine = ds.make_engine(module, trainer, weight_decay)
            self._denoiser = denoiser(self._loaded, model=self._engine, device=self._device)
            ranks = (self._rank, self._world_size)
            self._sft = RankSFT(self._engine, self._denoiser, *ranks, trainer.micro_batch_tokens)
            self._critic = None
            return trainable
        self._trainer = make_trainer(recipe, self._loaded.spec)
        frozen = self._reference_copy(model_path)
        self._engine = ds.make_engine(module, trainer)
        self._denoiser = denoiser(self._loaded, model=self._engine, device=self._device)
        self._update = RankUpdate(
            engine=self._engine,
            denoiser=self._denoiser,
            trainer=self._trainer,
            rank=self._rank,
            world_size=self._world_size,
            token_budget=trainer.micro_batch_tokens,
            num_minibatches=trainer.num_minibatches,
            reference=frozen,
            **({"as_reference": lambda: reference(module)} if trainer.lora is not None else {}),
        )
        self._critic = self._make_critic(model_path)
        return trainable

    def _make_critic(self, model_path: str) -> Critic | None:
        """The value model with an engine of its own, where the method has one."""
        recipe = self._recipe
        value = getattr(recipe.algorithm, "value", None)
        if value is None:
            return None
        module = self._value_module(model_path)
        method = TraceValue(recipe.algorithm, value, setting_of(recipe, self._loaded.spec))
        engine = ds.make_engine(module, recipe.trainer)
        update = RankUpdate(
            engine=engine,
            denoiser=Denoiser(engine, self._loaded.spec, self._device),
            trainer=method,
            rank=self._rank,
            world_size=self._world_size,
            token_budget=recipe.trainer.micro_batch_tokens,
            num_minibatches=recipe.trainer.num_minibatches,
        )
        return Critic(update, method, ds.sum_over_ranks)

    def _value_module(self, model_path: str) -> torch.nn.Module:
        """A copy of the policy's backbone with a value head; under LoRA adapters and head are trained."""
        trainer = self._recipe.trainer
        loaded = self._load_model(model_path)
        module = ValueModel(loaded.module)
        if trainer.gradient_checkpointing:
            module.gradient_checkpointing_enable()
        if trainer.lora is not None:
            module.backbone = add_lora(
                module.backbone, trainer.lora, loaded.family, seed=self._recipe.run.seed
            )
        return module

    def _load_model(self, path: str) -> LoadedModel:
        return load(
            path,
            dtype=torch.bfloat16 if self._recipe.trainer.bf16 else torch.float32,
            device=self._device,
            quantization=self._recipe.model.quantization,
            assemble=assemble_sharded(self._recipe.trainer),
            **options_of(self._recipe.model),
        )

    def _reference_copy(self, path: str) -> Denoiser | None:
        """The weights that training starts from, frozen; LoRA needs no copy."""
        if not self._trainer.needs_reference or self._recipe.trainer.lora is not None:
            return None
        frozen = self._load_model(path)
        engine = ds.make_frozen_engine(frozen.module, self._recipe.trainer)
        return denoiser(frozen, model=engine, device=self._device)

    def update(self, batch: TrainBatch, update: int) -> Metrics:
        """All optimizer steps on one batch of rollouts; metrics are this rank's share, to be added over
        ranks.

        Raises:
            UpdateError: a loss or a gradient is not finite.
        """
        rate = learning_rate(self._recipe.trainer, update)
        ds.set_learning_rate(self._engine, rate)
        judged: Metrics = {}
        if self._critic is not None:
            batch, judged = self._judge(self._critic, batch, rate)
            if update <= self._critic.method.value.warmup_updates:
                return judged
        metrics = merge_metrics([judged, self._update.run(batch)])
        self._sync_reference(update)
        if self._rank == 0:
            metrics["learning_rate"] = rate
        return metrics

    def _sync_reference(self, update: int) -> None:
        """Move the reference towards the policy where it is time to."""
        algorithm, frozen = self._recipe.algorithm, self._update.reference
        if frozen is not None and algorithm.syncs_reference_at(update):
            stage, alpha = self._recipe.trainer.zero_stage, algorithm.ref_model_mixup_alpha
            ds.mix_reference(self._engine, frozen.model, stage, alpha)

    def _judge(self, critic: Critic, batch: TrainBatch, rate: float) -> tuple[TrainBatch, Metrics]:
        """Train the value model, whose rate follows the policy's schedule; the batch gets its advantages."""
        share = rate / self._recipe.trainer.learning_rate
        ds.set_learning_rate(critic.update.engine, critic.method.value.learning_rate * share)
        return critic.run(batch)

    def sft(self, batches: list[SFTBatch], rates: list[float]) -> list[Metrics]:
        """Optimizer steps of supervised fine-tuning, with their learning rates; metrics of each, this rank's
        share."""
        parts = []
        for batch, rate in zip(batches, rates, strict=True):
            ds.set_learning_rate(self._engine, rate)
            parts.append(self._sft.step(batch))
        return parts

    def held_out(self, batch: SFTBatch) -> np.ndarray:
        """Negative log-likelihood estimates of held-out rows, see `RankSFT.held_out`."""
        return self._sft.held_out(batch)

    def replay_gap(
        self, rollouts: list[Rollout], temperature: float, block_length: int | None = None
    ) -> tuple[float, int]:
        """Sum over tokens of |log-prob now - log-prob at commit| on recorded steps, and the number of
        tokens."""
        self._engine.eval()
        return replay_gap(self._denoiser, rollouts, temperature, block_length)

    def publish(self, version: int) -> Manifest | None:
        """Put the current weights (under LoRA the adapters) into the object store; rank 0 returns the
        manifest."""
        started = time.monotonic()
        chunks, checksums, num_bytes = [], [], 0
        with ds.gathered(self._engine, self._recipe.trainer.zero_stage):
            if self._rank != 0:
                return None
            for chunk in pack(trainable_state(self._engine.module), CHUNK_BYTES):
                chunks.append(ray.put(chunk))
                checksums.append(chunk.checksum)
                num_bytes += chunk.data.nbytes
        return Manifest(version, combine(checksums), num_bytes, tuple(chunks), time.monotonic() - started)

    def export(self, folder: str) -> None:
        """Write the policy as a Hugging Face folder (adapters merged); rank 0 writes, all ranks gather.

        Raises:
            StorageError: the disk refused.
        """
        with ds.gathered(self._engine, self._recipe.trainer.zero_stage):
            if self._rank == 0:
                state = self._whole_state()
                save(self._loaded, folder, self._loaded.tokenizer, state_dict=state)

    def _whole_state(self) -> dict[str, torch.Tensor]:
        """Weights under their published names, adapters merged in; where the base is quantised, into the
        weights that it was made of."""
        lora, model = self._recipe.trainer.lora, self._recipe.model
        if lora is None or model.quantization == "none":
            return merged_state_dict(self._engine.module)
        assert self._loaded.source is not None
        dtype = torch.bfloat16 if self._recipe.trainer.bf16 else torch.float32
        base = load(self._loaded.source, dtype=dtype, **options_of(model))
        return merge_into(base, trainable_state(self._engine.module), lora)

    def save(self, folder: str) -> None:
        """Write this rank's part of a checkpoint: the engine's state, and the model (under LoRA the adapters)
        as safetensors that need no engine to be read.

        Raises:
            StorageError: the disk refused.
        """
        parts = CheckpointParts(Path(folder))
        try:
            for engine, part in self._engines(parts):
                engine.save_checkpoint(
                    folder, tag=part.name, save_latest=False, exclude_frozen_parameters=True
                )
        except (OSError, RuntimeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise StorageError(f"{folder}: the checkpoint could not be written: {reason}") from error
        if self._recipe.trainer.lora is None:
            self.export(str(parts.model))
            self._save_reference(parts.reference)
            return
        with ds.gathered(self._engine, self._recipe.trainer.zero_stage):
            if self._rank == 0:
                save_adapter(self._engine.module, parts.adapter)

    def _save_reference(self, folder: Path) -> None:
        """Keep a reference that follows the policy; any other is the model that the run starts from."""
        if not self._follows():
            return
        with ds.whole_reference(self._update.reference.model, self._recipe.trainer.zero_stage) as module:
            if self._rank == 0:
                state = merged_state_dict(module)
                save(self._loaded, folder, self._loaded.tokenizer, state_dict=state)

    def _follows(self) -> bool:
        """Whether the reference policy is moved."""
        recipe = self._recipe
        return isinstance(recipe, Recipe) and recipe.algorithm.reference_follows

    def restore(self, folder: str) -> None:
        """Read this rank's part of a checkpoint: weights and optimizer.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        for engine, part in self._engines(CheckpointParts(Path(folder))):
            try:
                found, _ = engine.load_checkpoint(
                    folder,
                    tag=part.name,
                    load_module_strict=self._recipe.trainer.lora is None,
                    load_lr_scheduler_states=False,
                )
            except (OSError, RuntimeError, ValueError, KeyError, EOFError, UnpicklingError) as error:
                raise _unreadable(folder, (str(error).splitlines() or [type(error).__name__])[0]) from error
            if found is None:
                raise _unreadable(folder, f"the files of {part.name} are missing")
        if self._follows():
            kept = CheckpointParts(Path(folder)).reference
            if not kept.is_dir():
                raise _unreadable(folder, f"the reference policy, {kept.name}, is missing")
            if self._recipe.trainer.zero_stage == 3:
                self._update.reference.model.destroy()
            self._update = replace(self._update, reference=self._reference_copy(str(kept)))

    def _engines(self, parts: CheckpointParts) -> list[tuple[Any, Path]]:
        """Everything with an optimizer, and where a checkpoint keeps it."""
        engines = [(self._engine, parts.engine)]
        if self._critic is not None:
            engines.append((self._critic.update.engine, parts.value))
        return engines

    def close(self) -> None:
        """Leave the process group."""
        ds.leave_process_group()


def _unreadable(folder: str, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{folder}: the checkpoint cannot be read: {reason}.\n"
        "Fix: go on from an earlier one with --resume step=N, or remove this folder."
    )


PolicyWorker: Any = ray.remote(_PolicyWorker)
