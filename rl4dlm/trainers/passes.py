"""What happens to the rows of a batch in an update, whatever the method: minibatches, micro-batches,
estimates, losses. The policy's rank calls these and does the backward passes and the optimizer steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from rl4dlm.advantage.group import shuffle_groups
from rl4dlm.diffusion.seeds import derive_seed
from rl4dlm.errors import PluginError
from rl4dlm.likelihood.states import States
from rl4dlm.recipe.algorithms import Passes
from rl4dlm.trainers.method import BatchRows, Likelihood, Method, Metrics, MicroBatch, StepSize, tensor_like
from rl4dlm.types import Denoiser, TrainBatch


def minibatches(batch: TrainBatch, inner: int, num_minibatches: int) -> list[np.ndarray]:
    """Row indices of each optimizer step of pass `inner`; the same on every rank whatever their number.

    Whole groups in an order of their own for each pass; rows without loss are counted in.
    """
    seed = derive_seed(int(batch.seed[0]), "minibatches", inner)
    return shuffle_groups(batch.group, num_minibatches, seed)


def rows_that_learn(method: Method[Passes], batch: TrainBatch, num_states: np.ndarray) -> np.ndarray:
    """bool `[batch]`: rows that have states and can move the weights.

    With advantage 0 a row can do so through a KL to the reference, and through one to the old policy once the
    weights have left it, after the first step.

    Args:
        num_states: int64 `[batch]`: states of each row.
    """
    config = method.config
    moves = config.optimizer_steps(method.setting.num_minibatches) > 1
    every_row = config.learns_from_every_row or (config.stays_near_old and moves)
    return ((batch.advantage != 0) | every_row) & (num_states > 0)


def micro_batches(
    method: Method[Passes],
    batch: TrainBatch,
    rows: Sequence[int],
    token_budget: int,
    likelihood: Likelihood | None = None,
) -> list[MicroBatch]:
    """Split a rank's rows into passes of at most `token_budget` padded tokens (one state at the least).

    BatchRows without loss are not run. A row whose states together exceed the budget is split over them.

    Args:
        likelihood: what is evaluated; None: the method's.
    """
    asked = likelihood or method.likelihood
    counts = asked.states.count(batch)
    run = rows_that_learn(method, batch, counts)
    work = [(asked.score.num_tokens(batch, row), int(counts[row]), row) for row in map(int, rows) if run[row]]
    micro: list[MicroBatch] = []
    for part in share_states(work, token_budget):
        most = max(count for _, count, _ in part)
        fitting = most if len(part) > 1 else min(most, max(1, token_budget // part[0][0]))
        for first in range(0, most, fitting):
            states = tuple(range(first, min(first + fitting, most)))
            micro.append(MicroBatch(tuple(row for *_, row in part), states, whole=fitting == most))
    return micro


def share_states(work: Sequence[tuple[int, int, int]], token_budget: int) -> list[list[tuple[int, int, int]]]:
    """Share rows out over passes, longest first, such that no pass exceeds a budget of padded tokens.

    Args:
        work: (tokens of a state, number of states, row) of each row.
        token_budget: bound on (states of a pass) x (tokens of its longest one). A row above it has a pass of
            its own.
    """
    passes: list[list[tuple[int, int, int]]] = []
    states = 0
    for item in sorted(work, key=lambda item: (-item[0], -item[1])):
        if passes and (states + item[1]) * passes[-1][0][0] <= token_budget:
            passes[-1].append(item)
            states += item[1]
        else:
            passes.append([item])
            states = item[1]
    return passes


def step_size(method: Method[Passes], batch: TrainBatch, rows: Sequence[int] | np.ndarray) -> StepSize:
    """The denominators of an optimizer step on `rows` (of all ranks)."""
    index, states = np.asarray(rows, dtype=np.int64), method.likelihood.states
    counts = states.count(batch)
    run = rows_that_learn(method, batch, counts)
    tokens = batch.loss_mask.sum(1) if states.tokens is None else states.tokens(batch)
    units = counts if states.units is None else states.units(batch)
    num_tokens = max(1.0, float(tokens[index].sum()))
    return StepSize(
        num_rows=len(index),
        num_tokens=num_tokens,
        num_units=max(1, int(units[index].sum())),
        num_counted=max(1e-9, len(index) * float(run.mean())),
        num_counted_tokens=max(1e-9, num_tokens * float(tokens[run].sum()) / max(1, tokens.sum())),
    )


def needs_current(method: Method[Passes], micro: MicroBatch) -> bool:
    """Whether `loss` wants the whole current estimate of these rows, without gradient: split rows of a loss
    that is not a sum over states."""
    return not micro.whole and not method.likelihood.estimate.separable


def estimate_rows(
    likelihood: Likelihood, denoiser: Denoiser, batch: TrainBatch, micro: MicroBatch, inner: int
) -> Tensor:
    """The likelihood of these rows under `denoiser`, summed over the micro-batch's states.

    Called without gradients for old, reference and (when rows are split) current values.

    Returns:
        `[rows, ...]`, nats; adding the micro-batches of a row completes it.
    """
    return _evaluated(likelihood, denoiser, batch, micro, inner)[0]


def loss(
    method: Method[Passes],
    denoiser: Denoiser,
    batch: TrainBatch,
    micro: MicroBatch,
    inner: int,
    *,
    old: Tensor | None,
    ref: Tensor | None,
    current: Tensor | None,
    step: StepSize,
) -> tuple[Tensor, Metrics]:
    """This micro-batch's share of the loss of one optimizer step, with gradient.

    Where rows are split, value and metrics are counted with the first state.

    Args:
        old: cached estimate of these rows under the behaviour weights; None when the current weights are the
            behaviour weights (first and only step): the ratio is then 1 by construction.
        ref: cached estimate under the reference weights; None without a KL term.
        current: estimate under the current weights without gradient, given where `needs_current`; the exact
            gradient then follows from the chain rule through it.
        step: denominators of the optimizer step, over all ranks.
    """
    value, states = _evaluated(method.likelihood, denoiser, batch, micro, inner)
    partial = needs_current(method, micro)
    if partial:
        assert current is not None, "rows split over their states need their whole estimate"
        # Chain rule: the loss is formed at the whole value, its gradient flows through these states.
        value = current + (value - value.detach())
        # A row that is split is judged as a whole, unless the loss is a sum over its states.
        states = method.likelihood.states.make(batch, list(micro.rows), inner)
    found = method.objective(value, rows_of(method, batch, micro, states, value), old, ref, step)
    if not (isinstance(found, tuple) and len(found) == 2):
        raise PluginError(
            f"the objective returned {type(found).__name__}, not a loss and its metrics.\n"
            "Fix: return (loss, {name: value}); {} where there are no metrics."
        )
    share, metrics = found
    if partial and 0 not in micro.states:
        return share - share.detach(), {}
    return share, _numbers(metrics)


def _evaluated(
    likelihood: Likelihood, denoiser: Denoiser, batch: TrainBatch, micro: MicroBatch, inner: int
) -> tuple[Tensor, States]:
    """The estimate of a micro-batch, and the states that it is made of."""
    rows = list(micro.rows)
    states = likelihood.states.make(batch, rows, inner)
    if not micro.whole:
        states = states.take(torch.isin(states.number, torch.tensor(micro.states)))
    answers = likelihood.score(denoiser, batch, rows, states)
    return likelihood.estimate.combine(answers, states, len(rows)), states


def rows_of(
    method: Method[Passes], batch: TrainBatch, micro: MicroBatch, states: States, value: Tensor
) -> BatchRows:
    """A micro-batch's rows as its objective sees them.

    Args:
        states: those that are judged, see `Rows.states`.
        value: the estimate, whose device and dtype the tensors get.
    """
    index = list(micro.rows)
    count = states.target.double() if states.stands_for is None else states.stands_for
    stands_for = method.likelihood.estimate.judged(count, states, len(index))
    finer, weights = batch.token_advantage, batch.importance
    return BatchRows(
        advantage=torch.tensor(batch.advantage[index]).to(value),
        loss_mask=torch.from_numpy(batch.loss_mask[index]).to(value.device),
        live=(stands_for > 0).to(value.device),
        stands_for=stands_for.to(value),
        states=states,
        token_advantage=None if finer is None else tensor_like(finer[index], value),
        importance=None if weights is None else tensor_like(weights[index], value),
        record=None if batch.record is None else batch.record.take(index),
    )


def _numbers(values: Mapping[str, Tensor]) -> Metrics:
    """Scalars as numbers, in one transfer from the device for all of them."""
    if not values:
        return {}
    stacked = torch.stack([value.detach().double() for value in values.values()])
    return dict(zip(values, stacked.tolist(), strict=True))
