"""Attention over shared keys: a written-out softmax, whether queries are folded or keys repeated."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rl4dlm.models.attention import attend, transformers_attention

ROWS, KV_HEADS, SIZE = 3, 2, 4


def states(groups: int, queries: int, keys: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(queries + groups)
    shapes = [(KV_HEADS * groups, queries), (KV_HEADS, keys), (KV_HEADS, keys)]
    made = [torch.randn(ROWS, *shape, SIZE, generator=generator, dtype=torch.float64) for shape in shapes]
    return made[0], made[1], made[2]


def some_mask(kind: str, queries: int, keys: int) -> Tensor | None:
    generator = torch.Generator().manual_seed(keys)
    shape = {"none": None, "keys": (ROWS, 1, 1, keys), "full": (ROWS, 1, queries, keys)}.get(kind)
    if kind == "shared":
        shape = (1, 1, queries, keys)
    if shape is None:
        return None
    mask = torch.rand(shape, generator=generator) < 0.6
    mask[..., 0] = True
    return mask


def written_out(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """`[rows, queries, heads * size]`, head by head."""
    groups, out = query.shape[1] // key.shape[1], []
    for head in range(query.shape[1]):
        score = query[:, head] @ key[:, head // groups].transpose(1, 2) * scale
        if mask is not None:
            score = score.masked_fill(~mask[:, 0], -math.inf)
        out.append(score.softmax(-1) @ value[:, head // groups])
    return torch.cat(out, dim=-1)


class Copies(TorchDispatchMode):
    """Counts elements that are written by anything that copies."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.clone, torch.ops.aten.index_select, torch.ops.aten.copy_):
            self.elements += out.numel()
        return out


# With 16 queries and a mask of its own for each, repeating the keys copies less than the folded mask would.
@pytest.mark.parametrize("queries", [1, 3, 16])
@pytest.mark.parametrize("mask", ["none", "keys", "full", "shared"])
@pytest.mark.parametrize("groups", [1, 4])
def test_it_is_the_softmax_over_the_keys_of_each_head(groups: int, mask: str, queries: int) -> None:
    query, key, value = states(groups, queries, keys=7)
    seen = some_mask(mask, queries, 7)
    for scale in (None, 0.3):
        expected = written_out(query, key, value, seen, scale or 1 / math.sqrt(SIZE))
        torch.testing.assert_close(attend(query, key, value, seen, scale), expected)


def test_gradients_reach_shared_keys_from_every_head() -> None:
    query, key, value = (part.requires_grad_() for part in states(4, 3, 5))
    mask = some_mask("full", 3, 5)
    found = torch.autograd.grad(attend(query, key, value, mask).square().sum(), [query, key, value])
    wanted = written_out(query, key, value, mask, 1 / math.sqrt(SIZE)).square().sum()
    for one, other in zip(found, torch.autograd.grad(wanted, [query, key, value]), strict=True):
        torch.testing.assert_close(one, other)


def test_few_queries_do_not_repeat_keys() -> None:
    query, key, value = states(4, 2, 512)
    with Copies() as copies:
        attend(query, key, value, some_mask("full", 2, 512))
    assert copies.elements < 2 * key.numel()  # repeated for four heads, they would be eight times as many


def test_transformers_layers_get_heads_apart() -> None:
    query, key, value = states(4, 3, 5)
    mixed, weights = transformers_attention(torch.nn.Identity(), query, key, value, None, scaling=0.5)
    torch.testing.assert_close(mixed.flatten(2), attend(query, key, value, None, 0.5))
    assert mixed.shape == (ROWS, 3, 4 * KV_HEADS, SIZE)
    assert weights is None
