"""How log-probabilities become an estimate: per sequence, per token, or one number in each place of a
state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from rl4dlm.likelihood.states import States, sequence_tokens, state_logp
from rl4dlm.trainers.method import Estimate
from rl4dlm.types import Denoiser, DenoiserSpec, TrainBatch


def sum_states(values: Tensor, states: States, num_rows: int) -> Tensor:
    """Sum `[states, ...]` over the states of each row: `[rows, ...]`."""
    zeros = values.new_zeros(num_rows, *values.shape[1:])
    return zeros.index_add(0, states.row.to(values.device), values)


def place_states(values: Tensor, states: States, num_rows: int, num_states: int) -> Tensor:
    """`[states, ...]` at their places in `[rows, num_states, ...]`, zeros elsewhere."""
    zeros = values.new_zeros(num_rows * num_states, *values.shape[1:])
    where = (states.row * num_states + states.number).to(values.device)
    return zeros.index_add(0, where, values).unflatten(0, (num_rows, num_states))


def _per_sequence(logp: Tensor, states: States, num_rows: int) -> Tensor:
    return sum_states((states.weight.to(logp) * logp).sum(-1), states, num_rows)


def _per_token(logp: Tensor, states: States, num_rows: int) -> Tensor:
    return sum_states(states.weight.to(logp) * logp, states, num_rows)


def _at_positions(count: Tensor, states: States, num_rows: int) -> Tensor:
    """`[rows, completion]`: the largest count that any state has at a position."""
    zeros = count.new_zeros(num_rows, count.shape[1])
    return zeros.scatter_reduce(0, states.row[:, None].expand_as(count), count, "amax")


PER_SEQUENCE = Estimate(_per_sequence, _at_positions)
"""`[rows]`: the weighted sum over all states and targets."""
PER_TOKEN = Estimate(_per_token, _at_positions)
"""`[rows, completion]`: the weighted sum over states at each position."""
SUM_OVER_STATES = replace(PER_SEQUENCE, separable=True)
"""As `PER_SEQUENCE`, for losses that are linear in it: a row may be split over its states."""
ONE_STATE_EACH = replace(PER_TOKEN, separable=True)
"""As `PER_TOKEN`, where every position is a target of one state alone."""


def in_places(num_states: int, *, separable: bool, judged_in_states: bool = False) -> Estimate:
    """`[rows, num_states, ...]`: every state's own values, zeros where a row has fewer states.

    Args:
        num_states: most states of a row.
        separable: see `Estimate`.
        judged_in_states: the objective judges every target in its state, not every position once.
    """

    def place(values: Tensor, states: States, num_rows: int) -> Tensor:
        return place_states(values, states, num_rows, num_states)

    return Estimate(place, place if judged_in_states else _at_positions, separable)


def summed_as(combine: Callable[[Tensor, States, int], Tensor]) -> Estimate:
    """An estimate of the method's own; rows that are split need their whole estimate."""
    return Estimate(combine, _at_positions)


@dataclass(frozen=True)
class TokenLogp:
    """Log-probabilities of the targets under the language model, `[states, completion]`."""

    spec: DenoiserSpec
    """Of the model."""
    temperature: float = 1.0
    """1 for estimates of the ELBO kind, which are no law of a sampler; the sampler's for trajectories."""
    block_length: int | None = None
    """Blocks that a block-causal model is read with; None: its own."""

    def __call__(self, denoiser: Denoiser, batch: TrainBatch, rows: list[int], states: States) -> Tensor:
        """See `Score`."""
        prompts = [batch.prompt_ids[row] for row in rows]
        model = with_blocks(denoiser, self.block_length)
        return state_logp(model, prompts, batch.completion_ids[rows], states, self.temperature)

    def num_tokens(self, batch: TrainBatch, row: int) -> int:
        """Tokens of the input that one state of a row makes."""
        return sequence_tokens(len(batch.prompt_ids[row]), batch.completion_ids.shape[1], self.spec)


def with_blocks(denoiser: Denoiser, block_length: int | None) -> Denoiser:
    """The model read with another block length: states say who attends to whom."""
    if block_length is None or denoiser.spec.block_length == block_length:
        return denoiser
    return replace(denoiser, spec=replace(denoiser.spec, block_length=block_length))
