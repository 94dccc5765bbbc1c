"""Early commit: write all that is still masked as soon as the model has made up its mind.

Source: Prophet, arXiv:2508.19982; SchED, arXiv:2512.02892. Combines with every sampler.
Departs from the released code: decided row by row, and thresholds are settings.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from rl4dlm.decoding.confidence import logit_gap
from rl4dlm.decoding.proposal import tempered_softmax
from rl4dlm.decoding.spec import SamplerSpec
from rl4dlm.decoding.step import Decision, StepInput
from rl4dlm.recipe.samplers import EarlyCommit
from rl4dlm.types import EARLY_COMMIT, SAMPLED

# SchED's exponential schedule decays by exp(-4) over the steps.
_DECAY = 4.0


def gap_threshold(kind: EarlyCommit, progress: Tensor, high: float, low: float) -> Tensor:
    """The mean gap of the two largest logits from which a row commits, float64 `[rows]`.

    Args:
        kind: `prophet`: high, their mean and low on the three thirds of the steps; `sched_...`: from high to
            low along a line, half a cosine, or an exponential that comes near low.
        progress: float64 `[rows]`, in 0 to 1.
        high: logit units.
        low: logit units.
    """
    if kind == "prophet":
        later = torch.where(progress < 0.67, (high + low) / 2, low)
        return torch.where(progress < 0.33, high, later).double()
    if kind == "sched_linear":
        return high + (low - high) * progress
    if kind == "sched_cosine":
        return low + (high - low) * (1 + (math.pi * progress).cos()) / 2
    return low + (high - low) * (-_DECAY * progress).exp()


def commit_early(spec: SamplerSpec, step: StepInput, decision: Decision) -> Decision:
    """The decision, replaced in rows that have made up their mind by their likeliest tokens everywhere."""
    assert step.masked is not None
    leaving = _mean_gap(spec, step) >= gap_threshold(
        spec.early_commit, _progress(spec, step), spec.early_commit_high, spec.early_commit_low
    )
    row = step.index // step.eligible.shape[1]
    whole = (step.at_seen(step.masked) & leaving[row]).nonzero().squeeze(1)
    stay = ~leaving[row[decision.picked]]
    logits = step.logits[whole]
    token = logits.max(dim=1).indices
    prob = tempered_softmax(logits, spec.temperature or 1.0).gather(1, token[:, None]).squeeze(1)
    rank = torch.cumsum(step.masked, dim=1).flatten()[step.index[whole]] - 1
    return _merged(decision, stay, leaving, whole, (rank, token, prob.log().float(), prob.float()))


def _merged(
    decision: Decision, stay: Tensor, leaving: Tensor, whole: Tensor, columns: tuple[Tensor, ...]
) -> Decision:
    """Commits of the rows that stay and of those that leave, in the order of positions."""
    kind = decision.kind if decision.kind is not None else torch.full_like(decision.rank, SAMPLED)
    ours = (decision.rank, decision.token, decision.logp, decision.score, kind)
    theirs = (*columns, torch.full_like(whole, EARLY_COMMIT))
    picked = torch.cat([decision.picked[stay], whole])
    order = picked.argsort()
    merged = [torch.cat([a[stay], b.to(a.dtype)])[order] for a, b in zip(ours, theirs, strict=True)]
    remask = None if decision.remask is None else decision.remask & ~leaving[:, None]
    rank, token, logp, score, kinds = merged
    return replace(
        decision,
        picked=picked[order],
        rank=rank,
        token=token,
        logp=logp,
        score=score,
        kind=kinds.to(torch.uint8),
        remask=remask,
    )


def _mean_gap(spec: SamplerSpec, step: StepInput) -> Tensor:
    """Mean gap of each row over its region, float64 `[rows]`: masked positions, or those of the answer."""
    assert step.masked is not None
    region = step.masked
    if spec.answer_region is not None:
        first, last = spec.answer_region
        region = (step.position >= first) & (step.position < last)
    gaps = step.dense(logit_gap(step.logits)).double()
    return torch.where(region, gaps, 0.0).sum(dim=1) / region.sum(dim=1).clamp(min=1)


def _progress(spec: SamplerSpec, step: StepInput) -> Tensor:
    """Share of the scheduled steps, float64 `[rows]`, at most 1.

    Prophet's released code counts the present step (1 / S at the first step), its paper those before it;
    SchED goes from 0 at the first step to 1 at the last.
    """
    assert step.num_steps is not None
    if spec.early_commit == "prophet":
        return ((step.step + 1) / step.num_steps.double()).clamp(max=1.0)
    return (step.step / (step.num_steps - 1).clamp(min=1).double()).clamp(max=1.0)
