"""The warm start of a model from scratch: supervised steps on a task's demonstrations, before the first
update."""

from __future__ import annotations

from rl4dlm.diffusion.seeds import derive_seed
from rl4dlm.learner.learning_rate import warm_start_rate
from rl4dlm.loops.session import Session
from rl4dlm.recipe import Recipe
from rl4dlm.run.preflight import Preflight
from rl4dlm.tracking import require_finite
from rl4dlm.trainers.sft import SFTBatch, sft_batch
from rl4dlm.trainers.sft_steps import warm_start_plan

_SLICE = 20
"""Steps that the policy is asked for at once."""


def warm_start(session: Session, recipe: Recipe, checks: Preflight) -> str:
    """Fine-tune on demonstrations; the result is a model folder, so a resumed run does not repeat it."""
    settings, tracker, target = recipe.warm_start, session.tracker, session.folder.warm_start
    assert settings is not None
    if not target.exists():
        session.policy.load(session.model_path, supervised=True, weight_decay=settings.weight_decay)
        tracker.phase("warm start", settings.steps)
        for first in range(0, settings.steps, _SLICE):
            steps = range(first, min(first + _SLICE, settings.steps))
            batches = [warm_start_batch(recipe, checks, step) for step in steps]
            rates = [warm_start_rate(settings, step) for step in steps]
            last = session.policy.sft(batches, rates, f"warm-start steps from {first}")[-1]
            metrics = {"sft/loss": last["loss"]}
            require_finite(0, metrics, list(metrics), f"warm-start step {steps.stop}")
            tracker.phase_step(steps.stop, metrics)
        session.policy.export(target)
    return str(target.resolve())


def warm_start_batch(recipe: Recipe, checks: Preflight, step: int) -> SFTBatch:
    """The demonstrations of one step (from 0), with the canvas of the rollouts."""
    assert recipe.warm_start is not None
    size = recipe.warm_start.batch_size
    examples = checks.demonstrations(recipe, range(step * size, (step + 1) * size))
    seed = derive_seed(recipe.run.seed, "warm_start", step)
    return sft_batch(examples, warm_start_plan(recipe.rollout, checks.spec), checks.spec, seed)
