"""Rows of a batch as model inputs: which positions count, how prompts are padded, how rows share a pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rl4dlm.types import EOS_FILLER, Rollout


@dataclass(frozen=True)
class PackedRows:
    """Clean sequences of some rows, prompts padded on the left to the longest of them.

    Example: prompts of 2 and 3 tokens with a canvas of 4 give `input_ids` `[2, 7]` and `canvas_start` 3.
    """

    input_ids: Tensor
    """int64 `[rows, length]`."""
    attention_mask: Tensor | None
    """bool `[rows, length]`, False = padding; None where no row is padded."""
    canvas_start: int
    """Column of the first completion token, the same in every row."""


def pack_rows(
    prompt_ids: Sequence[np.ndarray], completion_ids: np.ndarray, *, pad_id: int, device: str
) -> PackedRows:
    """Put prompts and completions into one rectangle.

    Args:
        prompt_ids: per row int `[prompt]`, without padding.
        completion_ids: int `[rows, completion]`, whole canvases.
        pad_id: fills the left of shorter prompts; never attended to.
        device: where the tensors shall lie.
    """
    rows, completion = completion_ids.shape
    start = max(len(prompt) for prompt in prompt_ids)
    ids = np.full((rows, start + completion), pad_id, dtype=np.int64)
    real = np.ones(ids.shape, dtype=bool)
    ids[:, start:] = completion_ids
    for row, prompt in enumerate(prompt_ids):
        ids[row, start - len(prompt) : start] = prompt
        real[row, : start - len(prompt)] = False
    attention_mask = None if real.all() else torch.from_numpy(real).to(device)
    return PackedRows(torch.from_numpy(ids).to(device), attention_mask, start)


def action_mask(rollouts: Sequence[Rollout], *, until_eos: bool) -> np.ndarray:
    """Which canvas positions are the policy's actions.

    Fillers after an early stop never are.

    Args:
        rollouts: with canvases of one length.
        until_eos: only up to and including the first stop id; else the whole canvas.

    Returns:
        bool `[rollouts, completion]`.
    """
    kind = np.stack([rollout.trace.kind for rollout in rollouts])
    mask = kind != EOS_FILLER
    if until_eos:
        length = np.array([rollout.completion_len for rollout in rollouts])
        mask &= np.arange(kind.shape[1]) < length[:, None]
    return mask


def split_by_tokens(row_tokens: Sequence[int], token_budget: int) -> list[list[int]]:
    """Share rows out over passes, longest first, such that no pass exceeds a budget of padded tokens.

    Rows of similar length meet, so little is padded, and the largest pass comes first: what does not fit in
    memory fails at once.

    Args:
        row_tokens: tokens of each row, e.g. states times sequence length.
        token_budget: bound on (rows of a pass) x (tokens of its longest row). A row above it has a pass of
            its own.

    Returns:
        Indices into `row_tokens` for each pass.
    """
    passes: list[list[int]] = []
    for index in sorted(range(len(row_tokens)), key=lambda i: -row_tokens[i]):
        if passes and (len(passes[-1]) + 1) * row_tokens[passes[-1][0]] <= token_budget:
            passes[-1].append(index)
        else:
            passes.append([index])
    return passes
