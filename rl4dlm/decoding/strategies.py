"""Strategies by name: proposal, confidence and selection composed into the decision of one denoising step.

They come in two kinds. Those that *draw, then choose*
keep the draws they like best, so the committed token does not follow `softmax(logits / T)` at T > 0; those
that *choose, then draw* do follow it. `SamplerFacts.draws_first` says which.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from rl4dlm.decoding.confidence import margin, neg_entropy, top_probability
from rl4dlm.decoding.consensus import CCD, CCD_DS
from rl4dlm.decoding.early import commit_early
from rl4dlm.decoding.learned import LEARNED
from rl4dlm.decoding.proposal import Proposal, draw
from rl4dlm.decoding.revisable import RCR, SABER
from rl4dlm.decoding.schedules import TIME_EPS
from rl4dlm.decoding.selection import above_threshold, within_entropy, within_factor
from rl4dlm.decoding.spec import SamplerSpec
from rl4dlm.decoding.step import ORDER_STREAM, Decision, StepInput, Strategy, draw_everywhere
from rl4dlm.types import FORCED, SAMPLED

Count = Callable[["SamplerSpec", StepInput, Tensor], tuple[Tensor, Tensor]]
"""(sampler, step, dense scores) -> int64 `[rows]` twice: how many to commit, and how many of them the rule
itself asks for; the others are forced, lest a step commit nothing."""


def _scheduled(spec: SamplerSpec, step: StepInput, score: Tensor) -> tuple[Tensor, Tensor]:
    return step.count, step.count


def _at_least_one(asked: Tensor) -> tuple[Tensor, Tensor]:
    return asked.clamp(min=1), asked


def _threshold(spec: SamplerSpec, step: StepInput, score: Tensor) -> tuple[Tensor, Tensor]:
    return _at_least_one(above_threshold(score, step.eligible, spec.threshold, strict=False))


def _dynamic(spec: SamplerSpec, step: StepInput, score: Tensor) -> tuple[Tensor, Tensor]:
    """All above the threshold, or the schedule's number where that is more: SDAR, arXiv:2510.06303."""
    asked = above_threshold(score, step.eligible, spec.threshold, strict=True)
    return torch.maximum(asked, step.count), asked


def _factor(spec: SamplerSpec, step: StepInput, score: Tensor) -> tuple[Tensor, Tensor]:
    return _at_least_one(within_factor(score, step.eligible, spec.factor))


def _entropy_bound(
    spec: SamplerSpec, step: StepInput, score: Tensor, *, count_last: bool
) -> tuple[Tensor, Tensor]:
    return _at_least_one(within_entropy(-score, step.eligible, spec.entropy_budget, count_last=count_last))


def _entropy_threshold(spec: SamplerSpec, step: StepInput, score: Tensor) -> tuple[Tensor, Tensor]:
    return _at_least_one(above_threshold(score, step.eligible, -spec.entropy_budget, strict=False))


def draw_then_choose(spec: SamplerSpec, step: StepInput, *, count: Count = _scheduled) -> Decision:
    """Draw everywhere, keep the draws of highest probability: "remask the least confident".

    Source: LLaDA, arXiv:2502.09992, reference sampler.
    """
    drawn, score = draw_everywhere(spec, step)
    picked, rank, kind = _choose(spec, step, score, count)
    return Decision(
        picked, rank, drawn.token[picked], drawn.prob[picked].log(), score[picked], kind,
        proposal=drawn, confidence=score,
    )  # fmt: skip


Score = Callable[["SamplerSpec", StepInput], Tensor]
"""(sampler, step) -> `[seen]`: a score that knows no tokens."""


def choose_then_draw(
    spec: SamplerSpec, step: StepInput, *, score: Score, count: Count = _scheduled
) -> Decision:
    """Choose positions by a score that knows no tokens, and draw at the chosen positions only."""
    scores = score(spec, step)
    picked, rank, kind = _choose(spec, step, scores, count)
    drawn = draw(
        step.logits[picked], step.uniform()[picked], spec.temperature, top_p=spec.top_p, top_k=spec.top_k
    )
    return Decision(
        picked, rank, drawn.token, drawn.prob.log(), scores[picked].float(), kind, confidence=scores.float()
    )


