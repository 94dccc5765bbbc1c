"""How a step's logits are computed: one full forward, or two under guidance; `caches.py` has the others."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from rl4dlm.decoding import SamplerSpec
from rl4dlm.diffusion.blocks import PADDING, BlockLayout
from rl4dlm.rollout.caches import CachedForward
from rl4dlm.rollout.graphs import Graphs
from rl4dlm.rollout.slots import Slots, Window
from rl4dlm.types import Denoiser


class Forward(Protocol):
    """Computes the logits of a step, and knows what must be kept of earlier ones."""

    def window(self, slots: Slots) -> Window:
        """What the step looks at."""
        ...

    def __call__(self, slots: Slots, window: Window) -> Tensor:
        """Logits at the seen positions, `[seen, vocab]`; counts forwards and tokens."""
        ...

    def keep(self, rows: list[int]) -> None:
        """Drop every other row."""
        ...


def make_forward(
    denoiser: Denoiser, spec: SamplerSpec, slots: Slots, graphs: Graphs | None = None
) -> Forward:
    """The forward that a sampler asks for."""
    if spec.cache != "none":
        return CachedForward(denoiser, spec, slots, graphs)
    return FullForward(denoiser, spec)


class FullForward:
    """Prompt and canvas of every row at every step; the head runs on the seen positions only."""

    def __init__(self, denoiser: Denoiser, spec: SamplerSpec) -> None:
        self._denoiser, self._spec = denoiser, spec

    def keep(self, rows: list[int]) -> None:
        """Nothing is kept between steps."""

    def window(self, slots: Slots) -> Window:
        """What the sampler needs."""
        return slots.window()

    def __call__(self, slots: Slots, window: Window) -> Tensor:
        """See `Forward`."""
        guided = self._spec.cfg_scale > 0
        slots.forwards += 1 + guided
        slots.tokens += (1 + guided) * (slots.prompt_len + self._spec.gen_len)
        input_ids, attention_mask = slots.model_input()
        where, blocks = window.where(window.index), enlarged_blocks(self._denoiser, slots)
        gen_len = self._spec.gen_len
        logits = canvas_logits(self._denoiser, input_ids, attention_mask, where, gen_len, blocks)
        if not guided:
            return logits
        blank = input_ids.clone()
        blank[:, : blank.shape[1] - gen_len] = slots.mask_id
        without = canvas_logits(self._denoiser, blank, attention_mask, where, gen_len, blocks)
        return guide(logits, without, self._spec.cfg_scale)


def enlarged_blocks(denoiser: Denoiser, slots: Slots) -> Tensor | None:
    """Block length of each row, where some row decodes longer blocks than its model was made for."""
    model = denoiser.spec
    if model.attention == "full":
        return None
    lengths = {slots.sampler(slot).block_length for slot in range(len(slots))}
    return slots.block_length if lengths != {model.block_length} else None


def canvas_logits(
    denoiser: Denoiser,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    where: tuple[Tensor, Tensor],
    gen_len: int,
    block_length: Tensor | None = None,
) -> Tensor:
    """Logits at canvas positions of whole sequences, `[seen, vocab]`.

    Args:
        denoiser: the model.
        input_ids: int64 `[rows, length]`, the canvas in the last columns.
        attention_mask: bool `[rows, length]`, or None.
        where: row and canvas position of each entry, in row-major order.
        gen_len: canvas length.
        block_length: int64 `[rows]`: attend in blocks of these lengths instead of the model's own.
    """
    select = torch.zeros_like(input_ids, dtype=torch.bool)
    select[where[0], where[1] + (input_ids.shape[1] - gen_len)] = True
    if block_length is None:
        return denoiser.logits(input_ids, attention_mask, select)
    real = torch.ones_like(select) if attention_mask is None else attention_mask
    return denoiser.logits(input_ids, None, select, blocks_of(real, block_length))


def blocks_of(real: Tensor, block_length: Tensor) -> BlockLayout:
    """Block-causal attention in blocks of each row's own length, from its first real token on.

    Args:
        real: bool `[rows, length]`, False = padding.
        block_length: int64 `[rows]`.
    """
    position = (real.long().cumsum(dim=1) - 1).clamp_min(0)
    segment = torch.where(real, 0, PADDING)
    return BlockLayout(position, position // block_length[:, None], torch.zeros_like(real), segment)


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance: `u + (scale + 1) (c - u)`; forbidden ids stay at -inf.

    Source: LLaDA, arXiv:2502.09992, reference sampler (`cfg_scale`).
    """
    moved = unconditional + (scale + 1) * (conditional - unconditional)
    return torch.where(conditional == float("-inf"), conditional, moved)
