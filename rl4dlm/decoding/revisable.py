"""Strategies that may remask committed tokens: RCR and Saber; decisions are net changes of the canvas."""

from __future__ import annotations

import torch
from torch import Tensor

from rl4dlm.decoding.confidence import margin, neg_entropy, top_probability
from rl4dlm.decoding.revision import least_confident, running_confidence
from rl4dlm.decoding.selection import above_threshold, top_k
from rl4dlm.decoding.spec import SamplerSpec
from rl4dlm.decoding.step import Decision, StateShapes, StepInput, Strategy, draw_everywhere
from rl4dlm.types import FORCED, SAMPLED


def rcr(spec: SamplerSpec, step: StepInput) -> Decision:
    """Running confidence remasking: write everything, then hide the least confident of all ever written.

    Source: MDPO, arXiv:2508.13148. Tokens of earlier blocks may be remasked, too. Departs from the
    released code: what was never written is known by a mask, not by a confidence of 0.
    """
    drawn, score = draw_everywhere(spec, step)
    if spec.rcr_confidence != "probability":
        measure = neg_entropy if spec.rcr_confidence == "neg_entropy" else margin
        score = measure(step.logits, spec.confidence_law)
    dense = step.dense(score)
    touched = step.state["touched"]
    running = running_confidence(step.state["running"], touched, dense, step.eligible, spec.rcr_update)
    touched = touched | step.eligible
    hidden = least_confident(running, touched, (step.eligible.sum(dim=1) - step.count).clamp(min=0))
    picked, rank = _net_commits(step, dense, step.eligible & ~hidden)
    return Decision(
        picked=picked,
        rank=rank,
        token=drawn.token[picked],
        logp=drawn.prob[picked].log(),
        score=score[picked],
        remask=hidden & ~step.eligible,
        proposal=drawn,
        confidence=step.at_seen(torch.where(touched, running, 0.0)),
        state={"running": running, "touched": touched},
    )


def _net_commits(step: StepInput, score: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Indices and ranks of positions that stay written, the best score first."""
    chosen, rank = top_k(score, kept, kept.sum(dim=1))
    picked = step.at_seen(chosen).nonzero().squeeze(1)
    return picked, rank.flatten()[step.index[picked]]


def saber(spec: SamplerSpec, step: StepInput) -> Decision:
    """Commit what exceeds the mean confidence of earlier commits, remask what became less likely since.

    Source: Saber, arXiv:2510.18165. The least number of commits, 2 in the paper, is the schedule's. Every
    step commits at least one position more than it remasks.
    """
    drawn, _ = draw_everywhere(spec, step)
    now = step.dense(top_probability(step.logits, spec.confidence_law))
    seen = step.dense(torch.ones_like(step.logits[:, 0], dtype=torch.bool))
    if step.masked is not None:  # masks of later blocks may be seen, too
        seen = seen & (step.eligible | ~step.masked)
    state = step.state
    threshold = _mean_confidence(state["committed"], state["was_committed"] & seen)
    asked = above_threshold(now - threshold[:, None], step.eligible, 0.0, strict=True)
    chosen, order = top_k(now, step.eligible, torch.maximum(asked, step.count))
    taken_back = _least_gained(step, now, seen, chosen)
    picked, rank = _net_commits(step, now, chosen & ~taken_back)
    forced = order.flatten()[step.index[picked]] >= asked[step.index[picked] // now.shape[1]]
    return Decision(
        picked=picked,
        rank=rank,
        token=drawn.token[picked],
        logp=drawn.prob[picked].log(),
        score=step.at_seen(now)[picked],
        kind=torch.where(forced, FORCED, SAMPLED).to(torch.uint8),
        remask=taken_back & ~chosen,
        proposal=drawn,
        confidence=step.at_seen(now),
        state={
            "before": torch.where(seen, now, state["before"]),
            "was_seen": state["was_seen"] | seen,
            "committed": torch.where(chosen, now, state["committed"]),
            "was_committed": state["was_committed"] | chosen,
        },
    )


def _mean_confidence(committed: Tensor, was_committed: Tensor) -> Tensor:
    """Mean confidence at commit time, float64 `[rows]`; 1 where nothing was committed."""
    count = was_committed.sum(dim=1)
    total = torch.where(was_committed, committed.double(), 0.0).sum(dim=1)
    return torch.where(count > 0, total / count.clamp(min=1), 1.0)


def _least_gained(step: StepInput, now: Tensor, seen: Tensor, chosen: Tensor) -> Tensor:
    """Written positions whose confidence rose least since the last step, bool `[rows, width]`.

    None where no mask is left; else min(F - 1, max(n // 2, ceil(F / 8))) of them, F = max(n, commits).
    """
    written = seen & (chosen | ~step.eligible)
    # In a row's first step all positions gain on 0, so that the least confident is remasked. One that was
    # first seen later gains more than any difference of probabilities.
    new = torch.where((step.step == 0)[:, None], now, 2.0)
    gain = torch.where(step.state["was_seen"], now - step.state["before"], new)
    commits = torch.maximum(step.count, chosen.sum(dim=1))
    count = torch.minimum(commits - 1, torch.maximum(step.count // 2, -(-commits // 8)))
    masks_left = (step.eligible & ~chosen).any(dim=1)
    return top_k(-gain, written, torch.where(masks_left, count, 0))[0]


def _rcr_state(spec: SamplerSpec, vocab_size: int) -> StateShapes:
    return {"running": ((spec.gen_len,), torch.float32), "touched": ((spec.gen_len,), torch.bool)}


def _saber_state(spec: SamplerSpec, vocab_size: int) -> StateShapes:
    canvas = (spec.gen_len,)
    return {
        "before": (canvas, torch.float32),
        "was_seen": (canvas, torch.bool),
        "committed": (canvas, torch.float32),
        "was_committed": (canvas, torch.bool),
    }


RCR, SABER = Strategy(rcr, state=_rcr_state), Strategy(saber, state=_saber_state)
