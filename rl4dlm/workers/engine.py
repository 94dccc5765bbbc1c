"""DeepSpeed: process group, engine, gathered weights. Nothing here knows about methods."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from rl4dlm.recipe.sections import TrainerConfig
from rl4dlm.workers.sharded import whole_shape


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


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of equally shaped tensors of all ranks: a collective."""
    device = "cpu" if torch.distributed.get_backend() == "gloo" else "cuda"
    total = values.to(device)
    torch.distributed.all_reduce(total)
    return total.to(values.device)


def make_engine(module: nn.Module, trainer: TrainerConfig, weight_decay: float | None = None) -> Any:
    """A DeepSpeed engine with torch's AdamW over the trainable parameters.

    Norms, biases and other vectors are not decayed.
    """
    import deepspeed

    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    decay = trainer.weight_decay if weight_decay is None else weight_decay
    groups = [
        {"params": [p for p in trainable if len(whole_shape(p)) > 1], "weight_decay": decay},
        {"params": [p for p in trainable if len(whole_shape(p)) <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=trainer.learning_rate,
        betas=trainer.adam_betas,
        eps=trainer.adam_epsilon,
    )
    config = deepspeed_config(trainer, sum(whole_shape(p).numel() for p in trainable))
    if trainer.zero_stage == 0 and not trainer.bf16:
        config["gradient_clipping"] = 0.0
        _clip_before_each_step(optimizer, trainable, trainer.max_grad_norm)
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config)
    return engine


def _clip_before_each_step(
    optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], max_norm: float
) -> None:
    """Clip where there is no ZeRO optimizer to do it: DeepSpeed's own clipping there forgets the norm.

    The norm goes where `engine.get_global_grad_norm` looks for it.
    """

    def clip(optimizer: Any, args: Any, kwargs: Any) -> None:
        optimizer._global_grad_norm = float(torch.nn.utils.clip_grad_norm_(parameters, max_norm))

    optimizer.register_step_pre_hook(clip)


def make_frozen_engine(module: nn.Module, trainer: TrainerConfig) -> Any:
    """The reference policy: sharded like the policy under ZeRO-3, a plain frozen module otherwise."""
    module.requires_grad_(False).eval()
    if trainer.zero_stage < 3:
        return module
    import deepspeed

    config = {
        "train_micro_batch_size_per_gpu": 1,
        "steps_per_print": 2**31,
        "bf16": {"enabled": trainer.bf16},
        "zero_optimization": {"stage": 3},
    }
    engine, *_ = deepspeed.initialize(model=module, config=config)
    return engine


def mix_reference(engine: Any, frozen: Any, stage: int, alpha: float) -> None:
    """Move the reference towards the policy: `alpha` policy + (1 - alpha) reference, in float32.

    Source: TR-DPO (arXiv:2404.09656), as TRL's `sync_ref_model`. A collective under ZeRO-3.

    Args:
        engine: the policy's.
        frozen: what `make_frozen_engine` made of the same network.
        stage: of ZeRO.
        alpha: the policy's share.
    """
    with gathered(engine, stage) as policy, whole_reference(frozen, stage) as reference, torch.no_grad():
        for name, weight in reference.named_parameters():
            weight.copy_(torch.lerp(weight.float(), policy[name].float(), alpha))


@contextmanager
def whole_reference(frozen: Any, stage: int) -> Iterator[nn.Module]:
    """The reference's network with whole parameters; under ZeRO-3 a collective, and what rank 0 writes into
    them is everybody's afterwards."""
    if stage < 3:
        yield frozen
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(frozen.module.parameters()), modifier_rank=0):
        yield frozen.module


def set_learning_rate(engine: Any, learning_rate: float) -> None:
    """The rate is a pure function of the update, so no scheduler state exists."""
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate


@contextmanager
def gathered(engine: Any, stage: int) -> Iterator[dict[str, Tensor]]:
    """The module's whole parameters by name; a collective under ZeRO-3, so every rank must enter."""
    if stage < 3:
        yield dict(engine.module.named_parameters())
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(engine.module.parameters()), modifier_rank=None):
        yield dict(engine.module.named_parameters())


def leave_process_group() -> None:
    """Meet the other ranks once more and close; a process that exits without it may abort."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
