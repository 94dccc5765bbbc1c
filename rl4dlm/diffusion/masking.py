"""The forward process: which positions of a clean sequence are hidden, as a pure function of row seeds.

A mask depends on its row's seed, the inner pass, the state's index and the position on the canvas, and on
nothing else: not on the batch, its order, its size, the rank, or on whose likelihood it serves (current, old,
reference). Masks are computed on the CPU, so every device sees the same ones.

Positions outside `positions` are never masked: prompts do not occur here, and fillers stay visible.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rl4dlm.diffusion.seeds import counter_uniform

_NO_POSITION = -1  # the counter of draws that belong to a state as a whole; positions count from 0


def state_uniform(seed: Tensor, num_states: int, inner: int) -> Tensor:
    """One uniform number per row and state, independent of the numbers that choose the masks.

    Args:
        seed: int64 `[rows]`, roots of the rows' randomness.
        num_states: how many numbers per row.
        inner: index of the pass over the batch; each has draws of its own.

    Returns:
        float64 `[rows, num_states]`, strictly inside (0, 1).
    """
    return counter_uniform(
        seed[:, None], torch.tensor(inner), torch.arange(num_states), torch.tensor(_NO_POSITION)
    )


def _position_uniform(seed: Tensor, num_states: int, num_positions: int, inner: int) -> Tensor:
    """float64 `[rows, num_states, num_positions]` in (0, 1)."""
    states = torch.arange(num_states)[:, None]
    return counter_uniform(seed[:, None, None], torch.tensor(inner), states, torch.arange(num_positions))


def count_masks(seed: Tensor, positions: Tensor, counts: Tensor, inner: int) -> Tensor:
    """Uniformly random subsets of given sizes: the positions whose random numbers rank lowest.

    Args:
        seed: int64 `[rows]`.
        positions: bool `[rows, completion]`, the positions that may be masked.
        counts: int64 `[rows, states]`, masked positions per state; more than there are means all of them.
        inner: index of the pass over the batch.

    Returns:
        bool `[rows, states, completion]`, True = masked.
    """
    rank = random_ranks(seed, positions, counts.shape[1], inner)
    return (rank < counts[..., None]) & positions[:, None]


def random_ranks(seed: Tensor, positions: Tensor, num_orders: int, inner: int) -> Tensor:
    """Uniformly random orders of each row's positions.

    Args:
        seed: int64 `[rows]`.
        positions: bool `[rows, completion]`, the positions that are ordered.
        num_orders: independent orders per row.
        inner: index of the pass over the batch.

    Returns:
        int64 `[rows, num_orders, completion]`, each position's place from 0; all others come last.
    """
    noise = _position_uniform(seed, num_orders, positions.shape[1], inner)
    noise = noise.masked_fill(~positions[:, None], torch.inf)
    return noise.argsort(dim=-1, stable=True).argsort(dim=-1)


def bernoulli_masks(seed: Tensor, positions: Tensor, rates: Tensor, inner: int) -> Tensor:
    """Every position masked independently with its state's probability.

    Args:
        seed: int64 `[rows]`.
        positions: bool `[rows, completion]`, the positions that may be masked.
        rates: float64 `[rows, states]`, probabilities.
        inner: index of the pass over the batch.

    Returns:
        bool `[rows, states, completion]`, True = masked.
    """
    noise = _position_uniform(seed, rates.shape[1], positions.shape[1], inner)
    return (noise < rates[..., None]) & positions[:, None]


def count_weight(length: Tensor, counts: Tensor) -> Tensor:
    """L / k, the ELBO weight of a state with k of L positions masked; 0 where L = 0."""
    return length / counts.clamp(min=1)


def _at_least_one(counts: Tensor, length: Tensor) -> Tensor:
    """int64 counts in 1..L, or 0 where L = 0."""
    return torch.minimum(counts.clamp(min=1), length).long()


def _round_half(rate: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    counts = _at_least_one((rate * length + 0.5).round(), length)
    return counts, count_weight(length, counts)


def _round(rate: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    counts = _at_least_one((rate * length).round(), length)
    return counts, count_weight(length, counts)


def _floor_release(rate: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    counts = _at_least_one((rate * length).floor(), length)
    return counts, (1.0 / rate).expand(counts.shape)


_COUNT_RULES: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "round_half": _round_half,
    "round": _round,
    "floor_release": _floor_release,
}


def masked_counts(rate: Tensor, length: Tensor, rule: str) -> tuple[Tensor, Tensor]:
    """How many of L positions a mask rate t hides, and the ELBO weight of such a state.

    `round_half`: round(tL + 1/2) with weight L/k; for t uniform on (0, 1) the count is uniform on 1..L, so a
    Monte Carlo mean over t is unbiased. `round`: round(tL), weight L/k. `floor_release`: floor(tL), weight
    1/t. Rounding is half to even; counts are clamped to 1..L.

    Source: GDPO, arXiv:2510.08554. `floor_release` is what its released code does, except that the code lets
    a count be 0.

    Args:
        rate: float64 `[rows, states]` or `[1, states]`, in (0, 1).
        length: int64 `[rows, 1]`, positions L of each row.
        rule: name of the rule.

    Returns:
        Counts, int64 `[rows, states]`, and weights, float64 `[rows, states]`.

    Raises:
        ValueError: there is no such rule.
    """
    if rule not in _COUNT_RULES:
        raise ValueError(f"count rule {rule!r} does not exist. Fix: one of {', '.join(_COUNT_RULES)}.")
    return _COUNT_RULES[rule](rate, length.to(torch.float64))


def stratified_counts(length: Tensor, first: Tensor, num: int) -> Tensor:
    """Counts spread evenly over 1..L from a starting count: x_j = ((k + round(j L / num) - 1) mod L) + 1.

    Where k is uniform on 1..L every x_j is too, so the mean over them is unbiased, and they cover the range.

    Source: LLaDA's likelihood evaluation (arXiv:2502.09992), Eq. (6). Departs
    from it: strata lie within one row, not across a batch, so that they do not depend on how rows are
    batched; and the offset is rounded apart from k, since half-to-even rounding of the sum would favour some
    counts.

    Args:
        length: int64 `[rows]`, positions L of each row.
        first: int64 `[rows]`, k in 1..L.
        num: counts per row.

    Returns:
        int64 `[rows, num]` in 1..L; 0 where L = 0.
    """
    size = length.clamp(min=1)[:, None]
    offset = (torch.arange(num) * length[:, None].double() / num).round().long()
    counts = (first[:, None] + offset - 1) % size + 1
    return torch.minimum(counts, length[:, None])


def coupled_counts(length: Tensor, first: Tensor, share: Tensor) -> Tensor:
    """Sizes of one half of a pair of complementary masks: x_b = (k + round(share_b (L + 1))) mod (L + 1).

    Where k is uniform on 0..L every x_b is too, and rows whose shares are b / B cover the range.

    Source: ESPO, arXiv:2512.03759, its released code.

    Args:
        length: int64 `[rows]`, positions L of each row.
        first: int64 `[rows, pairs]`, k in 0..L.
        share: float64 `[rows]`, in [0, 1): place of the row in the shared draw.

    Returns:
        int64 `[rows, pairs]` in 0..L.
    """
    size = length[:, None] + 1
    return (first + (share[:, None] * size).round().long()) % size


def forward_process(
    seed: Tensor, positions: Tensor, t: Tensor, *, eps: float = 1e-3
) -> tuple[Tensor, Tensor]:
    """Noise of masked-diffusion training: each position hidden with probability p = (1 - eps) t + eps.

    Source: LLaDA, arXiv:2502.09992, its published training step.

    Args:
        seed: int64 `[rows]`.
        positions: bool `[rows, completion]`, the positions that may be masked.
        t: float64 `[rows]`, diffusion time in [0, 1).
        eps: keeps the weight 1/p below 1/eps.

    Returns:
        `is_masked` bool `[rows, completion]`, and the loss weight 1/p, float64 `[rows]`.
    """
    mask_rate = (1.0 - eps) * t + eps
    is_masked = bernoulli_masks(seed, positions, mask_rate[:, None], inner=0)[:, 0]
    return is_masked, 1.0 / mask_rate
