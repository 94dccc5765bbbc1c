"""Log-probabilities along a recorded trace: the trainer's view of what the sampler did."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rl4dlm.diffusion.blocks import sequence_layout
from rl4dlm.diffusion.replay import Commits, commits_of, state_before
from rl4dlm.likelihood.packing import pack_rows
from rl4dlm.types import Denoiser, Rollout


def replay_logp(
    denoiser: Denoiser,
    rollouts: Sequence[Rollout],
    steps: Sequence[int],
    temperature: float,
    block_length: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the tokens that one step of each rollout committed, beside what the sampler
    recorded.

    Source: decoding specification X14 (replay). The state before the step is rebuilt from the trace.

    Args:
        denoiser: the model.
        rollouts: with canvases of one length.
        steps: one step per rollout, from 0.
        temperature: the sampler's; 0 (greedy) is recorded at temperature 1.
        block_length: of the sampler, where it enlarged a block-causal model's blocks; None: the model's own.

    Returns:
        float32 `[tokens]` twice, nats: now, and at commit time.
    """
    pairs = list(zip(rollouts, steps, strict=True))
    commits = [commits_of(rollout, step) for rollout, step in pairs]
    rows = pack_rows(
        [rollout.prompt_ids for rollout in rollouts],
        np.stack([state_before(rollout, step, denoiser.spec.mask_id) for rollout, step in pairs]),
        pad_id=denoiser.spec.pad_id,
        device=denoiser.device,
    )
    select, labels = _targets(commits, rows.input_ids, rows.canvas_start)
    real, layout = rows.attention_mask, None
    if block_length is not None:
        every = torch.ones_like(rows.input_ids, dtype=torch.bool) if real is None else real
        real, layout = None, sequence_layout(every, block_length)
    now = denoiser.token_logp(rows.input_ids, real, select, labels, temperature or 1.0, layout)
    recorded = np.concatenate([commit.logp for commit in commits])
    return now, torch.from_numpy(recorded).to(now.device)


def _targets(commits: Sequence[Commits], input_ids: Tensor, canvas_start: int) -> tuple[Tensor, Tensor]:
    """Which positions were committed, and what, both `[rows, length]`."""
    select, labels = torch.zeros(input_ids.shape, dtype=torch.bool), input_ids.cpu().clone()
    for row, commit in enumerate(commits):
        where = torch.from_numpy(commit.position) + canvas_start
        select[row, where] = True
        labels[row, where] = torch.from_numpy(commit.token).long()
    return select.to(input_ids.device), labels.to(input_ids.device)


@torch.no_grad()
def replay_gap(
    denoiser: Denoiser, rollouts: Sequence[Rollout], temperature: float, block_length: int | None = None
) -> tuple[float, int]:
    """How far the trainer's log-probabilities are from the sampler's, on one recorded step of each rollout.

    The step is chosen by the rollout's seed. Zero up to rounding when both use the same weights and numerics.

    Returns:
        Sum of absolute differences in nats, and the number of tokens compared.
    """
    steps = [rollout.seed % max(1, rollout.num_steps) for rollout in rollouts]
    now, recorded = replay_logp(denoiser, rollouts, steps, temperature, block_length)
    return float((now - recorded).abs().sum()), int(now.numel())
