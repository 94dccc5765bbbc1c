"""The states that objectives of supervised fine-tuning look at: what is hidden, what is learned, with which
weight. One function per objective; all of them draw from row seeds alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rl4dlm.diffusion.block_noise import block_noise, block_times, cart_weights, late_bias
from rl4dlm.diffusion.masking import state_uniform
from rl4dlm.likelihood.states import States
from rl4dlm.likelihood.trajectory import rounds, shrink_steps
from rl4dlm.recipe.objectives import (
    BlockObjective,
    Noise,
    ObjectiveConfig,
    RandomMaskObjective,
    SemiARObjective,
    TraceObjective,
)

_CHOICE = 1  # the inner pass of draws that choose among a row's states; masks belong to pass 0


@dataclass(frozen=True)
class RowsAtHand:
    """Some rows of a batch on the CPU, completions padded on the right to the longest."""

    seed: Tensor
    """int64 `[rows]`."""
    t: Tensor
    """float64 `[rows]` in [0, 1)."""
    real: Tensor
    """bool `[rows, completion]`: False = padding."""
    trained: Tensor
    """bool `[rows, completion]`: may be a target."""
    prompt_lengths: Tensor
    """int64 `[rows]`."""
    offset: Tensor
    """int64 `[rows]`: prompt tokens in the block that the completion begins in; 0 without blocks."""
    block_length: int | None
    """Of block-causal attention; None: full attention."""
    step_map: Tensor | None = None
    """int64 `[rows, completion]`, -1 where the sampler committed nothing."""

    def blocks(self, length: int | None, offset: Tensor) -> tuple[Tensor, Tensor]:
        """Block of each position, and position within it, int64 `[rows, completion]` both; one block without
        a length."""
        place = offset[:, None] + torch.arange(self.real.shape[1])
        return (torch.zeros_like(place), place) if length is None else (place // length, place % length)


@dataclass(frozen=True)
class SFTStates:
    """One state of each row."""

    hidden: Tensor
    """bool `[rows, completion]`: the model sees the mask token here."""
    target: Tensor
    """bool `[rows, completion]`: scored."""
    weight: Tensor
    """float64 `[rows, completion]`: of the targets within their row."""
    scale: Tensor
    """float64 `[rows]`: of the whole row."""

    def states(self) -> States:
        """As states of as many rows, one each."""
        row = torch.arange(len(self.hidden))
        return States(row, torch.zeros_like(row), self.hidden, self.target, self.weight)


def sft_states(objective: ObjectiveConfig, rows: RowsAtHand) -> SFTStates:
    """The state of each row under an objective."""
    return _STATES[objective.type](objective, rows)


def _rates(objective: Noise, times: Tensor) -> Tensor:
    """Mask rates at diffusion times: p = (max - min) t + min."""
    return (objective.max_rate - objective.min_rate) * times + objective.min_rate


def _ones(rows: RowsAtHand) -> tuple[Tensor, Tensor]:
    """Weights and scales of 1."""
    return torch.ones(rows.real.shape, dtype=torch.float64), torch.ones_like(rows.t)


def _random_mask(objective: RandomMaskObjective, rows: RowsAtHand) -> SFTStates:
    """Every trained position hidden at one rate p per row, weight 1/p.

    Source: LLaDA, arXiv:2502.09992, its SFT step; with `cart`, Dream, arXiv:2508.15487.
    """
    block, _ = rows.blocks(None, rows.offset)
    rate = _rates(objective, rows.t[:, None])
    hidden, inverse = block_noise(rows.seed, rows.trained, block, rate, rule=objective.mask_rule)
    weight, scale = _ones(rows)
    if objective.weight == "inverse_rate":
        scale = inverse[:, 0]
    if objective.cart is not None:
        weight = _cart(objective.cart, rows, hidden)
    return SFTStates(hidden, hidden, weight, scale)


def _cart(p: float, rows: RowsAtHand, hidden: Tensor) -> Tensor:
    """CART weights of the completion, prompts counted as visible context."""
    longest = int(rows.prompt_lengths.max())
    prompt = torch.arange(longest) >= longest - rows.prompt_lengths[:, None]  # padded on the left
    visible = torch.cat((prompt, rows.real & ~hidden), dim=1)
    return cart_weights(visible, hidden.shape[1], p)


def _semi_ar(objective: SemiARObjective, rows: RowsAtHand) -> SFTStates:
    """One block of each row at rate p, later blocks hidden whole, weight (number of blocks) / p.

    Source: TraceRL's repository (arXiv:2509.06949), its semi-AR. Departs from it: weight 1/p, and the
    number of blocks, so that the mean over blocks is the sum over them; `weight: none` has neither.
    """
    block, _ = rows.blocks(objective.block_length, torch.zeros_like(rows.offset))
    num_blocks = ((rows.trained.sum(1) + objective.block_length - 1) // objective.block_length).clamp(min=1)
    choice = state_uniform(rows.seed, 1, _CHOICE)[:, 0]
    chosen = (choice * num_blocks).long()  # [rows]
    inside = rows.trained & (block == chosen[:, None])
    rate = _rates(objective, rows.t[:, None])
    target, inverse = block_noise(rows.seed, inside, torch.zeros_like(block), rate, rule=objective.mask_rule)
    weight, scale = _ones(rows)
    if objective.weight == "inverse_rate":
        scale = inverse[:, 0] * num_blocks
    return SFTStates(target | (rows.trained & (block > chosen[:, None])), target, weight, scale)


def _block(objective: BlockObjective, rows: RowsAtHand) -> SFTStates:
    """Every block at a rate of its own, weight 1/p within the block.

    Source: BD3-LM, arXiv:2503.09573, Eq. (8); Efficient-DLM, arXiv:2512.14067, for `half_life` (there the
    weight is 1/t, here n/k). A block of one token is always hidden: any rate gives the same mean, and this
    one no variance; the loss is then that of next-token prediction.
    """
    assert rows.block_length is not None, "the block objective needs block-causal attention"
    block, index = rows.blocks(rows.block_length, rows.offset)
    times = block_times(rows.t, int(block.max()) + 1, per_block=objective.rate_per == "block")
    rate = _rates(objective, times) if rows.block_length > 1 else torch.ones_like(times)
    bias = None
    if objective.half_life is not None:
        bias = late_bias(index, rate.gather(1, block), rows.block_length, objective.half_life)
    hidden, inverse = block_noise(rows.seed, rows.trained, block, rate, rule=objective.mask_rule, bias=bias)
    weight, scale = _ones(rows)
    if objective.weight == "inverse_rate":
        weight = inverse.gather(1, block)
    return SFTStates(hidden, hidden, weight, scale)


def _trace(objective: TraceObjective, rows: RowsAtHand) -> SFTStates:
    """One of the states that the sampler went through, drawn at random, weight (number of states).

    Source: TraceRL, arXiv:2509.06949, trace SFT. Departs from it: a step trains one state of a row, not all
    of them, which leaves the mean as it is. Positions that the sampler never filled are hidden throughout.
    """
    assert rows.step_map is not None, "trace rows carry a step map"
    block, _ = rows.blocks(rows.block_length, rows.offset)
    hidden, target = torch.zeros_like(rows.real), torch.zeros_like(rows.real)
    weight, scale = _ones(rows)
    choice = state_uniform(rows.seed, 1, _CHOICE)[:, 0]
    for row in range(len(rows.seed)):
        drawn = (rows.step_map[row] >= 0) & rows.trained[row]
        steps = torch.where(drawn, rows.step_map[row], torch.iinfo(torch.int64).max)
        merged = shrink_steps(steps.numpy(), drawn.numpy(), block[row].numpy(), objective.shrink)
        states = rounds(merged, drawn.numpy(), block[row].numpy())
        if states:
            shown = states[int(choice[row] * len(states))]
            hidden[row], target[row] = torch.from_numpy(shown[0]), torch.from_numpy(shown[1])
            scale[row] = float(len(states))
    return SFTStates(hidden & rows.real, target, weight, scale)


def _ar(objective: Any, rows: RowsAtHand) -> SFTStates:
    """Nothing hidden, everything scored, each token given those before it."""
    weight, scale = _ones(rows)
    return SFTStates(torch.zeros_like(rows.real), rows.trained, weight, scale)


_STATES: dict[str, Callable[[Any, RowsAtHand], SFTStates]] = {
    "random_mask": _random_mask,
    "semi_ar": _semi_ar,
    "block": _block,
    "trace": _trace,
    "ar": _ar,
}
