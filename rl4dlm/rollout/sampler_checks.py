"""Whether a sampler fits an opened model, asked before anything runs; and what to know about its samples."""

from __future__ import annotations

from rl4dlm.decoding import SamplerSpec
from rl4dlm.errors import RecipeError
from rl4dlm.recipe.rules.sampling import unfit_for_model
from rl4dlm.recipe.samplers import CACHES
from rl4dlm.types import DenoiserSpec


def check_sampler(spec: SamplerSpec, model: DenoiserSpec) -> None:
    """Refuse a sampler that is unfit for the model.

    Raises:
        RecipeError: naming the settings and the remedy.
    """
    for _, problem, remedy in unfit_for_model(
        spec.cache, spec.block_length, model.attention, model.block_length
    ):
        raise RecipeError(f"{problem}.\nFix: {remedy}.")


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
