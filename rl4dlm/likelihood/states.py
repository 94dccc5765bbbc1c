"""Partly masked states of completions, and the log-probabilities of what they hide: the one place where a
trainer asks the model.

A method says which states it looks at (`States`); how a state becomes a model input follows from the model's
attention: a full-attention model reads the masked canvas, a block-causal one reads `[clean, noisy copy]`, so
that every block sees the clean blocks before it, as in sampling (BD3-LM, arXiv:2503.09573).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rl4dlm.diffusion.blocks import doubled_layout, prompt_tail
from rl4dlm.likelihood.packing import PackedRows, pack_rows
from rl4dlm.types import AttentionLayout, Denoiser, DenoiserSpec


@dataclass(frozen=True)
class States:
    """Some states of some completions, on the CPU; `states` counts them over all rows.

    Example: the three steps of a trace of 3 tokens: `row = [0, 0, 0]`, `number = [0, 1, 2]`, `is_masked` a
    triangle, `target` its diagonal, `weight` 1.
    """

    row: Tensor
    """int64 `[states]`: which of the rows at hand, ascending."""
    number: Tensor
    """int64 `[states]`: index of the state within its row, from 0."""
    is_masked: Tensor
    """bool `[states, completion]`: hidden from the model."""
    target: Tensor
    """bool `[states, completion]`: scored; a subset of `is_masked`."""
    weight: Tensor
    """float64 `[states, completion]`: of each log-probability in the method's estimate."""
    canvas: Tensor | None = None
    """int64 `[states, completion]`: what the unmasked positions hold where it is not the final completion
    (a visited state of a sampler that revises); the model then reads this canvas as it is."""
    label: Tensor | None = None
    """int64 `[states, completion]`: ids that are scored; None: the completion's."""
    clean: Tensor | None = None
    """int64 `[states, completion]`: the whole completion that a state hides parts of, where it is not the
    row's own (the other one of a pair); it is read and scored in its place."""
    prompt_masked: tuple[np.ndarray, ...] | None = None
    """bool `[prompt]` per state: prompt tokens that are hidden too; None: none."""
    stands_for: Tensor | None = None
    """float64 `[states, completion]`, 0 where a position is no target: how many actions of the completion a
    target stands for, where only a sample of them is scored; None: each for itself."""

    def __len__(self) -> int:
        return len(self.row)

    def take(self, keep: Tensor) -> States:
        """Some of the states.

        Args:
            keep: bool `[states]`.
        """
        return States(
            row=self.row[keep],
            number=self.number[keep],
            is_masked=self.is_masked[keep],
            target=self.target[keep],
            weight=self.weight[keep],
            canvas=None if self.canvas is None else self.canvas[keep],
            label=None if self.label is None else self.label[keep],
            clean=None if self.clean is None else self.clean[keep],
            prompt_masked=None
            if self.prompt_masked is None
            else tuple(mask for mask, kept in zip(self.prompt_masked, keep.tolist(), strict=True) if kept),
            stands_for=None if self.stands_for is None else self.stands_for[keep],
        )


def rectangle(
    is_masked: Tensor,
    weight: Tensor,
    *,
    target: Tensor | None = None,
    canvas: Tensor | None = None,
    label: Tensor | None = None,
) -> States:
    """As many states for every row.

    Args:
        is_masked: bool `[rows, states, completion]`.
        weight: broadcastable to it.
        target: bool of its shape; None: everything that is masked.
        canvas, label: int64 of its shape, see `States`.
    """
    num_rows, num_states, completion = is_masked.shape
    flat = (num_rows * num_states, completion)
    return States(
        row=torch.arange(num_rows).repeat_interleave(num_states),
        number=torch.arange(num_states).repeat(num_rows),
        is_masked=is_masked.reshape(flat),
        target=(is_masked if target is None else target).reshape(flat),
        weight=weight.double().expand(is_masked.shape).reshape(flat),
        canvas=None if canvas is None else canvas.reshape(flat),
        label=None if label is None else label.reshape(flat),
    )


