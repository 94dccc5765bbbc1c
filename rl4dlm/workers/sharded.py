"""Loading straight into ZeRO-3 partitions: no rank ever holds the whole model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from rl4dlm.learner.engine import Assemble
from rl4dlm.models.base import FamilyModel
from rl4dlm.recipe.sections import TrainerConfig


def assemble_sharded(trainer: TrainerConfig) -> Assemble | None:
    """How `rl4dlm.models.load` puts tensors into the network on a rank; None below stage 3: whole.

    Every parameter is partitioned as soon as its module is made. Then one tensor after the other is read by
    rank 0 alone, sent to the other ranks, and partitioned again: a rank holds its partition and one tensor. A
    collective: all ranks must load the same folder.
    """
    if trainer.zero_stage < 3:
        return None

    def assemble(
        build: Callable[[], nn.Module], names: Sequence[str], read: Callable[[str], Tensor]
    ) -> nn.Module:
        module = _build_partitioned(build, bf16=trainer.bf16)
        cast(FamilyModel, module).tie_weights()
        for name in names:
            owner, _, leaf = name.rpartition(".")
            holder = module.get_submodule(owner)
            if leaf in holder._buffers:
                setattr(holder, leaf, read(name))
            else:
                _fill(getattr(holder, leaf), name, read)
        return module

    return assemble


def _build_partitioned(build: Callable[[], nn.Module], *, bf16: bool) -> nn.Module:
    import deepspeed

    config = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": bf16},
        "zero_optimization": {"stage": 3},
    }
    # The dtype comes from the configuration: the argument for it is taken for another where float32 is asked.
    with deepspeed.zero.Init(config_dict_or_path=config, mem_efficient_linear=False):
        return build()


@torch.no_grad()
def _fill(parameter: Any, name: str, read: Callable[[str], Tensor]) -> None:
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        if torch.distributed.get_rank() == 0:
            parameter.copy_(read(name))
