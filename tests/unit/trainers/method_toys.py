"""What the tests of token-level methods share: a batch, its estimate and one optimizer step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from tiny import tiny_denoiser, tiny_groups, tiny_scores

from rl4dlm.recipe.algorithms import AlgorithmConfig
from rl4dlm.trainers import make_method
from rl4dlm.trainers.base import MicroBatch, Setting
from rl4dlm.types import Denoiser, TrainBatch

REWARD = [1, 0, 0.5, 0, 0, 0, 0, 0, 1, 1, 0, 0.25]  # the second of three groups is all equal


def make(block_length: int | None = None, temperature: float = 1.0, **settings: Any) -> Any:
    """The trainer of some settings for the tiny model."""
    config = TypeAdapter(AlgorithmConfig).validate_python(settings)
    spec = tiny_denoiser(block_length=block_length).spec
    return make_method(config, Setting(temperature=temperature, spec=spec))


def batch_of(trainer: Any, groups: Any = None, reward: list[float] = REWARD, seed: int = 5) -> TrainBatch:
    groups = tiny_groups() if groups is None else groups
    batch, _ = trainer.prepare(groups, tiny_scores(reward), policy_version=3, seed=seed)
    assert batch is not None
    return batch


def perturbed(seed: int = 0, scale: float = 0.1) -> Denoiser:
    """The tiny model a few updates away."""
    denoiser = tiny_denoiser()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in denoiser.model.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return denoiser


def whole(trainer: Any, batch: TrainBatch) -> MicroBatch:
    """All rows and states in one pass."""
    most = int(trainer.num_states(batch).max())
    return MicroBatch(tuple(range(len(batch))), tuple(range(most)), True)


def estimate(trainer: Any, denoiser: Denoiser, batch: TrainBatch, inner: int = 0) -> torch.Tensor:
    """The method's estimate of all rows, without gradient."""
    with torch.no_grad():
        return trainer.estimate(denoiser, batch, whole(trainer, batch), inner)


def loss_of(
    trainer: Any, denoiser: Denoiser, batch: TrainBatch, inner: int = 0, **given: Any
) -> tuple[torch.Tensor, dict[str, float]]:
    """Loss and metrics of one optimizer step, run on the rows that have a loss; `given` is for all rows."""
    rows = np.flatnonzero(trainer.has_loss(batch))
    micro = replace(whole(trainer, batch), rows=tuple(rows.tolist()))
    caches = {name: given[name][rows] if name in given else None for name in ("old", "ref", "current")}
    step = trainer.step_size(batch, range(len(batch)))
    return trainer.loss(denoiser, batch, micro, inner, **caches, step=step)


def gradient(loss: torch.Tensor, denoiser: Denoiser) -> torch.Tensor:
    """Of all parameters, flat."""
    parameters = list(denoiser.model.parameters())
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])


def with_extra(batch: TrainBatch, **arrays: np.ndarray) -> TrainBatch:
    return replace(batch, extra={**batch.extra, **arrays})
