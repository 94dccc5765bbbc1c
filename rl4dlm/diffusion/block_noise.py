"""The forward process block by block: which positions of each block are hidden, and what they weigh.

A completion without blocks is one block. Masks depend on the row's seed and the position alone, as in
`masking`: the same row has the same masks whatever it is batched with.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rl4dlm.diffusion.masking import masked_counts
from rl4dlm.diffusion.seeds import counter_uniform

_GOLDEN_RATIO = (math.sqrt(5.0) - 1.0) / 2.0


def block_times(t: Tensor, num_blocks: int, *, per_block: bool) -> Tensor:
    """A diffusion time for every block of a row; the first block has the row's own.

    Source: BD3-LM, arXiv:2503.09573, which draws one time per block, antithetic over rows and blocks. Here
    block b has (t + b x golden ratio) mod 1: uniform wherever t is, and spread evenly over any run of blocks.

    Args:
        t: float64 `[rows]` in [0, 1).
        num_blocks: of the row with the most.
        per_block: False: all blocks of a row have its time.

    Returns:
        float64 `[rows, blocks]` in [0, 1).
    """
    if not per_block:
        return t[:, None].expand(-1, num_blocks)
    return (t[:, None] + torch.arange(num_blocks) * _GOLDEN_RATIO) % 1.0


def late_bias(index: Tensor, rate: Tensor, block_length: int, half_life: float) -> Tensor:
    """Log-weights of position-dependent masking: beta (1 - rate) i, with beta = ln 2 / (half_life x length).

    Source: Efficient-DLM, arXiv:2512.14067, Section on position-dependent token masking. At rate 1 all
    positions are alike; at small rates later ones are hidden more often, as in decoding from left to right.

    Args:
        index: int64 `[rows, completion]`, position within its block, from 0.
        rate: float64 `[rows, completion]`, the mask rate of the position's block.
        block_length: tokens of a whole block.
        half_life: in block lengths; after that many positions a weight has doubled (at rate 0).

    Returns:
        float64 `[rows, completion]`.
    """
    beta = math.log(2.0) / (half_life * block_length)
    return beta * (1.0 - rate) * (index + 1)


def _per_block(values: Tensor, block: Tensor, num_blocks: int) -> Tensor:
    """Sums of `[rows, completion]` over each block: int64 `[rows, blocks]`."""
    return values.new_zeros(len(values), num_blocks, dtype=torch.int64).scatter_add_(1, block, values.long())


def _rank_in_block(key: Tensor, block: Tensor, num_blocks: int) -> Tensor:
    """Order of each position among those of its block, from 0, smallest key first: int64 `[rows, length]`."""
    by_key = key.argsort(dim=1, stable=True)
    order = by_key.gather(1, block.gather(1, by_key).argsort(dim=1, stable=True))  # by block, then by key
    size = _per_block(torch.ones_like(block), block, num_blocks)
    first = (size.cumsum(1) - size).gather(1, block.gather(1, order))
    rank = torch.arange(block.shape[1]) - first
    return torch.empty_like(rank).scatter_(1, order, rank)


def block_noise(
    seed: Tensor,
    positions: Tensor,
    block: Tensor,
    rate: Tensor,
    *,
    rule: str,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Hide a share of every block.

    Source: LLaDA, arXiv:2502.09992 (`bernoulli`, weight 1/p). `count`: k = round(p n + 1/2) of n positions,
    weight n/k, the same in the mean with less variance. With one block and `bernoulli` it is
    `masking.forward_process`.

    Args:
        seed: int64 `[rows]`.
        positions: bool `[rows, completion]`, the positions that may be hidden.
        block: int64 `[rows, completion]`, from 0.
        rate: float64 `[rows, blocks]` in (0, 1].
        rule: `bernoulli` or `count`.
        bias: float64 `[rows, completion]`, log-weights of the choice under `count`, drawn without replacement
            (Gumbel-top-k); None: uniform subsets.

    Returns:
        `is_masked` bool `[rows, completion]`, and the weight of each block's hidden tokens in an unbiased
        estimate of its ELBO, float64 `[rows, blocks]` (under `bias` the same n/k, which is then no longer
        unbiased for the ELBO).

    Raises:
        ValueError: there is no such rule.
    """
    noise = counter_uniform(seed[:, None], torch.tensor(0), torch.tensor(0), torch.arange(block.shape[1]))
    if rule == "bernoulli":
        return (noise < rate.gather(1, block)) & positions, 1.0 / rate
    if rule != "count":
        raise ValueError(f"mask rule {rule!r} does not exist. Fix: bernoulli or count.")
    size = _per_block(positions, block, rate.shape[1])
    counts, weight = masked_counts(rate, size, "round_half")
    # An exponential race: the smallest -log(1 - u) / w come first, drawn in proportion to w.
    race = noise if bias is None else (-torch.log1p(-noise)).log() - bias
    rank = _rank_in_block(race.masked_fill(~positions, torch.inf), block, rate.shape[1])
    return (rank < counts.gather(1, block)) & positions, weight


def cart_weights(visible: Tensor, completion: int, p: float) -> Tensor:
    """Context-adaptive weights: half the sum over visible tokens of a geometric law of their distance.

        w_n = 1/2 sum over visible i != n of p (1 - p)^(|n - i| - 1)

    Source: Dream, arXiv:2508.15487 (CART); p = 0.3 in published code. A token between two visible ones weighs
    up to 1 with all of its context visible, and less the farther the nearest visible tokens are.

    Args:
        visible: bool `[rows, length]`: real tokens that are not hidden.
        completion: how many of the last columns weights are wanted for.
        p: of the geometric law, in (0, 1).

    Returns:
        float64 `[rows, completion]`.
    """
    column = torch.arange(visible.shape[1])
    distance = (column[-completion:, None] - column).abs()  # [completion, length]
    geometric = p * (1.0 - p) ** (distance - 1).clamp(min=0).double()
    geometric = geometric.masked_fill(distance == 0, 0.0)
    return 0.5 * visible.double() @ geometric.T
