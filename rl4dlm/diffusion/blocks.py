"""Who may attend to whom: full, block-causal and doubled attention, packing and padding, in one place.

A token is described by four numbers: where it stands, its block, whether it belongs to the noisy copy, and
its segment. Every mask of the toolkit follows from them by one rule (`visible`), so sampler, trainer and
value model cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PADDING = -1
"""Segment of tokens that nothing attends to."""


@dataclass(frozen=True)
class BlockLayout:
    """Positions and attention of `[rows, length]` tokens.

    Example: two blocks of two tokens, doubled: `block = [0, 0, 1, 1, 0, 0, 1, 1]`, `noisy` true for the last
    four, `position = [0, 1, 2, 3, 0, 1, 2, 3]`, `segment` all 0.
    """

    position: Tensor
    """int64 `[rows, length]`: rotary position; both copies of a token have the same."""
    block: Tensor
    """int64 `[rows, length]`: block index within the segment, from 0, ascending with the position."""
    noisy: Tensor
    """bool `[rows, length]`: belongs to the noisy copy of a doubled sequence."""
    segment: Tensor
    """int64 `[rows, length]`: tokens see their own segment only; `PADDING` is seen by nobody."""

    def visible(self) -> Tensor:
        """bool `[rows, length, length]`: the token of the second axis may attend to that of the third.

        Clean tokens see clean tokens of their block and earlier ones; noisy tokens see clean tokens of
        earlier blocks and noisy tokens of their own. A token that would see nothing sees itself: a softmax
        over no keys is NaN.
        """
        query, key = self.block[:, :, None], self.block[:, None, :]
        noisy_query, noisy_key = self.noisy[:, :, None], self.noisy[:, None, :]
        same = self.segment[:, :, None] == self.segment[:, None, :]
        real = (self.segment != PADDING)[:, None, :]
        to_clean = ~noisy_key & torch.where(noisy_query, key < query, key <= query)
        to_noisy = noisy_key & noisy_query & (key == query)
        seen = same & real & (to_clean | to_noisy)
        blind = ~seen.any(dim=-1, keepdim=True)
        own = torch.eye(seen.shape[1], dtype=torch.bool, device=seen.device)
        return seen | (blind & own)

    def before(self) -> Tensor:
        """int64 `[rows, length]`: the column of the token before each one; its own where there is none.

        Before the first token of a noisy block stands the clean one: when the block is sampled, those before
        it are finished. A model with shifted logits reads a token off this column.
        """
        follows = torch.zeros_like(self.noisy)
        follows[:, 1:] = (
            (self.position[:, 1:] == self.position[:, :-1] + 1)
            & (self.segment[:, 1:] == self.segment[:, :-1])
            & (self.noisy[:, 1:] == self.noisy[:, :-1])
            & (~self.noisy[:, 1:] | (self.block[:, 1:] == self.block[:, :-1]))
        )
        column = torch.arange(self.position.shape[1], device=self.position.device)
        before = column - follows.long()
        same = self.segment[:, :, None] == self.segment[:, None, :]
        earlier = self.position[:, :, None] == self.position[:, None, :] + 1
        clean = same & earlier & ~self.noisy[:, None, :] & (self.noisy & ~follows)[:, :, None]
        return torch.where(clean.any(dim=-1), clean.byte().argmax(dim=-1), before)


@dataclass(frozen=True)
class WindowLayout:
    """Queries that attend to stored keys as well: part of a sequence, with a key-value cache."""

    position: Tensor
    """int64 `[rows, queries]`."""
    mask: Tensor
    """bool `[rows, queries, keys]`: keys in the order in which the cache returns them."""

    def visible(self) -> Tensor:
        """`mask`."""
        return self.mask


def sequence_layout(attention_mask: Tensor, block_length: int | None) -> BlockLayout:
    """The attention of a sequence as it is sampled, padding invisible wherever it lies.

    Args:
        attention_mask: bool `[rows, length]`, False = padding.
        block_length: of a block-causal model, whose blocks begin at multiples of it from the first real
            token; None: every real token sees every other.
    """
    position = (attention_mask.long().cumsum(dim=-1) - 1).clamp_min(0)
    block = torch.zeros_like(position) if block_length is None else position // block_length
    segment = torch.where(attention_mask, 0, PADDING)
    return BlockLayout(position, block, torch.zeros_like(attention_mask), segment)


def doubled_layout(attention_mask: Tensor, block_length: int, copied: int) -> BlockLayout:
    """The attention of `[sequence, noisy copy of its last tokens]`: one forward for a step of every block.

    Source: block diffusion, arXiv:2503.09573 (vectorised training); TraceRL, arXiv:2509.06949. Blocks begin
    at multiples of `block_length` from the first real token, as in sampling; the block that the completion
    begins in is to be copied whole, or its tokens would miss the prompt's tail (see `prompt_tail`).

    Args:
        attention_mask: bool `[rows, length]` of the sequence, False = padding.
        block_length: of the model.
        copied: tokens at the end of the sequence that the noisy copy repeats.

    Returns:
        The layout of `[rows, length + copied]` tokens.
    """
    clean = sequence_layout(attention_mask, block_length)

    def doubled(values: Tensor) -> Tensor:
        return torch.cat((values, values[:, values.shape[1] - copied :]), dim=1)

    noisy = torch.zeros_like(doubled(attention_mask))
    noisy[:, attention_mask.shape[1] :] = True
    return BlockLayout(doubled(clean.position), doubled(clean.block), noisy, doubled(clean.segment))


def prompt_tail(prompt_length: int, block_length: int) -> int:
    """Prompt tokens in the block that the completion begins in: a noisy copy begins with them."""
    return prompt_length % block_length
