"""What the families share: the call of `Denoiser`, what attention sees, the shift of logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rl4dlm.diffusion.blocks import BlockLayout, sequence_layout
from rl4dlm.models.scoring import OutputHead
from rl4dlm.types import AttentionLayout, KeyValueStore, Run


def key_mask_and_positions(input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor | None, Tensor]:
    """What attention may look at, and where tokens stand, so that padding is invisible to real tokens.

    Args:
        input_ids: int64 `[rows, length]`.
        attention_mask: bool `[rows, length]`, False = padding, wherever it lies; None = all real.

    Returns:
        Keys that may be attended to, bool `[rows, 1, 1, length]`, or None when all may; positions, int64
        `[rows or 1, length]`, counting real tokens from 0.

    Raises:
        TypeError: the mask is not bool; integer and additive masks circulate with opposite senses.
    """
    if attention_mask is not None and attention_mask.dtype != torch.bool:
        raise TypeError(f"attention_mask must be bool (True = real token), not {attention_mask.dtype}")
    if attention_mask is None or bool(attention_mask.all()):
        return None, torch.arange(input_ids.shape[1], device=input_ids.device)[None]
    positions = (attention_mask.long().cumsum(dim=-1) - 1).clamp_min(0)
    # A row of nothing but padding attends to itself: a softmax over no keys would be NaN.
    visible = attention_mask | ~attention_mask.any(dim=-1, keepdim=True)
    return visible[:, None, None, :], positions


def attention_of(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    layout: AttentionLayout | None,
    block_length: int | None,
) -> tuple[Tensor | None, Tensor]:
    """What attention may look at, and where tokens stand.

    Args:
        input_ids: int64 `[rows, length]`.
        attention_mask: bool `[rows, length]`, False = padding; None = all real.
        layout: in place of the model's own attention.
        block_length: of a block-causal model, whose blocks begin at the first real token.

    Returns:
        bool, broadcastable to `[rows, 1, queries, keys]`, True = may attend, or None where all may; and
        positions, int64 `[rows or 1, queries]`.
    """
    if layout is not None:
        return layout.visible()[:, None], layout.position
    mask, positions = key_mask_and_positions(input_ids, attention_mask)
    if block_length is None:
        return mask, positions
    real = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask
    layout = sequence_layout(real, block_length)
    return layout.visible()[:, None], layout.position


def previous_rows(hidden: Tensor, positions: Tensor, layout: AttentionLayout | None = None) -> Tensor:
    """At every token the row of the token before it, or its own where there is none.

    Args:
        hidden: `[rows, length, hidden]`.
        positions: int64 `[rows, length]`, restarting where a packed sequence begins.
        layout: of a sequence with a noisy copy, which says itself what stands before a token; elsewhere the
            column to the left does where it is one position before.
    """
    if isinstance(layout, BlockLayout):
        return hidden.gather(1, layout.before()[..., None].expand(hidden.shape))
    follows = torch.zeros_like(positions, dtype=torch.bool)
    follows[:, 1:] = positions[:, 1:] == positions[:, :-1] + 1
    return torch.where(follows[..., None], hidden.roll(1, dims=1), hidden)


class ExactBuffers(nn.Module):
    """Casts of the module leave its own buffers in their dtype: a rounded one would change what it steers."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            after = self._buffers[name]
            if buffer is not None and after is not None and after.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(after.device)
        return self


class FamilyModel(ExactBuffers, ABC):
    """A network with the call of `rl4dlm.types.Denoiser`: index i scores the token at position i.

    A child has `config` (with `block_length` and `logit_shift`) and gives the states and the head.
    """

    config: Any

    @abstractmethod
    def states(
        self, input_ids: Tensor, mask: Tensor | None, positions: Tensor, cache: KeyValueStore | None
    ) -> Tensor:
        """The residual stream after the last layer, `[rows, length, hidden]`; see `attention_of`."""

    @abstractmethod
    def finish(self, states: Tensor) -> Tensor:
        """The final norm: what the head reads, `[..., hidden]`."""

    @abstractmethod
    def head(self) -> OutputHead:
        """The projection to the vocabulary."""

    @abstractmethod
    def drop_head(self) -> None:
        """Remove the projection to the vocabulary; `hidden_states` is what remains."""

    @abstractmethod
    def recompute_layers(self, recompute: bool) -> None:
        """Whether the backward pass computes the layers again."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        select: Tensor | None = None,
        labels: Tensor | None = None,
        temperature: float = 1.0,
        layout: AttentionLayout | None = None,
        cache: KeyValueStore | None = None,
        run: Run | None = None,
    ) -> Tensor:
        """Logits, or log-probabilities of labels, at the selected positions.

        Args:
            input_ids: int64 `[rows, length]`, the mask token where a position is hidden.
            attention_mask: bool `[rows, length]`, False = padding, neither attended to nor counted in
                positions; None = all real. Values at padded positions mean nothing, but are finite.
            select: bool `[rows, length]`; None = all. The head runs on these positions alone.
            labels: int64 `[rows, length]`, ids to score; read at the selected positions only.
            temperature: divides the logits before labels are scored; without labels it has no effect.
            layout: positions and attention in place of `attention_mask`'s and the model's own.
            cache: stored keys and values, with transformers' `update(key, value, layer)`, which gives those
                to attend to; positions and visibility come from `layout` then.
            run: runs the layers; None: kernel by kernel.

        Returns:
            float32 logits `[selected, vocab]` in row-major order of `select` (`[rows, length, vocab]` without
            it), forbidden ids at -inf. With labels float32 `[selected]` (`[rows, length]`), nats.

        A model with shifted logits scores a token by the row before it, the first of a noisy block by the
        clean one (`BlockLayout.before`). Where the sequence holds none (the
        first token, or the first of a cached window), the token's own row is read, as published code does;
        what is sampled there means nothing.
        """
        mask, positions = attention_of(input_ids, attention_mask, layout, self.config.block_length)
        if run is None:
            hidden = self.states(input_ids, mask, positions, cache)
        else:
            hidden = run(self.states, input_ids, mask, positions, cache)
        if self.config.logit_shift:
            hidden = previous_rows(hidden, positions.expand(input_ids.shape), layout)
        if select is not None:
            hidden = hidden[select]
            labels = None if labels is None else labels[select]
        return self.head()(self.finish(hidden), labels, temperature)

    def hidden_states(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        layout: AttentionLayout | None = None,
    ) -> Tensor:
        """What the head reads, `[rows, length, hidden]`; row i is token i's own, unshifted."""
        mask, positions = attention_of(input_ids, attention_mask, layout, self.config.block_length)
        return self.finish(self.states(input_ids, mask, positions, None))

    def forbid(self, ids: Sequence[int]) -> None:
        """Ids that may never be proposed: their logits are -inf from now on."""
        self.head().forbid(ids)

    def gradient_checkpointing_enable(self) -> None:
        """Keep only each layer's input for the backward pass and compute the rest again."""
        self.recompute_layers(True)

    def gradient_checkpointing_disable(self) -> None:
        self.recompute_layers(False)

    def tie_weights(self) -> None:  # noqa: B027  (most families have nothing to tie)
        """Let the head use the embedding matrix where the configuration says so; call it after assignment."""
