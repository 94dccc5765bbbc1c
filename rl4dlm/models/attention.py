"""Softmax attention whose query heads may share keys and values, without a copy of either."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

ATTENTION_NAME = "rl4dlm"
"""What transformers' layers know `transformers_attention` by."""


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None = None
) -> Tensor:
    """Attention both ways; query head h reads key head `h // (heads / kv heads)`.

    The queries of heads that share keys become further queries of one head. Only where a mask with many
    queries would grow more by that than the keys by repeating them are the keys repeated.

    Args:
        query: `[rows, heads, queries, head size]`.
        key, value: `[rows, kv heads, keys, head size]`.
        mask: bool, broadcastable to `[rows, 1, queries, keys]`, True = may attend; None = all may.
        scale: of the scores; None: one over the root of the head size.

    Returns:
        `[rows, queries, heads * head size]`.
    """
    shared_by = query.shape[1] // key.shape[1]
    folded = shared_by > 1 and _folding_copies_less(query, key, mask)
    if folded:
        query = query.unflatten(1, (key.shape[1], shared_by)).flatten(2, 3)
        mask = None if mask is None else _for_each_head(mask, shared_by)
    elif shared_by > 1:
        key, value = (states.repeat_interleave(shared_by, dim=1) for states in (key, value))
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    if folded:
        mixed = mixed.unflatten(2, (shared_by, -1)).flatten(1, 2)
    return mixed.transpose(1, 2).flatten(2)


def _folding_copies_less(query: Tensor, key: Tensor, mask: Tensor | None) -> bool:
    """A mask for the queries of all heads has no more elements than the repeated keys and values."""
    if mask is None or mask.shape[-2] == 1:
        return True
    shared_by = query.shape[1] // key.shape[1]
    return len(mask) * shared_by * query.shape[2] <= 2 * len(query) * query.shape[1] * query.shape[3]


def _for_each_head(mask: Tensor, heads: int) -> Tensor:
    """`[rows, 1, queries, keys]` to `[rows, 1, heads * queries, keys]`; one that all queries share stays."""
    if mask.shape[-2] == 1:
        return mask
    return mask[:, :, None].expand(-1, -1, heads, -1, -1).flatten(2, 3)


def transformers_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """`attend` as transformers' layers call it; `[rows, queries, heads, head size]`."""
    mixed = attend(query, key, value, attention_mask, scaling)
    return mixed.unflatten(-1, (query.shape[1], -1)), None
