"""Estimates of a completion's ELBO: corruption plans (which states, with which weights) and their evaluation.

    ELBO(y | q) = E over t ~ U(0, 1), S ~ Bernoulli(t)^L of l(S) / t = E over k ~ U{1..L}, |S| = k of (L / k)
    l(S)

with l(S) the sum of log p(y_i | q, y with S hidden) over i in S. A plan is a function of row seeds, the loss
mask, the inner pass and the settings, and knows no role: current, old and reference policy are evaluated on
the same one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rl4dlm.diffusion.masking import (
    bernoulli_masks,
    count_masks,
    count_weight,
    coupled_counts,
    masked_counts,
    state_uniform,
    stratified_counts,
)
from rl4dlm.diffusion.quadrature import gauss_legendre
from rl4dlm.diffusion.seeds import derive_seed
from rl4dlm.likelihood.states import States, rectangle, state_logp
from rl4dlm.types import Denoiser


@dataclass(frozen=True)
class CorruptionPlan:
    """The states on which completions are evaluated; the estimate is the weighted sum of l(S) over states.

    Example: 3 nodes with 2 masks each give 6 states; states 2n and 2n + 1 belong to node n.
    """

    is_masked: Tensor
    """bool `[rows, states, completion]`."""
    weight: Tensor
    """float64 `[rows, states]`, or `[rows, states, completion]` where blocks have weights of their own."""

    def take(self, states: Sequence[int]) -> CorruptionPlan:
        """The plan with only these states; partial estimates over disjoint states add up to the whole."""
        index = list(states)
        return CorruptionPlan(self.is_masked[:, index], self.weight[:, index])

    def states(self) -> States:
        """As states of the same rows: every masked position is a target."""
        weight = self.weight if self.weight.ndim == 3 else self.weight[..., None]
        return rectangle(self.is_masked, weight)


@dataclass(frozen=True)
class ElboSettings:
    """How the ELBO is estimated.

    Example: `ElboSettings("sdmc", num_nodes=3, num_masks=1, count_rule="round_half")`.
    """

    estimator: str
    """`sdmc`, `double_mc` or `stratified`."""
    num_nodes: int
    """N: quadrature nodes, or draws of the rate or count."""
    num_masks: int
    """K: masks per node."""
    count_rule: str
    """`round_half`, `round`, `floor_release` or `bernoulli`; not used by `stratified`."""

    @property
    def num_states(self) -> int:
        """Forwards per completion."""
        return self.num_nodes * self.num_masks


def _states_at_rates(
    seed: Tensor, loss_mask: Tensor, inner: int, rate: Tensor, rule: str
) -> tuple[Tensor, Tensor]:
    """Masks `[rows, states, completion]` and weights of l(S) `[rows, states]` at rates `[rows, states]`."""
    if rule == "bernoulli":
        return bernoulli_masks(seed, loss_mask, rate, inner), 1.0 / rate
    counts, weight = masked_counts(rate, loss_mask.sum(1, keepdim=True), rule)
    return count_masks(seed, loss_mask, counts, inner), weight


def _sdmc(seed: Tensor, loss_mask: Tensor, inner: int, settings: ElboSettings) -> CorruptionPlan:
    """Semi-deterministic Monte Carlo: quadrature over the rate, random masks at each node."""
    nodes, node_weight = gauss_legendre(settings.num_nodes)
    rate = nodes.repeat_interleave(settings.num_masks).expand(len(seed), -1)
    is_masked, weight = _states_at_rates(seed, loss_mask, inner, rate, settings.count_rule)
    share = node_weight.repeat_interleave(settings.num_masks) / settings.num_masks
    return CorruptionPlan(is_masked, share * weight)


def _double_mc(seed: Tensor, loss_mask: Tensor, inner: int, settings: ElboSettings) -> CorruptionPlan:
    """Double Monte Carlo: uniformly random rates, random masks at each."""
    rate = state_uniform(seed, settings.num_nodes, inner).repeat_interleave(settings.num_masks, dim=1)
    is_masked, weight = _states_at_rates(seed, loss_mask, inner, rate, settings.count_rule)
    return CorruptionPlan(is_masked, weight / settings.num_states)


def _stratified(seed: Tensor, loss_mask: Tensor, inner: int, settings: ElboSettings) -> CorruptionPlan:
    """Counts spread evenly over 1..L from a random start, random masks of each size, weight L/k."""
    length = loss_mask.sum(1)
    first = (state_uniform(seed, 1, inner)[:, 0] * length).floor().long() + 1
    counts = stratified_counts(length, first, settings.num_nodes).repeat_interleave(settings.num_masks, dim=1)
    weight = count_weight(length[:, None].double(), counts) / settings.num_states
    return CorruptionPlan(count_masks(seed, loss_mask, counts, inner), weight)


_ESTIMATORS: dict[str, Callable[[Tensor, Tensor, int, ElboSettings], CorruptionPlan]] = {
    "sdmc": _sdmc,
    "double_mc": _double_mc,
    "stratified": _stratified,
}


def plan_corruptions(
    seed: np.ndarray,
    loss_mask: np.ndarray,
    inner: int,
    settings: ElboSettings,
    block: Tensor | None = None,
) -> CorruptionPlan:
    """The states of each row for one pass over a batch.

    Source: GDPO (Group Diffusion Policy Optimization, arXiv:2510.08554) for `sdmc`, with the counts and
    weights of specs/rl-algorithms 3.3; LLaDA (arXiv:2502.09992) for stratified counts. `double_mc` with
    `round_half` or `bernoulli` and `stratified` are unbiased for the ELBO; `sdmc` is where the quadrature is
    exact and masks are `bernoulli`, else its bias is that of the rule and of rounding.

    Args:
        seed: int64 `[rows]`, root of each row's masks.
        loss_mask: bool `[rows, completion]`, the positions whose likelihood is estimated; all others stay
            visible.
        inner: index of the pass; each has corruptions of its own.
        settings: the estimator.
        block: int64 `[rows, completion]`: the ELBO of a block-causal model is the sum over blocks of the ELBO
            of each given the clean blocks before it (specs/rl-algorithms 1.3), so each block gets counts,
            masks and weights of its own, and a state masks something in all of them; None: one block.

    Returns:
        The plan, on the CPU. A row without positions has empty masks.

    Raises:
        ValueError: there is no such estimator or count rule.
    """
    if settings.estimator not in _ESTIMATORS:
        raise ValueError(
            f"estimator {settings.estimator!r} does not exist. Fix: one of {', '.join(_ESTIMATORS)}."
        )
    part = _ESTIMATORS[settings.estimator]
    return block_by_block(
        lambda roots, positions: part(roots[:, 0], positions, inner, settings),
        torch.tensor(seed)[:, None],
        torch.tensor(loss_mask),
        block,
    )


def block_by_block(
    plan: Callable[[Tensor, Tensor], CorruptionPlan], roots: Tensor, positions: Tensor, block: Tensor | None
) -> CorruptionPlan:
    """A plan whose states hide something of every block, each block by counts, masks and weights of its own.

    Args:
        plan: from int64 `[parts, n]` roots and bool `[parts, completion]` positions to the plan of these
            parts: the blocks of the first row, those of the second, and so on.
        roots: int64 `[rows, n]`, roots of randomness.
        positions: bool `[rows, completion]`.
        block: int64 `[rows, completion]`; None: one block.

    Returns:
        The plan; with several blocks its weights are `[rows, states, completion]`.
    """
    if block is None or not block.any():
        return plan(roots, positions)
    parts, shape = plan_each_block(plan, roots, positions, block)
    weight = parts.weight if parts.weight.ndim == 3 else parts.weight[..., None]
    weight = (weight * parts.is_masked).unflatten(0, shape)
    is_masked = parts.is_masked.unflatten(0, shape)  # [rows, blocks, states, completion]
    return CorruptionPlan(is_masked.any(1), weight.sum(1))


def plan_each_block(
    plan: Callable[[Tensor, Tensor], CorruptionPlan], roots: Tensor, positions: Tensor, block: Tensor
) -> tuple[CorruptionPlan, tuple[int, int]]:
    """The plans of all blocks of all rows, `[rows * blocks, ...]`, not joined as in `block_by_block`, and
    (rows, blocks)."""
    num_blocks = int(block.max()) + 1
    inside = torch.arange(num_blocks)[:, None] == block[:, None]  # [rows, blocks, completion]
    seeds = [
        [derive_seed(root, "block", number) for root in row]
        for row in roots.tolist()
        for number in range(num_blocks)
    ]
    parts = plan(torch.tensor(seeds), (inside & positions[:, None]).flatten(0, 1))
    return parts, (len(roots), num_blocks)


@dataclass(frozen=True)
class Strata:
    """Where rows stand in a stratified draw that they share, however the batch is split afterwards.

    Example: three rows of one batch: `root = [7, 7, 7]`, `share = [0, 1/3, 2/3]`.
    """

    root: np.ndarray
    """int64 `[rows]`: root of the random start that the rows have in common."""
    share: np.ndarray
    """float64 `[rows]`, in [0, 1): the row's place among them."""


