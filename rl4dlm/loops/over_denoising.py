"""Training prompts, those that `data.over_denoising` keeps where it is set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rl4dlm.data import KeptPrompts, PromptSource
from rl4dlm.decoding import SamplerSpec
from rl4dlm.learner.protocols import Sampler, ScoringWorkers
from rl4dlm.loops.evaluate import verify_steps
from rl4dlm.loops.health import Health
from rl4dlm.loops.session import Session
from rl4dlm.recipe import Recipe
from rl4dlm.run.over_denoising import num_tried, over_denoised_prompts
from rl4dlm.run.preflight import Preflight
from rl4dlm.types import Prompt


def training_prompts(
    session: Session,
    recipe: Recipe,
    checks: Preflight,
    sampler: Sampler,
    scorer: ScoringWorkers,
    health: Health,
) -> PromptSource:
    """All prompts of the data, or those that the weights at hand are over-denoised on."""
    settings, source = recipe.data.over_denoising, checks.prompts
    if settings is None:
        return source
    spec = SamplerSpec.from_config(recipe.rollout, temperature=settings.temperature)

    def verify(prompts: Sequence[Prompt]) -> list[np.ndarray]:
        verdicts, scores = verify_steps(
            sampler.generate, scorer, prompts, recipe, spec, settings.block_lengths,
            model=checks.spec, decode=checks.decode, version=session.update,
        )  # fmt: skip
        health.check_rewards(scores, session.update)
        return verdicts

    total, say = num_tried(source, settings.num_prompts), session.reporter.say
    kept = over_denoised_prompts(
        source,
        settings.num_prompts,
        session.folder.prompt_filter,
        verify,
        lambda tried, kept: say(f"data.over_denoising: {tried} of {total} tried, {kept} kept"),
        batch=recipe.rollout.prompts_per_update * recipe.rollout.num_generations,
        first_weights=session.update == 0,
    )
    session.tracker.note(f"data.over_denoising: {len(kept)} of {total} training prompts are kept")
    found = KeptPrompts(source, kept, seed=recipe.run.seed, shuffle=recipe.data.shuffle)
    found.batch(0, recipe.rollout.prompts_per_update)
    return found