def unseen_by_sampler(actions: Tensor) -> Tensor:
    """What the sampler had not written when it took its last action: all positions after it.

    Every state that a method makes of a completion hides them and scores none of them. A state that showed
    them would tell the model where the text ends; what lies there is no choice of the policy (fillers of
    blocks that were never sampled) or none that counts (the canvas after the first stop id). States that a
    sampler visited are replayed as they were recorded.

    Source: SPG, arXiv:2510.09541, its released code, which hides what follows the end of text.

    Args:
        actions: bool `[..., completion]`.

    Returns:
        bool of its shape.
    """
    return actions.flip(-1).long().cumsum(-1).flip(-1) == 0


def is_block_causal(spec: DenoiserSpec) -> bool:
    """Whether the model sees blocks in order, later ones not at all."""
    return spec.attention == "block_causal"


def block_of_positions(prompt_lengths: Sequence[int], completion: int, spec: DenoiserSpec) -> Tensor:
    """The block of each completion position, int64 `[rows, completion]`, 0 for the first that has any.

    Blocks of a block-causal model begin at multiples of its block length from the first prompt token, so the
    first one of a completion may be shorter. A full-attention model has one block.
    """
    position = torch.arange(completion).expand(len(prompt_lengths), -1)
    if not is_block_causal(spec):
        return torch.zeros_like(position)
    assert spec.block_length is not None, "a block-causal model has a block length"
    tail = torch.tensor([prompt_tail(length, spec.block_length) for length in prompt_lengths])
    return (position + tail[:, None]) // spec.block_length


def sequence_tokens(prompt_length: int, completion: int, spec: DenoiserSpec) -> int:
    """Tokens of one state's model input, without padding."""
    if not is_block_causal(spec):
        return prompt_length + completion
    assert spec.block_length is not None
    return prompt_length + 2 * completion + prompt_tail(prompt_length, spec.block_length)


def state_logp(
    denoiser: Denoiser,
    prompt_ids: Sequence[np.ndarray],
    completion_ids: np.ndarray,
    states: States,
    temperature: float = 1.0,
) -> Tensor:
    """log p(label_i | prompt, state) at every target, all states in one forward.

    Args:
        denoiser: the model; gradients flow where its call allows them.
        prompt_ids: per row int `[prompt]`, without padding.
        completion_ids: int `[rows, completion]`, whole canvases.
        states: of these rows.
        temperature: divides the logits. 1 for estimates of the ELBO kind, which are no law of a sampler; the
            sampler's for trajectories.

    Returns:
        `[states, completion]`, nats, in the denoiser's precision; 0 where a position is no target.
    """
    inputs = state_inputs(denoiser, prompt_ids, completion_ids, states)
    logp = denoiser.token_logp(
        inputs.input_ids,
        inputs.attention_mask,
        inputs.select,
        inputs.labels,
        temperature,
        inputs.layout,
    )
    target = states.target.to(logp.device)
    return logp.new_zeros(target.shape).masked_scatter(target, logp)


def state_values(
    denoiser: Denoiser, prompt_ids: Sequence[np.ndarray], completion_ids: np.ndarray, states: States
) -> Tensor:
    """A value model's values at every target, all states in one forward.

    Args:
        denoiser: the value model: called as a model, it returns one number per selected position.
        prompt_ids, completion_ids, states: as in `state_logp`.

    Returns:
        `[states, completion]`, in units of reward; 0 where a position is no target.
    """
    inputs = state_inputs(denoiser, prompt_ids, completion_ids, states)
    value = denoiser.logits(inputs.input_ids, inputs.attention_mask, inputs.select, inputs.layout)
    target = states.target.to(value.device)
    return value.new_zeros(target.shape).masked_scatter(target, value)


@dataclass(frozen=True)
class StateInputs:
    """States as one model call reads them; every tensor `[states, length]`."""

    input_ids: Tensor
    attention_mask: Tensor | None
    layout: AttentionLayout | None
    select: Tensor
    labels: Tensor


