"""Strategies: proposal, confidence, selection and revision composed into the decision of one denoising step.

A strategy gets logits and returns a decision; it never calls the model, so rows of one batch may be in
different blocks and steps (specs: decoding 2.4). Strategies come in two kinds. Those that *draw, then choose*
keep the draws they like best, so the committed token does not follow `softmax(logits / T)` at T > 0; those
that *choose, then draw* do follow it (specs: rl-algorithms 1.4). `Strategy.exact_law` says which.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from rl4dlm.decoding.confidence import (
    ConfidenceFrom,
    drawn_probability,
    margin,
    neg_entropy,
    top_probability,
)
from rl4dlm.decoding.proposal import Law, Proposal, draw
from rl4dlm.decoding.revision import least_confident, running_confidence
from rl4dlm.decoding.schedules import TIME_EPS, Schedule
from rl4dlm.decoding.selection import above_threshold, top_k, within_entropy, within_factor
from rl4dlm.diffusion.seeds import counter_uniform
from rl4dlm.types import FORCED, SAMPLED

if TYPE_CHECKING:
    from rl4dlm.decoding.spec import SamplerSpec

# Third counter of the uniforms that order positions; those that draw tokens have two counters.
ORDER_STREAM = 1

# Which positions a strategy may commit: masked ones of the active block, or also of earlier blocks.
Region = Literal["block", "decoded"]


@dataclass(frozen=True)
class StepInput:
    """What a strategy sees of one denoising step; `seen` counts the positions of all rows with logits.

    The window is the active block, or the whole canvas where the strategy or a recording needs it.
    """

    logits: Tensor
    """`[seen, vocab]`, in row-major order of the window."""
    eligible: Tensor
    """bool `[rows, width]`: positions that may be committed now, all of them seen."""
    index: Tensor
    """int64 `[seen]`: where the seen positions are in the flattened `[rows * width]`."""
    position: Tensor
    """int64 `[rows, width]`: canvas positions of the window."""
    seed: Tensor
    """int64 `[rows]`."""
    step: Tensor
    """int64 `[rows]`: the row's global step, from 0."""
    count: Tensor
    """int64 `[rows]`: positions that the schedule wants committed."""
    block_steps: Tensor | None = None
    """int64 `[rows]`: steps of a block, for strategies that draw them."""
    state: Mapping[str, Tensor] = field(default_factory=dict)
    """`[rows, completion, ...]` per name: what the strategy keeps of a row between steps, 0 at its start."""

    def uniform(self, *stream: Tensor) -> Tensor:
        """float64 `[seen]`: a number per seen position, a function of (seed, step, position) alone."""
        return self._uniform(self.step, *stream)

    def fixed_uniform(self, *stream: Tensor) -> Tensor:
        """float64 `[seen]`: a number per seen position that is the same in every step."""
        return self._uniform(torch.zeros_like(self.step), *stream)

    def _uniform(self, step: Tensor, *stream: Tensor) -> Tensor:
        every = counter_uniform(self.seed[:, None], step[:, None], self.position, *stream)
        return every.flatten()[self.index]

    def stream(self, number: int) -> Tensor:
        """A counter that separates one use of uniforms from others."""
        return self.seed.new_full((1, 1), number)

    def dense(self, values: Tensor) -> Tensor:
        """`[seen]` to `[rows, width]`, 0 where nothing is seen."""
        flat = values.new_zeros(self.eligible.numel()).index_copy(0, self.index, values)
        return flat.view_as(self.eligible)

    def at_seen(self, dense: Tensor) -> Tensor:
        """`[rows, width]` to `[seen]`."""
        return dense.flatten()[self.index]

    def select(self, score: Tensor, count: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Indices into `seen` of the best-scored positions, and their ranks, both int64 `[committed]`.

        Args:
            score: `[seen]`.
            count: int64 `[rows]`; None: the schedule's.
        """
        chosen, rank = top_k(self.dense(score), self.eligible, self.count if count is None else count)
        picked = self.at_seen(chosen).nonzero().squeeze(1)
        return picked, rank.flatten()[self.index[picked]]


@dataclass(frozen=True)
class Decision:
    """What a step does, all rows together."""

    picked: Tensor
    """int64 `[committed]`: indices into the seen positions, ascending."""
    rank: Tensor
    """int64 `[committed]`: order within the row's step."""
    token: Tensor
    """int64 `[committed]`."""
    logp: Tensor
    """float32 `[committed]`, nats: `log softmax(logits / T)[token]`, T = 1 for greedy decoding."""
    score: Tensor
    """float32 `[committed]`: the confidence that the selection used."""
    kind: Tensor | None = None
    """uint8 `[committed]`: SAMPLED, FORCED or EARLY_COMMIT; None: all SAMPLED."""
    remask: Tensor | None = None
    """bool `[rows, width]`: committed positions to hide again; None: none."""
    proposal: Proposal | None = None
    """What was drawn at all seen positions; None: drawn at the committed ones only."""
    confidence: Tensor | None = None
    """float32 `[seen]`: confidence in every seen position."""
    state: Mapping[str, Tensor] = field(default_factory=dict)
    """What the strategy keeps of each row, `[rows, completion, ...]`; replaces `StepInput.state`."""


StateShape = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Per name the shape after `[rows, completion]`, and the dtype."""


@dataclass(frozen=True)
class Strategy:
    """A named strategy: its decision, and what the engine and the user should know about it."""

    decide: Callable[[SamplerSpec, StepInput], Decision]
    summary: str
    """One line."""
    settings: tuple[str, ...] = ()
    """Fields of `SamplerSpec` that it reads beside those that all strategies read."""
    exact_law: bool = False
    """The committed token follows `softmax(logits / T)` whatever T is, because positions are chosen first."""
    schedule: Schedule = "linear"
    """How many positions a step commits, where the strategy does not find out for itself."""
    confidence_from: ConfidenceFrom | None = None
    """Replaces the recipe's; None leaves it."""
    region: Region = "block"
    revises: bool = False
    """It may take tokens back, so its traces have events."""
    state: StateShape = field(default_factory=dict)


def _drawn(spec: SamplerSpec, step: StepInput) -> tuple[Proposal, Tensor]:
    """A draw at every seen position, and the confidence in it."""
    drawn = draw(step.logits, step.uniform(), spec.temperature, top_p=spec.top_p, top_k=spec.top_k)
    if spec.confidence_law == Law(spec.temperature or 1.0):
        return drawn, drawn.prob
    return drawn, drawn_probability(step.logits, drawn.token, spec.confidence_law)


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
    drawn, score = _drawn(spec, step)
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


def rcr(spec: SamplerSpec, step: StepInput) -> Decision:
    """Running confidence remasking: write everything, then hide the least confident of all ever written.

    Source: MDPO, arXiv:2508.13148 (specs: rl-algorithms 2.6). Tokens of earlier blocks may be hidden again,
    too. The decision is the net change: what stays written, and what is taken back.
    """
    drawn, score = _drawn(spec, step)
    dense = step.dense(score)
    touched = step.state["touched"]
    running = running_confidence(step.state["running"], touched, dense, step.eligible, spec.rcr_update)
    touched = touched | step.eligible
    hidden = least_confident(running, touched, (step.eligible.sum(dim=1) - step.count).clamp(min=0))
    kept, rank = top_k(dense, step.eligible & ~hidden, torch.full_like(step.count, dense.shape[1]))
    picked = step.at_seen(kept).nonzero().squeeze(1)
    return Decision(
        picked=picked,
        rank=rank.flatten()[step.index[picked]],
        token=drawn.token[picked],
        logp=drawn.prob[picked].log(),
        score=score[picked],
        remask=hidden & ~step.eligible,
        proposal=drawn,
        confidence=step.at_seen(torch.where(touched, running, 0.0)),
        state={"running": running, "touched": touched},
    )


def _positions_first(score: Score, summary: str, count: Count = _scheduled, **facts: Any) -> Strategy:
    decided = partial(choose_then_draw, score=score, count=count)
    return Strategy(decided, summary, exact_law=True, **facts)


def _tokens_first(summary: str, count: Count = _scheduled, **facts: Any) -> Strategy:
    return Strategy(partial(draw_then_choose, count=count), summary, **facts)


_ORDER = ("order_temperature",)
_DREAM: dict[str, Any] = {
    "settings": _ORDER,
    "schedule": "time_grid",
    "confidence_from": "filtered",
}

STRATEGIES: dict[str, Strategy] = {
    "low_confidence": _tokens_first(
        "LLaDA, d1: draw everywhere, keep the draws of highest probability", settings=_ORDER
    ),
    "top_probability": _positions_first(
        _top_probability, "positions of highest top probability, then draw there", settings=_ORDER
    ),
    "random": _positions_first(random_order, "positions in random order"),
    "ar": _positions_first(_leftmost, "positions from left to right"),
    "margin": _positions_first(
        _margin, "positions where the best token is farthest ahead of the next", settings=_ORDER
    ),
    "neg_entropy": _positions_first(_neg_entropy, "positions of lowest entropy", settings=_ORDER),
    "dream_origin": _positions_first(
        _reveal_time, "Dream origin: every position at a time of its own", _all_due
    ),
    "dream_maskgit_plus": _tokens_first("Dream maskgit_plus: low_confidence on Dream's time grid", **_DREAM),
    "dream_topk_margin": _positions_first(
        _margin, "Dream topk_margin: margin on Dream's time grid", **_DREAM
    ),
    "dream_entropy": _positions_first(
        _neg_entropy, "Dream entropy: neg_entropy on Dream's time grid", **_DREAM
    ),
    "dynamic": _tokens_first(
        "SDAR, TraDo: every draw above the threshold, at least as many as low_confidence",
        _dynamic,
        settings=("threshold",),
    ),
    "threshold": _tokens_first(
        "Fast-dLLM: every draw that reaches the threshold, at least one",
        _threshold,
        settings=("threshold",),
    ),
    "factor": _tokens_first(
        "Fast-dLLM: as many draws as (n + 1) (1 - n-th confidence) < factor allows, at least one",
        _factor,
        settings=("factor",),
    ),
    "entropy_bound": _positions_first(
        _neg_entropy,
        "EB-Sampler: the most certain positions within an entropy budget, at least one",
        partial(_entropy_bound, count_last=False),
        settings=("entropy_budget",),
    ),
    "entropy_bound_cumsum": _positions_first(
        _neg_entropy,
        "SDAR entropy-bounded: as entropy_bound, the last entropy counted too",
        partial(_entropy_bound, count_last=True),
        settings=("entropy_budget",),
    ),
    "entropy_threshold": _positions_first(
        _neg_entropy,
        "dParallel: every position whose entropy is within the budget, at least one",
        _entropy_threshold,
        settings=("entropy_budget",),
    ),
    "rcr": Strategy(
        rcr,
        "MDPO: write everything, hide again what was written with the least confidence",
        settings=("rcr_update",),
        region="decoded",
        revises=True,
        state={"running": ((), torch.float32), "touched": ((), torch.bool)},
    ),
}
"""Strategies by their recipe name (`rollout.remasking`)."""


def decide(spec: SamplerSpec, step: StepInput) -> Decision:
    """The decision of the strategy that `spec` names.

    Args:
        spec: the sampler.
        step: logits and per-row state of one step.

    Returns:
        Eligible positions only, and at least one of every row that has any.
    """
    return STRATEGIES[spec.remasking].decide(spec, step)


def proposals(spec: SamplerSpec, step: StepInput, decision: Decision) -> Proposal:
    """What would have been drawn at every seen position, those of the decision included."""
    if decision.proposal is not None:
        return decision.proposal
    return draw(step.logits, step.uniform(), spec.temperature, top_p=spec.top_p, top_k=spec.top_k)
