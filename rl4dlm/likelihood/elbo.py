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
    masked_counts,
    state_uniform,
    stratified_counts,
)
from rl4dlm.diffusion.quadrature import gauss_legendre
from rl4dlm.likelihood.plans import CorruptionPlan, block_by_block
from rl4dlm.likelihood.states import state_logp
from rl4dlm.types import Denoiser


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
    weights L / count of a fixed number of masks; LLaDA (arXiv:2502.09992) for stratified counts. `double_mc`
    with `round_half` or `bernoulli` and `stratified` are unbiased for the ELBO; `sdmc` is where the
    quadrature is exact and masks are `bernoulli`, else its bias is that of the rule and of rounding.

    Args:
        seed: int64 `[rows]`, root of each row's masks.
        loss_mask: bool `[rows, completion]`, the positions whose likelihood is estimated; others stay visible
            up to the last of them, and are hidden in every state after it (`unseen_by_sampler`).
        inner: index of the pass; each has corruptions of its own.
        settings: the estimator.
        block: int64 `[rows, completion]`: the ELBO of a block-causal model is the sum over blocks of the ELBO
            of each given the clean blocks before it (BD3-LM, arXiv:2503.09573), so each block gets counts,
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
