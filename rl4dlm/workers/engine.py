"""DeepSpeed: process group, engine, gathered weights. Nothing here knows about methods."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rl4dlm.learner.engine import (
    Assemble,
    Frozen,
    FrozenModule,
    TrainingEngine,
    adamw,
    num_trainable,
    trainable,
)
from rl4dlm.recipe.sections import TrainerConfig
from rl4dlm.workers.sharded import assemble_sharded


def join_process_group(
    rank: int, world_size: int, address: str, port: int, device: str, timeout_s: float
) -> None:
    """Make this process a rank: gloo on CPU, NCCL on GPU. Once per process.

    Args:
        address, port: where rank 0 listens.
        timeout_s: after which a collective that a dead rank leaves hanging fails.
    """
    os.environ.update(
        MASTER_ADDR=address,
        MASTER_PORT=str(port),
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK="0",  # a Ray actor sees only its own device
    )
    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    import deepspeed.ops

    if device == "cpu":
        # The shared-memory collective is compiled at first use: slow, and a crash without a compiler.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        dist_backend="gloo" if device == "cpu" else "nccl",
        auto_mpi_discovery=False,
        timeout=timedelta(seconds=timeout_s),
    )


_MOST_BUCKET_ELEMENTS = 500_000_000


def deepspeed_config(trainer: TrainerConfig, num_trainable: int) -> dict[str, Any]:
    """DeepSpeed's configuration for a recipe; accumulation boundaries are ours (`engine.step()`).

    Buckets are no larger than what is to be reduced, and even: DeepSpeed allocates them whole and refuses
    odd ones.
    """
    bucket = max(2, min(_MOST_BUCKET_ELEMENTS, num_trainable + num_trainable % 2))
    zero: dict[str, Any] = {
        "stage": trainer.zero_stage,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
    }
    if trainer.zero_stage == 3:
        zero["overlap_comm"] = False
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": trainer.max_grad_norm,
        "steps_per_print": 2**31,
        "bf16": {"enabled": trainer.bf16},
        "zero_optimization": zero,
    }
    if trainer.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
        config["zero_force_ds_cpu_optimizer"] = False
    return config


class DeepSpeedEngine:
    """DeepSpeed behind the learner's `TrainingEngine`, with torch's AdamW over the trainable parameters."""

    def __init__(self, module: nn.Module, trainer: TrainerConfig, weight_decay: float | None = None) -> None:
        import deepspeed

        learning = trainable(module)
        optimizer = adamw(learning, trainer, weight_decay)
        config = deepspeed_config(trainer, num_trainable(module))
        if trainer.zero_stage == 0 and not trainer.bf16:
            config["gradient_clipping"] = 0.0
            _clip_before_each_step(optimizer, list(learning.values()), trainer.max_grad_norm)
        self._engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config)
        self._stage, self._strict = trainer.zero_stage, trainer.lora is None

    @property
    def module(self) -> nn.Module:
        return self._engine.module

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return self._engine(*args, **kwargs)

    def train(self) -> None:
        self._engine.train()

    def eval(self) -> None:
        self._engine.eval()

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss)

    def step(self) -> None:
        self._engine.step()

    def get_global_grad_norm(self) -> float | None:
        norm = self._engine.get_global_grad_norm()
        return None if norm is None else float(norm)

    def set_learning_rate(self, rate: float) -> None:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate

    @contextmanager
    def whole(self) -> Iterator[dict[str, Tensor]]:
        if self._stage < 3:
            yield dict(self.module.named_parameters())
            return
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(self.module.parameters()), modifier_rank=None):
            yield dict(self.module.named_parameters())

    def save(self, folder: Path) -> None:
        """This rank's shards, in DeepSpeed's format."""
        self._engine.save_checkpoint(
            str(folder.parent), tag=folder.name, save_latest=False, exclude_frozen_parameters=True
        )

    def restore(self, folder: Path) -> None:
        found, _ = self._engine.load_checkpoint(
            str(folder.parent),
            tag=folder.name,
            load_module_strict=self._strict,
            load_lr_scheduler_states=False,
        )
        if found is None:
            raise FileNotFoundError(folder)

    def close(self) -> None:
        self._engine.destroy()


def _clip_before_each_step(
    optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], max_norm: float
) -> None:
    """Clip where there is no ZeRO optimizer to do it: DeepSpeed's own clipping there forgets the norm.

    The norm goes where `engine.get_global_grad_norm` looks for it.
    """

    def clip(optimizer: Any, args: Any, kwargs: Any) -> None:
        optimizer._global_grad_norm = float(torch.nn.utils.clip_grad_norm_(parameters, max_norm))

    optimizer.register_step_pre_hook(clip)


class ShardedReference:
    """A reference policy whose weights are partitioned over the ranks, as the policy's are under ZeRO-3."""

    def __init__(self, module: nn.Module, trainer: TrainerConfig) -> None:
        import deepspeed

        config = {
            "train_micro_batch_size_per_gpu": 1,
            "steps_per_print": 2**31,
            "bf16": {"enabled": trainer.bf16},
            "zero_optimization": {"stage": 3},
        }
        frozen = module.requires_grad_(False).eval()
        self._engine, *_ = deepspeed.initialize(model=frozen, config=config)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return self._engine(*args, **kwargs)

    @contextmanager
    def whole(self) -> Iterator[nn.Module]:
        import deepspeed

        module = self._engine.module
        with deepspeed.zero.GatheredParameters(list(module.parameters()), modifier_rank=0):
            yield module

    def close(self) -> None:
        self._engine.destroy()


class DeepSpeedNetworks:
    """The networks of one of several ranks."""

    def __init__(self, trainer: TrainerConfig, rank: int, world_size: int, device: str) -> None:
        self._trainer, self.rank, self.world_size, self.device = trainer, rank, world_size, device

    def assemble(self) -> Assemble | None:
        return assemble_sharded(self._trainer)

    def train(
        self, module: nn.Module, trainer: TrainerConfig, weight_decay: float | None = None
    ) -> TrainingEngine:
        return DeepSpeedEngine(module, trainer, weight_decay)

    def freeze(self, module: nn.Module, trainer: TrainerConfig) -> Frozen:
        return FrozenModule(module) if trainer.zero_stage < 3 else ShardedReference(module, trainer)

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        device = "cpu" if torch.distributed.get_backend() == "gloo" else "cuda"
        total = values.to(device)
        torch.distributed.all_reduce(total)
        return total.to(values.device)


def leave_process_group() -> None:
    """Meet the other ranks once more and close; a process that exits without it may abort."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
