"""Small denoisers for the rollout tests, a transformer (full or block-causal attention) and a table without
context; and a comparison of rollouts to the last bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rl4dlm.diffusion.blocks import BlockLayout, sequence_layout
from rl4dlm.diffusion.seeds import derive_seed
from rl4dlm.rollout import Request
from rl4dlm.rollout.store import Store
from rl4dlm.types import Denoiser, DenoiserSpec, Rollout

VOCAB, MASK, PAD, EOS, STOP = 14, 13, 12, 11, 10
SPEC = DenoiserSpec(
    mask_id=MASK,
    pad_id=PAD,
    eos_id=EOS,
    stop_ids=(EOS, STOP),
    vocab_size=VOCAB,
    forbidden_ids=(MASK, PAD),
    max_length=64,
)


class Transformer(nn.Module):
    """A few layers of attention, full or block-causal; positions count real tokens only, padding is neither
    query nor key."""

    def __init__(
        self,
        dtype: torch.dtype,
        *,
        heed_mask: bool = True,
        block_length: int | None = None,
        width: int = 16,
        num_layers: int = 2,
        shift: bool = False,
        scale: float = 1.5,
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)

        def table(*shape: int, scale: float = 1.0) -> nn.Parameter:
            return nn.Parameter(
                scale * torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)
            )

        self.heed_mask, self.width, self.block_length = heed_mask, width, block_length
        self.shift = shift
        self.tokens, self.positions = table(VOCAB, width), table(SPEC.max_length, width)
        self.layers = nn.ParameterList([table(5, width, width, scale=width**-0.5) for _ in range(num_layers)])
        self.head = table(width, VOCAB, scale=scale)
        self.calls: list[tuple[int, int, bool]] = []
        self.rows_of_head = 0

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        select: Tensor,
        labels: Tensor | None = None,
        temperature: float = 1.0,
        layout: BlockLayout | None = None,
        cache: Store | None = None,
    ) -> Tensor:
        self.calls.append((*input_ids.shape, attention_mask is not None))
        self.rows_of_head += int(select.sum())
        real = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask
        if not self.heed_mask:
            real = torch.ones_like(real)
        layout = sequence_layout(real, self.block_length) if layout is None else layout
        logits = self.hidden(input_ids, layout, cache)[select] @ self.head
        logits[:, list(SPEC.forbidden_ids)] = float("-inf")
        if labels is None:
            return logits.float()
        return (logits / temperature).log_softmax(1).gather(1, labels[select][:, None])[:, 0].float()

    def hidden(self, input_ids: Tensor, layout: BlockLayout, cache: Store | None) -> Tensor:
        """What the head reads, `[rows, length, width]`."""
        x = self.tokens[input_ids] + self.positions[layout.position]
        hidden = ~layout.visible()
        for layer, (query, key, value, up, down) in enumerate(self.layers):
            keys, values = x @ key, x @ value
            if cache is not None:
                keys, values = (t[:, 0] for t in cache.update(keys[:, None], values[:, None], layer))
            attention = (x @ query) @ keys.mT / self.width**0.5
            x = x + attention.masked_fill(hidden, float("-inf")).softmax(-1) @ values
            x = x / x.norm(dim=-1, keepdim=True) * self.width**0.5
            x = x + (x @ up).relu() @ down
        x = x / x.norm(dim=-1, keepdim=True)
        return self.row_before(x, layout.position) if self.shift else x

    @staticmethod
    def row_before(x: Tensor, position: Tensor) -> Tensor:
        """As Dream: the row of the token before, where the input holds it."""
        follows = torch.zeros_like(position, dtype=torch.bool)
        follows[:, 1:] = position[:, 1:] == position[:, :-1] + 1
        return torch.where(follows[..., None], x.roll(1, dims=1), x)


class Table(nn.Module):
    """The same distribution at every position, whatever stands elsewhere."""

    def __init__(self, probs: list[float]) -> None:
        super().__init__()
        self.logits = torch.tensor(probs).log()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None, select: Tensor, **_: object
    ) -> Tensor:
        return self.logits.expand(int(select.sum()), -1)


def transformer(dtype: torch.dtype = torch.float64, **kwargs: Any) -> Denoiser:
    spec = replace(SPEC, logit_shift=int(kwargs.get("shift", False)))
    return Denoiser(Transformer(dtype, **kwargs), spec)


def block_causal(block_length: int, dtype: torch.dtype = torch.float64, **kwargs: Any) -> Denoiser:
    """Blocks at multiples of their length from the first real token on; a token sees no later block."""
    shift = int(kwargs.get("shift", False))
    spec = replace(SPEC, attention="block_causal", block_length=block_length, logit_shift=shift)
    return Denoiser(Transformer(dtype, block_length=block_length, **kwargs), spec)


def table(probs: list[float]) -> Denoiser:
    """Ids 0..n-1 have these probabilities; the mask comes after them, and nothing ends the text."""
    size = len(probs)
    spec = DenoiserSpec(
        mask_id=size,
        pad_id=size + 1,
        eos_id=size + 2,
        stop_ids=(size + 2,),
        vocab_size=size,
        forbidden_ids=(),
    )
    return Denoiser(Table(probs), spec)


def requests(count: int, *, prompt_lens: tuple[int, ...] = (3, 0, 5, 9, 1), run: int = 0) -> list[Request]:
    """Requests in pairs of one uid each; the lengths of their prompts go round in a circle."""
    made = []
    for i in range(count):
        length = prompt_lens[i % len(prompt_lens)]
        ids = tuple(derive_seed("toy prompt", i // 2, j) % STOP for j in range(length))
        made.append(Request(100 + i // 2, i % 2, derive_seed(run, "toy rollout", i), ids))
    return made


def parts(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """A record's fields by dotted name, through the records inside it."""
    if not is_dataclass(value):
        yield name, value
        return
    for inner in fields(value):
        yield from parts(getattr(value, inner.name), f"{name}.{inner.name}")


def assert_same(ours: Sequence[Rollout], theirs: Sequence[Rollout]) -> None:
    """Everything equal, to the last bit."""
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        for (name, got), (_, want) in zip(parts(one), parts(other), strict=True):
            np.testing.assert_array_equal(got, want, err_msg=name)
            assert getattr(got, "dtype", None) == getattr(want, "dtype", None), name