def _choose(
    spec: SamplerSpec, step: StepInput, score: Tensor, count: Count
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The positions to commit, their ranks, and how they came to be committed."""
    if count is _scheduled:
        return *step.select(_order(spec, step, score)), None
    total, asked = count(spec, step, step.dense(score))
    picked, rank = step.select(score, total)
    row = step.index[picked] // step.eligible.shape[1]
    forced = rank >= asked[row]
    return picked, rank, torch.where(forced, FORCED, SAMPLED).to(torch.uint8)


def _order(spec: SamplerSpec, step: StepInput, score: Tensor) -> Tensor:
    """Scores whose order is drawn: positions without replacement from softmax(score / order_temperature).

    Source: Dream's `alg_temp`, arXiv:2508.15487, by the Gumbel-top-k trick.
    """
    if spec.order_temperature == 0:
        return score
    noise = -(-step.uniform(step.stream(ORDER_STREAM)).log()).log()
    return score.double() + spec.order_temperature * noise


def _top_probability(spec: SamplerSpec, step: StepInput) -> Tensor:
    return top_probability(step.logits, spec.confidence_law)


def _margin(spec: SamplerSpec, step: StepInput) -> Tensor:
    return margin(step.logits, spec.confidence_law)


def _neg_entropy(spec: SamplerSpec, step: StepInput) -> Tensor:
    return neg_entropy(step.logits, spec.confidence_law)


def random_order(spec: SamplerSpec, step: StepInput) -> Tensor:
    return step.uniform(step.stream(ORDER_STREAM)).float()


def _leftmost(spec: SamplerSpec, step: StepInput) -> Tensor:
    return -step.at_seen(step.position).float()


def _reveal_time(spec: SamplerSpec, step: StepInput) -> Tensor:
    """Minus the step of Dream's time grid in which a position is revealed, drawn once per position.

    Step i of S reveals each masked position with probability 1 - t(i+1) / t(i), so a position is revealed in
    step i with probability t(i) - t(i+1), and in the last one with what is left.
    """
    assert step.block_steps is not None
    steps = step.at_seen(step.block_steps[:, None].expand_as(step.position))
    number = (step.fixed_uniform(step.stream(ORDER_STREAM)) * steps / (1 - TIME_EPS)).floor()
    return -torch.minimum(number, steps - 1.0)


def _all_due(spec: SamplerSpec, step: StepInput, score: Tensor) -> tuple[Tensor, Tensor]:
    """Every position of the next step that reveals any; steps that reveal nothing need no forward."""
    best = score.masked_fill(~step.eligible, float("-inf")).amax(dim=1, keepdim=True)
    due = ((score == best) & step.eligible).sum(dim=1)
    return due, due


def _positions_first(score: Score, count: Count = _scheduled, *, blind: bool = False) -> Strategy:
    """A strategy that chooses before it draws; `blind`: its scores need no logits."""
    picks = partial(_blind_picks, score=score, count=count) if blind else None
    return Strategy(partial(choose_then_draw, score=score, count=count), picks)


def _blind_picks(spec: SamplerSpec, step: StepInput, *, score: Score, count: Count) -> Tensor:
    return _choose(spec, step, score(spec, step), count)[0]


def _tokens_first(count: Count = _scheduled) -> Strategy:
    return Strategy(partial(draw_then_choose, count=count))


STRATEGIES: dict[str, Strategy] = {
    "low_confidence": _tokens_first(),
    "top_probability": _positions_first(_top_probability),
    "random": _positions_first(random_order, blind=True),
    "ar": _positions_first(_leftmost, blind=True),
    "margin": _positions_first(_margin),
    "neg_entropy": _positions_first(_neg_entropy),
    "dream_origin": _positions_first(_reveal_time, _all_due, blind=True),
    "dream_maskgit_plus": _tokens_first(),
    "dream_topk_margin": _positions_first(_margin),
    "dream_entropy": _positions_first(_neg_entropy),
    "dynamic": _tokens_first(_dynamic),
    "threshold": _tokens_first(_threshold),
    "factor": _tokens_first(_factor),
    "top_dynamic": _positions_first(_top_probability, _dynamic),
    "top_threshold": _positions_first(_top_probability, _threshold),
    "top_factor": _positions_first(_top_probability, _factor),
    "entropy_bound": _positions_first(_neg_entropy, partial(_entropy_bound, count_last=False)),
    "entropy_bound_cumsum": _positions_first(_neg_entropy, partial(_entropy_bound, count_last=True)),
    "entropy_threshold": _positions_first(_neg_entropy, _entropy_threshold),
    "rcr": RCR,
    "saber": SABER,
    "ccd": CCD,
    "ccd_ds": CCD_DS,
    "learned": LEARNED,
}
"""Functions by the name that `rl4dlm.recipe.samplers.SAMPLERS` has the facts of."""


def decide(spec: SamplerSpec, step: StepInput) -> Decision:
    """The decision of the strategy that `spec` names, with the early commit that it asks for.

    Args:
        spec: the sampler.
        step: logits and per-row state of one step.

    Returns:
        Masked positions only, and at least one of every row that has an eligible one.
    """
    decision = STRATEGIES[spec.remasking].decide(spec, step)
    return decision if spec.early_commit == "none" else commit_early(spec, step, decision)


def proposals(spec: SamplerSpec, step: StepInput, decision: Decision) -> Proposal:
    """What would have been drawn at every seen position, those of the decision included."""
    if decision.proposal is not None:
        return decision.proposal
    return draw(step.logits, step.uniform(), spec.temperature, top_p=spec.top_p, top_k=spec.top_k)