def plan_coupled(
    seed: np.ndarray,
    loss_mask: np.ndarray,
    inner: int,
    num_pairs: int,
    strata: Strata,
    block: Tensor | None = None,
) -> CorruptionPlan:
    """Coupled states: a random subset S of random size x, and the positions that it leaves visible.

        Lhat = mean over pairs of 1/2 [(L + 1)/x l(S) + (L + 1)/(L - x) l(rest)],   x in 0..L

    A term whose set is empty is left out. Every position is scored in every pair, and Lhat is unbiased.

    Source: ESPO, arXiv:2512.03759, its coupled estimator. Departs from the released code: counts are
    stratified over an order fixed beforehand (`strata`), not over the rows that meet on a device.

    Args:
        seed, loss_mask, inner, block: as in `plan_corruptions`.
        num_pairs: pairs per row.
        strata: of the same rows; those of one root draw x_b = (k + round(share_b (L + 1))) mod (L + 1) with
            one random k for each pair (and block).

    Returns:
        The plan; states 2j and 2j + 1 are pair j.
    """

    def part(roots: Tensor, positions: Tensor) -> CorruptionPlan:
        share = torch.tensor(strata.share).repeat_interleave(len(positions) // len(strata.share))
        length = positions.sum(1)
        start = (state_uniform(roots[:, 1], num_pairs, inner) * (length[:, None] + 1)).floor().long()
        counts = coupled_counts(length, start, share)  # [parts, pairs]
        subset = count_masks(roots[:, 0], positions, counts, inner)
        pair = torch.stack((subset, positions[:, None] & ~subset), dim=2)  # [parts, pairs, 2, completion]
        size = pair.sum(-1)
        weight = torch.where(size > 0, (length[:, None, None] + 1) / size.clamp(min=1), 0.0)
        return CorruptionPlan(pair.flatten(1, 2), weight.double().flatten(1) / (2 * num_pairs))

    roots = torch.from_numpy(np.stack((seed, strata.root), axis=1))
    return block_by_block(part, roots, torch.tensor(loss_mask), block)


def elbo(
    denoiser: Denoiser, prompt_ids: Sequence[np.ndarray], completion_ids: np.ndarray, plan: CorruptionPlan
) -> Tensor:
    """The estimate that a plan describes, all its states in one forward.

    Args:
        denoiser: the model; gradients flow where its call allows them.
        prompt_ids: per row int `[prompt]`, without padding.
        completion_ids: int `[rows, completion]`.
        plan: states of the same rows.

    Returns:
        `[rows]`, nats, in the denoiser's precision: the sum over the plan's states of weight times l(S).
    """
    states = plan.states()
    logp = state_logp(denoiser, prompt_ids, completion_ids, states)  # [rows * states, completion]
    return (states.weight.to(logp) * logp).sum(-1).view(len(completion_ids), -1).sum(-1)
