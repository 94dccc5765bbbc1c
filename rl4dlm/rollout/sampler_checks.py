"""Whether a sampler fits a model, asked before anything runs; and what to know about its samples."""

from __future__ import annotations

from rl4dlm.decoding import SamplerSpec
from rl4dlm.errors import RecipeError
from rl4dlm.rollout.caches import CACHES
from rl4dlm.types import DenoiserSpec


def check_sampler(spec: SamplerSpec, model: DenoiserSpec) -> None:
    """Refuse a sampler that is unfit for the model.

    Raises:
        RecipeError: naming the settings and the remedy.
    """
    check_blocks(spec, model)
    check_cache(spec, model)


def check_blocks(sampler: SamplerSpec, spec: DenoiserSpec) -> None:
    """Refuse blocks that a block-causal model was not made for.

    Raises:
        RecipeError: naming both lengths and the remedy.
    """
    trained = spec.block_length
    if spec.attention == "full" or trained is None:
        return
    if sampler.block_length % trained:
        raise RecipeError(
            f"rollout.block_length = {sampler.block_length} does not fit a block-causal model with blocks of "
            f"{trained}.\nFix: use {trained}, or a multiple of it to enlarge the model's blocks."
        )


def check_cache(spec: SamplerSpec, model: DenoiserSpec) -> None:
    """Refuse a cache that does not fit the model or the sampler.

    Raises:
        RecipeError: naming the settings and the remedy.
    """
    if spec.cache == "none":
        return
    if spec.cache not in CACHES:
        known = " or ".join(("none", *CACHES))
        raise RecipeError(f"rollout.cache = {spec.cache!r} is not known.\nFix: use {known}.")
    plan = CACHES[spec.cache]
    fitting = " or ".join(["none", *(n for n, p in CACHES.items() if p.attention == model.attention)])
    if plan.attention != model.attention:
        raise RecipeError(
            f"rollout.cache = {spec.cache} is for {plan.attention} attention, and the model's is "
            f"{model.attention}.\nFix: use {fitting}."
        )
    if plan.knows_order and spec.strategy.picks is None:
        raise RecipeError(
            f"rollout.cache = {spec.cache} needs to know which positions come next before the forward, and "
            f"rollout.remasking = {spec.remasking} finds out by it.\nFix: use random, ar or dream_origin."
        )
    if spec.early_commit != "none" and not plan.feeds_later_blocks:
        raise RecipeError(
            f"rollout.cache = {spec.cache} computes the active block only, and rollout.early_commit = "
            f"{spec.early_commit} looks at all masks.\nFix: set one of them to none."
        )
    if spec.cache_refresh and plan.exact:
        raise RecipeError(
            f"rollout.cache_refresh = {spec.cache_refresh}: rollout.cache = {spec.cache} is exact and never "
            "refreshed.\nFix: remove it."
        )


def sampler_notes(spec: SamplerSpec) -> list[str]:
    """What makes samples differ from the law that the trainer scores them by, for the log of a run."""
    gap = "watch replay/logprob_abs_diff"
    notes = []
    if spec.cache != "none" and not CACHES[spec.cache].exact:
        notes.append(f"rollout.cache = {spec.cache} is approximate: rollouts and trainer differ; {gap}.")
    if spec.cfg_scale > 0:
        notes.append(f"rollout.cfg_scale = {spec.cfg_scale}: guided samples are not the model's own; {gap}.")
    if spec.temperature > 0 and (spec.top_p < 1 or spec.top_k > 0):
        notes.append(
            f"rollout.top_p = {spec.top_p}, rollout.top_k = {spec.top_k}: samples are cut, log-probabilities "
            "are not."
        )
    if spec.early_commit != "none":
        notes.append(
            f"rollout.early_commit = {spec.early_commit}: tokens written at once have no log-probability of "
            "their own and are no targets of a trajectory method."
        )
    return notes
