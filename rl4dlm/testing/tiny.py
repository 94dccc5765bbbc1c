"""A denoiser whose likelihood can be enumerated, and small rollouts: what methods are tried on.

The model is a table of features per (position, token), summed over the visible sequence and squashed, with a
linear readout per position: p(y_i | everything else) depends on all tokens, on which of them are hidden and
on where they stand. Float64, so that exact identities can be checked to 1e-9.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rl4dlm.diffusion.blocks import sequence_layout
from rl4dlm.types import (
    EOS_FILLER,
    SAMPLED,
    STOP_EOS,
    STOP_LENGTH,
    AttentionLayout,
    Denoiser,
    DenoiserSpec,
    Predictions,
    Prompt,
    Rollout,
    RolloutGroup,
    Scores,
    Trace,
)


class TinyModel(torch.nn.Module):
    """Obeys the call contract of `Denoiser`, in float64.

    Ids 0..num_tokens-1 are text, the last of them ends it; the next id is the mask.

    Args:
        num_tokens: ordinary tokens V; the mask's id is V.
        max_length: longest sequence without padding.
        context: how strongly logits depend on the other tokens; 0 = not at all.
        block_length: of a block-causal model; None: every token sees every other.
        seed: of the random weights.
    """

    def __init__(
        self,
        num_tokens: int = 4,
        max_length: int = 24,
        *,
        hidden: int = 12,
        context: float = 1.0,
        block_length: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.randn(*shape, generator=generator, dtype=torch.float64))

        self.num_tokens, self.context, self.block_length = num_tokens, context, block_length
        self.features = normal(max_length, num_tokens + 1, hidden)
        self.readout = normal(max_length, num_tokens, hidden)
        self.bias = normal(max_length, num_tokens)

    def all_logits(
        self, input_ids: Tensor, attention_mask: Tensor | None, layout: AttentionLayout | None = None
    ) -> Tensor:
        """float64 `[rows, length, V + 1]`; padding is invisible and takes no position."""
        if layout is None:
            real = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask
            layout = sequence_layout(real, self.block_length)
        position = layout.position
        state = (
            layout.visible().to(self.features) @ self.features[position, input_ids]
        ).tanh()  # [.., hidden]
        logits = self.bias[position] + self.context * (self.readout[position] @ state[..., None])[..., 0]
        return torch.cat([logits, logits.new_full((*logits.shape[:2], 1), -torch.inf)], dim=-1)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        select: Tensor | None = None,
        labels: Tensor | None = None,
        temperature: float = 1.0,
        layout: AttentionLayout | None = None,
    ) -> Tensor:
        """See `rl4dlm.types.Denoiser`; float64 instead of float32."""
        select = torch.ones_like(input_ids, dtype=torch.bool) if select is None else select
        logits = self.all_logits(input_ids, attention_mask, layout)[select]
        if labels is None:
            return logits
        return (logits / temperature).log_softmax(-1).gather(1, labels[select][:, None])[:, 0]


def tiny_denoiser(num_tokens: int = 4, **model: Any) -> Denoiser:
    """A `TinyModel` with its facts; keyword arguments go to the model."""
    block_length = model.get("block_length")
    spec = DenoiserSpec(
        mask_id=num_tokens,
        pad_id=num_tokens - 1,
        eos_id=num_tokens - 1,
        stop_ids=(num_tokens - 1,),
        vocab_size=num_tokens + 1,
        forbidden_ids=(num_tokens,),
        attention="full" if block_length is None else "block_causal",
        block_length=block_length,
    )
    return Denoiser(TinyModel(num_tokens, **model), spec)


def tiny_rollout(
    prompt: Sequence[int],
    completion: Sequence[int],
    *,
    uid: int = 0,
    sample: int = 0,
    eos_id: int = 3,
    seed: int = 0,
) -> Rollout:
    """A rollout that sampled everything up to the first `eos_id`; what follows it is filler."""
    completion_ids = np.array(completion, dtype=np.int32)
    stops = np.flatnonzero(completion_ids == eos_id)
    length = int(stops[0]) + 1 if len(stops) else len(completion_ids)
    position = np.arange(len(completion_ids))
    trace = Trace(
        step_map=np.minimum(position, length - 1).astype(np.int32),
        rank=np.maximum(position - length + 1, 0).astype(np.int16),
        kind=np.where(position < length, SAMPLED, EOS_FILLER).astype(np.uint8),
        rollout_logp=np.zeros(len(position), dtype=np.float32),
        score=np.zeros(len(position), dtype=np.float32),
        step_block=np.zeros(length, dtype=np.int16),
        step_masked=(len(position) - np.arange(length)).astype(np.int32),
        predictions=tiny_predictions(completion_ids, length, eos_id, seed=1000 * uid + sample + 7919 * seed),
    )
    return Rollout(
        prompt_uid=uid,
        sample=sample,
        seed=1000 * uid + sample + 7919 * seed,
        prompt_ids=np.array(prompt, dtype=np.int32),
        completion_ids=completion_ids,
        completion_len=length,
        stop_reason=STOP_EOS if len(stops) else STOP_LENGTH,
        num_steps=length,
        num_forwards=length,
        token_forwards=length * (len(prompt) + len(completion)),
        policy_version=0,
        spec_hash=0,
        trace=trace,
    )


def tiny_predictions(
    completion_ids: np.ndarray, num_steps: int, eos_id: int, *, seed: int = 0, error_rate: float = 0.3
) -> Predictions:
    """Predictions at each step of a left-to-right trace: the completion's tokens, or now and then others.

    The token that the step commits is predicted right; confidences are random.
    """
    rng = np.random.default_rng(seed)
    size = len(completion_ids)
    tokens = []
    for step in range(num_steps):
        wrong = rng.random(size - step) < error_rate
        wrong[0] = False
        tokens.append(np.where(wrong, rng.integers(0, eos_id + 1, size - step), completion_ids[step:]))
    packed = np.concatenate(tokens).astype(np.int32)
    return Predictions(
        ptr=np.cumsum([0, *(len(row) for row in tokens)], dtype=np.int32),
        token=packed,
        logp=-rng.random(len(packed)).astype(np.float32),
        confidence=rng.random(len(packed)).astype(np.float32),
    )


def tiny_groups(
    num_groups: int = 3, group_size: int = 4, completion: int = 5, *, num_tokens: int = 4, seed: int = 0
) -> list[RolloutGroup]:
    """Groups with random tokens and prompts of 1, 2, 3, 1, ... tokens; completions may end early."""
    rng = np.random.default_rng(seed)
    groups = []
    for uid in range(num_groups):
        prompt = rng.integers(0, num_tokens - 1, size=1 + uid % 3).tolist()
        rollouts = [
            tiny_rollout(
                prompt,
                _after_eos(rng.integers(0, num_tokens, size=completion), num_tokens - 1).tolist(),
                uid=uid,
                sample=sample,
                eos_id=num_tokens - 1,
                seed=seed,
            )
            for sample in range(group_size)
        ]
        groups.append(RolloutGroup(Prompt(uid, str(uid), str(uid), tuple(prompt)), tuple(rollouts)))
    return groups


def _after_eos(tokens: np.ndarray, eos_id: int) -> np.ndarray:
    """Everything after the first `eos_id` becomes `eos_id`."""
    ended = np.cumsum(tokens == eos_id) > 0
    return np.where(ended, eos_id, tokens)


def tiny_scores(reward: Sequence[float]) -> Scores:
    """Scores of one reward function; NaN = it failed."""
    values = np.array(reward, dtype=np.float32)
    failed = np.isnan(values)
    return Scores(values, {"reward": values}, {"raised": int(failed.sum())} if failed.any() else {}, failed)
