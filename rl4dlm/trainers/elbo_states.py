"""States of ELBO estimates: the masked corruptions of every completion, from its row's seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from rl4dlm.likelihood.elbo import ElboSettings, plan_corruptions
from rl4dlm.likelihood.states import States, block_of_positions
from rl4dlm.recipe.algorithms import ElboEstimated
from rl4dlm.trainers.method import StatePlan
from rl4dlm.types import DenoiserSpec, TrainBatch


def model_blocks(batch: TrainBatch, rows: Sequence[int], spec: DenoiserSpec) -> Tensor:
    """The model's block of each completion position, int64 `[rows, completion]`."""
    lengths = [len(batch.prompt_ids[row]) for row in rows]
    return block_of_positions(lengths, batch.completion_ids.shape[1], spec)


def elbo_settings(config: ElboEstimated) -> ElboSettings:
    """How a recipe wants the ELBO to be estimated."""
    return ElboSettings(config.estimator, config.num_nodes, config.num_masks, config.count_rule)


def elbo_states(settings: ElboSettings, spec: DenoiserSpec) -> StatePlan:
    """N nodes with K masks each, the same in current, old and reference policy."""

    def make(batch: TrainBatch, rows: list[int], inner: int) -> States:
        blocks = model_blocks(batch, rows, spec)
        return plan_corruptions(batch.seed[rows], batch.loss_mask[rows], inner, settings, blocks).states()

    return StatePlan(same_number(settings.num_states), make)


def same_number(count: int) -> Callable[[TrainBatch], np.ndarray]:
    """As many states for every row."""

    def number(batch: TrainBatch) -> np.ndarray:
        return np.full(len(batch), count, dtype=np.int64)

    return number
