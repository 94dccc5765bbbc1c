"""Layouts: blocks on a canvas, filled from left to right.

With full attention the blocks begin with the canvas; later blocks exist as mask tokens and are attended to.
A block-causal model has its blocks at multiples of their length from the first prompt token on, so the first
block of a canvas may be shorter by the prompt's tail, and the last one by the canvas's end.
"""

from __future__ import annotations

import torch
from torch import Tensor


def block_span(block: Tensor, block_length: Tensor | int, offset: Tensor | int, gen_len: int) -> Tensor:
    """First and one past the last canvas position of each row's block.

    Args:
        block: int64 `[rows]`, from 0; rows may be in different blocks.
        block_length: int64 `[rows]` or one number.
        offset: int64 `[rows]` or one number: prompt tokens in the first block.
        gen_len: canvas length.

    Returns:
        int64 `[rows, 2]`, within 0 and `gen_len`.
    """
    start = block * block_length - offset
    return torch.stack([start, start + block_length], dim=1).clamp(0, gen_len)


def num_blocks(gen_len: int, block_length: int, offset: int) -> int:
    """Blocks that a canvas touches."""
    return -(-(gen_len + offset) // block_length)
