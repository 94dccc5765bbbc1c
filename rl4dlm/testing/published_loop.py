"""The sampling loop that most repositories have: what the engine is timed against.

Fixed batches; at every step prompt and canvas of all rows go through body and head; noise over the whole
vocabulary in float64; every row runs to the last step. `reference_sampler.py` has the plain sampler that the
engine must equal in every record; this one is batched, so that its time is what a plain loop costs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rl4dlm.decoding import SamplerSpec
from rl4dlm.likelihood.packing import pack_rows
from rl4dlm.rollout.request import Request
from rl4dlm.types import Denoiser


@torch.inference_mode()
def generate_plain(
    denoiser: Denoiser,
    spec: SamplerSpec,
    requests: Sequence[Request],
    batch_size: int,
    *,
    until_all_end: bool = False,
) -> np.ndarray:
    """Sample by the published loop: blocks from left to right, lowest confidence remasked, linear schedule.

    Source: LLaDA, arXiv:2502.09992, reference sampler. Random numbers are torch's own, so only greedy samples
    can be compared with the engine's.

    Args:
        denoiser: the model.
        spec: `gen_len`, `block_length`, `steps` and `temperature` are read, nothing else.
        requests: what to sample.
        batch_size: rows that share a forward, from the first to the last step.
        until_all_end: stop a batch at the block in which its last row ends, the others waiting for it.

    Returns:
        int64 `[requests, completion]`.
    """
    parts = [
        _denoise(denoiser, spec, requests[start : start + batch_size], until_all_end)
        for start in range(0, len(requests), batch_size)
    ]
    return np.concatenate(parts)


def _denoise(
    denoiser: Denoiser, spec: SamplerSpec, requests: Sequence[Request], until_all_end: bool
) -> np.ndarray:
    mask_id = denoiser.spec.mask_id
    rows = pack_rows(
        [np.asarray(request.prompt_ids, dtype=np.int64) for request in requests],
        np.full((len(requests), spec.gen_len), mask_id, dtype=np.int64),
        pad_id=denoiser.spec.pad_id,
        device=denoiser.device,
    )
    ids, every = rows.input_ids, torch.ones_like(rows.input_ids, dtype=torch.bool)
    stop_ids = torch.tensor(denoiser.spec.stop_ids, device=denoiser.device)
    for block in range(spec.num_blocks):
        end = rows.canvas_start + (block + 1) * spec.block_length
        for count in spec.schedule():
            logits = denoiser.logits(ids, rows.attention_mask, every).view(*ids.shape, -1)
            token = _noisy(logits, spec.temperature).argmax(dim=-1)
            confidence = torch.softmax(logits, dim=-1).gather(2, token[..., None])[..., 0]
            confidence = confidence.masked_fill(ids != mask_id, float("-inf"))
            confidence[:, end:] = float("-inf")
            best = confidence.topk(count, dim=1).indices
            ids.scatter_(1, best, token.gather(1, best))
        stops = torch.isin(ids[:, rows.canvas_start : end], stop_ids)
        if until_all_end and bool(stops.any(dim=1).all()):
            break
    return ids[:, rows.canvas_start :].cpu().numpy()


def _noisy(logits: Tensor, temperature: float) -> Tensor:
    """`exp(logits) / (-ln u)^temperature` in float64: its argmax follows `softmax(logits / temperature)`."""
    if temperature == 0:
        return logits
    noise = torch.rand_like(logits, dtype=torch.float64)
    return logits.double().exp() / (-noise.log()) ** temperature
