"""Proposals: logits -> a token per position and its probability, from one counter-based uniform per position.

Inverse-CDF sampling needs one random number per position where Gumbel noise needs one per vocabulary entry,
and it has no tail that float32 could cut off.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# Logits handled at once, by device: on the CPU a chunk stays in cache (4 MiB of float32); elsewhere it is
# large, so that few kernels are launched, within 256 MiB of scratch memory.
_CHUNK_ELEMENTS = {"cpu": 1 << 20, "other": 1 << 26}

# Vocabulary entries whose probability is summed in float32 before the float64 cumulative sum.
_GROUP = 256


class Law(NamedTuple):
    """A distribution over tokens made of logits: divided by a temperature, then cut to the likeliest ids."""

    temperature: float = 1.0
    """Positive."""
    top_p: float = 1.0
    """Keep the likeliest ids whose mass before them is at most this; 1 keeps all."""
    top_k: int = 0
    """Keep that many ids at most; 0 keeps all."""

    @property
    def is_cut(self) -> bool:
        """Whether some ids may be left out."""
        return self.top_p < 1 or self.top_k > 0


class Proposal(NamedTuple):
    """What was drawn at each position."""

    token: Tensor
    """int64 `[positions]`."""
    prob: Tensor
    """float32 `[positions]`: probability of `token` under the law it was drawn from, before any cut."""


def row_chunks(logits: Tensor) -> Iterator[slice]:
    """Slices over the rows of `[positions, vocab]` such that a chunk's scratch memory is bounded."""
    elements = _CHUNK_ELEMENTS["cpu" if logits.device.type == "cpu" else "other"]
    rows = max(1, elements // logits.shape[1])
    for start in range(0, logits.shape[0], rows):
        yield slice(start, start + rows)


def tempered_softmax(logits: Tensor, temperature: float) -> Tensor:
    """`softmax(logits / temperature)` over the vocabulary, without a copy of the logits at temperature 1."""
    return torch.softmax(logits if temperature == 1 else logits / temperature, dim=1)


def probabilities(logits: Tensor, law: Law) -> Tensor:
    """The law's distribution over the vocabulary, `[positions, vocab]`."""
    probs = tempered_softmax(logits, law.temperature)
    return cut(probs, law) if law.is_cut else probs


def cut(probs: Tensor, law: Law) -> Tensor:
    """Zero the ids outside top-p and top-k and rescale the rest; equal ids stay by their order.

    Source: nucleus sampling, arXiv:1904.09751; top-p before top-k as in Dream.
    """
    ordered, ids = probs.sort(dim=1, descending=True, stable=True)
    mass = ordered.double().cumsum(dim=1)
    kept = torch.ones_like(mass, dtype=torch.bool)
    kept[:, 1:] = mass[:, :-1] <= law.top_p  # the mass of the likelier ids
    if law.top_k:
        kept[:, law.top_k :] = False
    left = torch.zeros_like(probs).scatter_(1, ids, ordered * kept)
    return left / left.sum(dim=1, keepdim=True)


def draw(
    logits: Tensor, uniform: Tensor, temperature: float, *, top_p: float = 1.0, top_k: int = 0
) -> Proposal:
    """Draw one token per position from `softmax(logits / temperature)`, cut to its likeliest ids.

    Source: arXiv:2409.02908 on why not Gumbel noise in float32.

    Args:
        logits: `[positions, vocab]` float32 (or float64); forbidden ids at -inf and therefore never drawn.
        uniform: float64 `[positions]` in (0, 1): the only randomness of a position.
        temperature: unitless; 0 takes the most likely token, the lowest id among equals.
        top_p: in (0, 1]; see `Law`.
        top_k: see `Law`.

    Returns:
        The tokens and their probabilities, the latter at temperature 1 when `temperature` is 0 and always
        before the cut. A position whose logits are not finite where they should be gets an arbitrary id and a
        probability that is NaN.
    """
    if logits.shape[0] == 0:
        return Proposal(uniform.long(), uniform.float())
    law = Law(temperature or 1.0, top_p, top_k)
    chunks = [_draw_chunk(logits[rows], uniform[rows], temperature == 0, law) for rows in row_chunks(logits)]
    return Proposal(torch.cat([chunk.token for chunk in chunks]), torch.cat([chunk.prob for chunk in chunks]))


def _draw_chunk(logits: Tensor, uniform: Tensor, greedy: bool, law: Law) -> Proposal:
    probs = tempered_softmax(logits, law.temperature)
    if greedy:
        # `max` gives the first of equal maxima, as `argmax` does, in a third of the time on the CPU.
        token = logits.max(dim=1).indices
    else:
        token = inverse_cdf(cut(probs, law) if law.is_cut else probs, uniform)
    return Proposal(token, probs.gather(1, token[:, None]).squeeze(1).float())


def inverse_cdf(probs: Tensor, uniform: Tensor) -> Tensor:
    """The first id whose cumulative probability exceeds `uniform` of the total.

    Two levels, since a float64 cumulative sum over the vocabulary costs ten times the softmax: find the group
    of `_GROUP` ids by the cumulative sum of the groups' float32 sums, then the id inside the group. The law
    differs from `probs` by the rounding of those sums, no more than the rounding that `probs` has already.

    Args:
        probs: `[positions, vocab]`, non-negative; rows need not sum to 1.
        uniform: float64 `[positions]` in [0, 1].

    Returns:
        int64 `[positions]`; ids of probability 0 are never returned.
    """
    vocab = probs.shape[1]
    if vocab <= _GROUP:
        return pick(probs, uniform[:, None])[0].squeeze(1)
    group, rest = pick(_group_sums(probs), uniform[:, None])  # [positions, 1]
    ids = group * _GROUP + torch.arange(_GROUP, device=probs.device)  # [positions, _GROUP]
    inside = probs.gather(1, ids.clamp(max=vocab - 1)).masked_fill(ids >= vocab, 0.0)
    offset, _ = pick(inside, rest)
    return (group * _GROUP + offset).squeeze(1)


def _group_sums(probs: Tensor) -> Tensor:
    """Sums over runs of `_GROUP` ids, `[positions, groups]`; the last run may be shorter."""
    whole = probs.shape[1] // _GROUP * _GROUP
    sums = probs[:, :whole].unflatten(1, (-1, _GROUP)).sum(dim=2)
    if whole == probs.shape[1]:
        return sums
    return torch.cat([sums, probs[:, whole:].sum(dim=1, keepdim=True)], dim=1)


def pick(weights: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Index drawn in proportion to `weights`, and where in its interval the uniform number fell.

    Args:
        weights: `[positions, choices]`, non-negative, some positive.
        uniform: float64 `[positions, 1]` in [0, 1], or outside by rounding.

    Returns:
        int64 `[positions, 1]` the index, and float64 `[positions, 1]` the fraction of its weight below the
        number: uniform again, and independent of the index.
    """
    cumulative = weights.cumsum(dim=1, dtype=torch.float64)
    # From 0 to one ulp below the total: so an index is found, and it has a positive weight.
    target = uniform.clamp(0, 1 - 2.0**-53) * cumulative[:, -1:]
    index = (cumulative <= target).sum(dim=1, keepdim=True)
    weight = weights.gather(1, index).double()
    return index, (target - (cumulative.gather(1, index) - weight)) / weight
