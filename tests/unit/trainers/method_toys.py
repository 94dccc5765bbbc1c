"""What the tests of methods share: a batch, its states and estimate, and one optimizer step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from tiny import tiny_denoiser, tiny_groups, tiny_scores

from rl4dlm.likelihood.states import States
from rl4dlm.recipe.algorithms import AlgorithmConfig, MethodConfig, Passes
from rl4dlm.trainers import make_method, passes
from rl4dlm.trainers.method import Likelihood, Method, MicroBatch, Setting
from rl4dlm.trainers.prepare import prepare_batch
from rl4dlm.types import Denoiser, TrainBatch

REWARD = [1, 0, 0.5, 0, 0, 0, 0, 0, 1, 1, 0, 0.25]  # the second of three groups is all equal


def make(block_length: int | None = None, temperature: float = 1.0, **settings: Any) -> Method[MethodConfig]:
    """The method of some settings for the tiny model."""
    config = TypeAdapter(AlgorithmConfig).validate_python(settings)
    spec = tiny_denoiser(block_length=block_length).spec
    return make_method(config, Setting(temperature=temperature, spec=spec))


def batch_of(
    method: Method[MethodConfig], groups: Any = None, reward: list[float] = REWARD, seed: int = 5
) -> TrainBatch:
    groups = tiny_groups() if groups is None else groups
    batch, _ = prepare_batch(method, groups, tiny_scores(reward), policy_version=3, seed=seed)
    assert batch is not None
    return batch


def states_of(method: Method[Passes], batch: TrainBatch, rows: Iterable[int], inner: int) -> States:
    """All states of some rows."""
    return method.likelihood.states.make(batch, [int(row) for row in rows], inner)


def runs(method: Method[Passes], batch: TrainBatch) -> np.ndarray:
    """bool `[batch]`: rows that can move the weights."""
    return passes.rows_that_learn(method, batch, method.likelihood.states.count(batch))


def perturbed(seed: int = 0, scale: float = 0.1) -> Denoiser:
    """The tiny model a few updates away."""
    denoiser = tiny_denoiser()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in denoiser.model.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return denoiser


def whole(likelihood: Likelihood, batch: TrainBatch) -> MicroBatch:
    """All rows and states in one pass."""
    most = int(likelihood.states.count(batch).max())
    return MicroBatch(tuple(range(len(batch))), tuple(range(most)), True)


def estimate(
    method: Method[Passes] | Likelihood, denoiser: Denoiser, batch: TrainBatch, inner: int = 0
) -> torch.Tensor:
    """The estimate of all rows, without gradient."""
    likelihood = method.likelihood if isinstance(method, Method) else method
    with torch.no_grad():
        return passes.estimate_rows(likelihood, denoiser, batch, whole(likelihood, batch), inner)


def loss_of(
    method: Method[Passes], denoiser: Denoiser, batch: TrainBatch, inner: int = 0, **given: Any
) -> tuple[torch.Tensor, dict[str, float]]:
    """Loss and metrics of one optimizer step, run on the rows that have a loss; `given` is for all rows."""
    rows = np.flatnonzero(runs(method, batch))
    micro = replace(whole(method.likelihood, batch), rows=tuple(rows.tolist()))
    caches = {name: given[name][rows] if name in given else None for name in ("old", "ref", "current")}
    step = passes.step_size(method, batch, range(len(batch)))
    return passes.loss(method, denoiser, batch, micro, inner, **caches, step=step)


def gradient(loss: torch.Tensor, denoiser: Denoiser) -> torch.Tensor:
    """Of all parameters, flat."""
    parameters = list(denoiser.model.parameters())
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])


def with_record(batch: TrainBatch, **arrays: np.ndarray) -> TrainBatch:
    """The batch with other arrays in its method's record."""
    assert batch.record is not None
    return replace(batch, record=replace(batch.record, **arrays))