def state_inputs(
    denoiser: Denoiser,
    prompt_ids: Sequence[np.ndarray],
    completion_ids: np.ndarray,
    states: States,
    real: Tensor | None = None,
) -> StateInputs:
    """The model call that scores `states`; `select` marks their targets in row-major order.

    Args:
        real: bool `[states, completion]`, False after the end of a completion that is shorter than the
            others: the model does not see these positions. None: completions are whole canvases.
    """
    row = states.row.numpy()
    own = completion_ids[row] if states.clean is None else states.clean.numpy()
    clean = own if states.canvas is None else states.canvas.numpy()
    prompts = [prompt_ids[i] for i in row]
    packed = pack_rows(prompts, clean, pad_id=denoiser.spec.pad_id, device=denoiser.device)
    if real is not None:
        packed = _with_ends(packed, real)
    label = torch.from_numpy(np.ascontiguousarray(own)).long()
    label = (label if states.label is None else states.label).to(denoiser.device)
    hidden, target = states.is_masked.to(denoiser.device), states.target.to(denoiser.device)
    doubled = is_block_causal(denoiser.spec) and states.canvas is None
    copied = _copied(prompts, clean.shape[1], denoiser.spec) if doubled else 0
    ids = _hide_prompts(packed, states, denoiser.spec.mask_id)
    ids = torch.cat((ids, ids[:, ids.shape[1] - copied :]), dim=1)
    completion = clean.shape[1]
    tail = ids[:, -completion:].masked_fill(hidden, denoiser.spec.mask_id)
    ids = torch.cat((ids[:, :-completion], tail), dim=1)
    return StateInputs(
        input_ids=ids,
        attention_mask=None if doubled else packed.attention_mask,
        layout=_doubled(packed, denoiser.spec, copied) if doubled else None,
        select=_at_the_end(target, ids.shape[1]),
        labels=_at_the_end(label, ids.shape[1]),
    )


def _with_ends(packed: PackedRows, real: Tensor) -> PackedRows:
    """The same rows with padding after completions that are shorter than others."""
    mask = torch.ones_like(packed.input_ids, dtype=torch.bool)
    if packed.attention_mask is not None:
        mask &= packed.attention_mask
    mask[:, packed.canvas_start :] = real.to(mask.device)
    return PackedRows(packed.input_ids, None if bool(mask.all()) else mask, packed.canvas_start)


def _copied(prompts: Sequence[np.ndarray], completion: int, spec: DenoiserSpec) -> int:
    """Tokens in the noisy copy: the completion, and the longest prompt tail of these states."""
    assert spec.block_length is not None
    return completion + max(prompt_tail(len(prompt), spec.block_length) for prompt in prompts)


def _doubled(packed: PackedRows, spec: DenoiserSpec, copied: int) -> AttentionLayout:
    assert spec.block_length is not None
    real = packed.attention_mask
    if real is None:
        real = torch.ones_like(packed.input_ids, dtype=torch.bool)
    return doubled_layout(real, spec.block_length, copied)


def _hide_prompts(packed: PackedRows, states: States, mask_id: int) -> Tensor:
    """The packed ids with the prompt tokens hidden that the states hide."""
    if states.prompt_masked is None:
        return packed.input_ids
    hide = torch.zeros_like(packed.input_ids, dtype=torch.bool)
    for index, mask in enumerate(states.prompt_masked):
        start = packed.canvas_start - len(mask)
        hide[index, start : packed.canvas_start] = torch.from_numpy(mask).to(hide.device)
    return packed.input_ids.masked_fill(hide, mask_id)


def _at_the_end(values: Tensor, length: int) -> Tensor:
    """`[states, completion]` as the last columns of `[states, length]`, zeros before."""
    padding = values.new_zeros(len(values), length - values.shape[1])
    return torch.cat((padding, values), dim=1)
