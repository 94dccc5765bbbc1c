"""Samplers and caches by name: every fact that recipes, engine, cost and docs ask for, without torch.

A sampler is a row here, a function in `rl4dlm/decoding/strategies.py` and its plain form in
`rl4dlm/testing/reference_sampler.py`. Whoever asks about a sampler by name reads the row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

ConfidenceFrom = Literal["raw", "tempered", "filtered"]
EosPolicy = Literal["none", "block_eos", "block_all_eos", "accepted_eos"]
EarlyCommit = Literal["none", "prophet", "sched_linear", "sched_cosine", "sched_exp"]
RcrUpdate = Literal["last", "max", "min"]
RcrConfidence = Literal["probability", "neg_entropy", "margin"]
RcrSchedule = Literal["even", "linear", "cosine", "pow2", "pow3", "log", "exp"]
CountSchedule = Literal["even", "time_grid", "linear", "cosine", "pow2", "pow3", "log", "exp"]
Attention = Literal["full", "block_causal"]


@dataclass(frozen=True)
class SamplerFacts:
    """What is asked about a sampler beside its function."""

    summary: str
    """What a step commits, for people; without a final stop."""
    source: str = ""
    """Who published it."""
    settings: tuple[str, ...] = ()
    """Settings that it reads beside those that all samplers read."""
    draws_first: bool = False
    """It draws tokens everywhere and keeps those that it likes best, so that a committed token does not
    follow `softmax(logits / T)` at T > 0. Samplers that choose positions first follow it."""
    revises: bool = False
    """It may remask committed tokens, also in earlier blocks: traces have events, and no cache fits."""
    sees_committed: bool = False
    """It needs logits at committed positions, too."""
    sees_canvas: bool = False
    """Its function gets whole canvases instead of active blocks."""
    is_static: bool = False
    """Its next state follows from logits, counters and schedule, so that steps can be drafted."""
    keeps_to_steps: bool = True
    """It takes `diffusion_steps` steps at most; else they only have to fit the blocks."""
    schedule: CountSchedule = "even"
    """How the tokens of a block are shared out over its steps."""
    confidence_from: ConfidenceFrom | None = None
    """Replaces the recipe's `confidence_from`; None leaves it."""
    has_probabilities: bool = True
    """Its confidences lie between 0 and 1, and may weigh a loss."""
    knows_order: bool = False
    """Which positions come next is known before the forward."""
    explores: bool = False
    """Its order of positions is drawn, so that samples differ at temperature 0, too."""

    @property
    def exact_law(self) -> bool:
        """Whether the committed token follows the model's law at every temperature."""
        return not self.draws_first


_ORDER = ("order_temperature",)

SAMPLERS: dict[str, SamplerFacts] = {
    "low_confidence": SamplerFacts(
        "the draws of highest probability; with `confidence_from: tempered` SDAR's static rule",
        "LLaDA, d1",
        settings=_ORDER,
        draws_first=True,
        is_static=True,
    ),
    "top_probability": SamplerFacts(
        "positions of highest top probability, then a draw there", settings=_ORDER, is_static=True
    ),
    "random": SamplerFacts(
        "positions in random order",
        "LLaDA",
        is_static=True,
        has_probabilities=False,
        knows_order=True,
        explores=True,
    ),
    "ar": SamplerFacts(
        "positions from left to right, `max_completion_length / diffusion_steps` at a time",
        is_static=True,
        has_probabilities=False,
        knows_order=True,
    ),
    "margin": SamplerFacts(
        "positions where the best token is farthest ahead of the next", settings=_ORDER, is_static=True
    ),
    "neg_entropy": SamplerFacts(
        "positions of lowest entropy", settings=_ORDER, is_static=True, has_probabilities=False
    ),
    "dream_origin": SamplerFacts(
        "each position at a time of its own on Dream's grid",
        "Dream",
        has_probabilities=False,
        knows_order=True,
        explores=True,
    ),
    "dream_maskgit_plus": SamplerFacts(
        "as `low_confidence`, counts from Dream's time grid, confidences after `top_p` and `top_k`; "
        "`order_temperature` is `alg_temp`",
        "Dream",
        settings=_ORDER,
        draws_first=True,
        is_static=True,
        schedule="time_grid",
        confidence_from="filtered",
    ),
    "dream_topk_margin": SamplerFacts(
        "as `margin`, counts and confidences as `dream_maskgit_plus`",
        "Dream",
        settings=_ORDER,
        is_static=True,
        schedule="time_grid",
        confidence_from="filtered",
    ),
    "dream_entropy": SamplerFacts(
        "as `neg_entropy`, counts and confidences as `dream_maskgit_plus`",
        "Dream",
        settings=_ORDER,
        is_static=True,
        schedule="time_grid",
        confidence_from="filtered",
        has_probabilities=False,
    ),
    "dynamic": SamplerFacts(
        "every draw above `threshold`, at least what the schedule says",
        "SDAR, TraDo",
        settings=("threshold",),
        draws_first=True,
    ),
    "threshold": SamplerFacts(
        "every draw that reaches `threshold`, at least one",
        "Fast-dLLM",
        settings=("threshold",),
        draws_first=True,
        keeps_to_steps=False,
    ),
    "factor": SamplerFacts(
        "the n surest draws while (n + 1) (1 - n-th confidence) < `factor`, at least one",
        "Fast-dLLM",
        settings=("factor",),
        draws_first=True,
        keeps_to_steps=False,
    ),
    "top_dynamic": SamplerFacts(
        "as `dynamic` by top probability, positions chosen before drawing", settings=("threshold",)
    ),
    "top_threshold": SamplerFacts(
        "as `threshold` by top probability, positions chosen before drawing",
        settings=("threshold",),
        keeps_to_steps=False,
    ),
    "top_factor": SamplerFacts(
        "as `factor` by top probability, positions chosen before drawing",
        settings=("factor",),
        keeps_to_steps=False,
    ),
    "entropy_bound": SamplerFacts(
        "the most certain positions whose entropies without the largest sum to `entropy_budget` at most",
        "EB-Sampler",
        settings=("entropy_budget",),
        keeps_to_steps=False,
        has_probabilities=False,
    ),
    "entropy_bound_cumsum": SamplerFacts(
        "as `entropy_bound` with the largest entropy counted, too",
        "SDAR",
        settings=("entropy_budget",),
        keeps_to_steps=False,
        has_probabilities=False,
    ),
    "entropy_threshold": SamplerFacts(
        "every position whose entropy is at most `entropy_budget`, at least one",
        "dParallel",
        settings=("entropy_budget",),
        keeps_to_steps=False,
        has_probabilities=False,
    ),
    "rcr": SamplerFacts(
        "everything; then it remasks the least confident of all ever written, in earlier blocks too",
        "MDPO",
        settings=("rcr_update", "rcr_confidence", "rcr_schedule"),
        draws_first=True,
        revises=True,
    ),
    "saber": SamplerFacts(
        "what exceeds the mean confidence of earlier commits; it remasks what gained least since "
        "(so what stays is chosen with the tokens in view)",
        "Saber",
        revises=True,
        sees_committed=True,
        keeps_to_steps=False,
    ),
    "ccd": SamplerFacts("lowest entropy of the distribution averaged over three steps", "CCD"),
    "ccd_ds": SamplerFacts("every candidate that two steps agree on", "CCD"),
    "learned": SamplerFacts(
        "what a policy network says",
        "arXiv:2512.09106",
        settings=("policy", "policy_sharpness"),
        sees_canvas=True,
        keeps_to_steps=False,
        explores=True,
    ),
}
"""By their recipe name (`rollout.remasking`)."""


@dataclass(frozen=True)
class CacheFacts:
    """What is asked about a cache plan beside its queries."""

    summary: str
    """What a forward computes, for people."""
    source: str
    attention: Attention
    """The attention of the models that it is for."""
    exact: bool = False
    """Samples are those without a cache."""
    feeds_later_blocks: bool = False
    """Masked positions of later blocks are computed, so that their logits can be had in every forward."""
    needs_order: bool = False
    """It needs a sampler that knows its order beforehand."""


CACHES: dict[str, CacheFacts] = {
    "block": CacheFacts(
        "the active block; at its start also the block before, which is thereby committed. A prompt is "
        "computed once for its group",
        "SDAR, TraDo",
        "block_causal",
        exact=True,
    ),
    "prefix": CacheFacts(
        "everything at a block's start, then the block and what follows it",
        "Fast-dLLM",
        "full",
        feeds_later_blocks=True,
    ),
    "dual": CacheFacts("everything at a block's start, then the block alone", "Fast-dLLM", "full"),
    "dkv_decode": CacheFacts(
        "everything in the first two steps of a block, then what is masked or was written in the last step",
        "dKV-Cache",
        "full",
        feeds_later_blocks=True,
    ),
    "dkv_greedy": CacheFacts(
        "what was and what is being written, with 2 masked neighbours on each side",
        "dKV-Cache-Greedy",
        "full",
        needs_order=True,
    ),
    "free": CacheFacts(
        "the block and what follows it; the block before once more at its start",
        "FreeCache",
        "full",
        feeds_later_blocks=True,
    ),
}
"""By their recipe name (`rollout.cache`), beside `none`."""


def own_settings() -> list[str]:
    """The settings that only some samplers read."""
    return list(dict.fromkeys(name for facts in SAMPLERS.values() for name in facts.settings))


def readers(setting: str) -> list[str]:
    """The samplers that read a setting."""
    return [name for name, facts in SAMPLERS.items() if setting in facts.settings]


def samplers_that(fits: Callable[[SamplerFacts], bool]) -> str:
    """Names of the samplers of a kind, for a remedy: `a or b or c`."""
    return " or ".join(name for name, facts in SAMPLERS.items() if fits(facts))
