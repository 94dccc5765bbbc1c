"""The loop of supervised fine-tuning: examples -> optimizer step, with held-out evaluation, checkpoints and
recovery."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rl4dlm.diffusion.seeds import derive_seed
from rl4dlm.errors import UpdateError
from rl4dlm.learner.learning_rate import learning_rate
from rl4dlm.loops.evaluate import Evaluation, evaluate
from rl4dlm.recipe import SFTRecipe
from rl4dlm.recipe.sections import ClusterConfig
from rl4dlm.run.folder import RunFolder
from rl4dlm.run.preflight import SFTPreflight, preflight_sft, starting_model
from rl4dlm.run.reporter import Clock, Reporter, places
from rl4dlm.tracking import Tracker, require_finite
from rl4dlm.trainers.sft_steps import (
    held_out_batch,
    held_out_metrics,
    held_out_plan,
    step_batch,
    step_plan,
)
from rl4dlm.workers.placement import Placement, ray_session, reserve
from rl4dlm.workers.policy_group import PolicyGroup, RankDied
from rl4dlm.workers.reward_worker import RewardWorkers
from rl4dlm.workers.rollout_pool import RolloutPool


@dataclass
class Run:
    """What a fine-tuning run holds while it is under way."""

    recipe: SFTRecipe
    folder: RunFolder
    checks: SFTPreflight
    reporter: Reporter
    placement: Placement
    model_path: str
    policy: PolicyGroup
    sampling: tuple[RolloutPool, RewardWorkers] | None
    """Who samples and scores held-out prompts; None without a reward."""
    update: int = 0
    """Optimizer steps done; also the version of the weights."""

    @property
    def tracker(self) -> Tracker:
        return self.reporter.tracker


def finetune(recipe: SFTRecipe, *, resume: bool = False, step: int | None = None) -> RunFolder:
    """Run a recipe to its end.

    Args:
        recipe: checked settings.
        resume: continue the run that lies in the recipe's folder from its newest checkpoint, or from `step`.

    Raises:
        UserError: something the user gave is wrong; nothing was started or overwritten.
        RunError: the run failed; its log has the traceback.
    """
    folder = RunFolder.of(recipe)
    checkpoint = folder.starting_point(recipe, resume=resume, step=step)
    checks = preflight_sft(recipe)
    with ray_session(needed(recipe), print):
        if resume:
            folder.reopen(recipe)
            folder.drop_after(checkpoint.update if checkpoint else 0)
        else:
            folder.create(recipe)
        resume_from = (checkpoint.update if checkpoint else 0) if resume else None
        with (
            Reporter(recipe, folder, resume_from) as reporter,
            _cast(recipe, folder, checks, reporter) as run,
        ):
            _begin(run)
            _loop(run)
            _finish(run)
    return folder


def needed(recipe: SFTRecipe) -> ClusterConfig:
    """The workers of the recipe; without a reward nobody samples or scores."""
    if recipe.reward is not None:
        return recipe.cluster
    return recipe.cluster.model_copy(update={"num_rollout_workers": 0, "num_reward_workers": 0})


@contextmanager
def _cast(recipe: SFTRecipe, folder: RunFolder, checks: SFTPreflight, reporter: Reporter) -> Iterator[Run]:
    """Reserve resources and bring the workers up; all of them are gone when the block ends."""
    placement = reserve(needed(recipe), reporter.say)
    for line in (*checks.notes, _epochs(recipe, checks), *placement.describe()):
        reporter.tracker.note(line)
    for line in checks.warnings:
        reporter.tracker.warn(line)
    run: Run | None = None
    try:
        model_path = starting_model(recipe, folder, checks)
        policy = PolicyGroup(recipe, placement.trainers, reporter.say)
        run = Run(recipe, folder, checks, reporter, placement, model_path, policy, None)
        if recipe.reward is not None:
            rewards = RewardWorkers(
                recipe.reward, placement.rewards, reporter.say, start_timeout_s=recipe.cluster.start_timeout_s
            )
            run.sampling = (RolloutPool(recipe, model_path, placement.rollouts, reporter.say), rewards)
        reporter.say("starting trainer ranks")
        policy.start()
        policy.load(model_path, supervised=True)
        if run.sampling is not None:
            run.sampling[0].wait_ready()
        yield run
        run.policy.close()
    finally:
        if run is not None:
            run.policy.kill()
            for workers in run.sampling or ():
                workers.close()
        placement.remove()


def _epochs(recipe: SFTRecipe, checks: SFTPreflight) -> str:
    """How often the run goes through its data."""
    rows = recipe.trainer.max_steps * recipe.sft.batch_size
    seen = f"{recipe.trainer.max_steps} steps of {recipe.sft.batch_size} rows"
    known = checks.examples.num_train
    return f"objective: {checks.objective.type}; {seen}" + (f", {rows / known:.3g} epochs" if known else "")


def _begin(run: Run) -> None:
    """Bring the weights to where the run stands, and evaluate where it stands at the beginning."""
    checkpoint = run.folder.find()
    if checkpoint is not None:
        run.policy.restore(checkpoint.folder)
        run.update = checkpoint.update
    if not run.tracker.evaluated(0) and run.update == 0:
        _evaluate(run)


def _loop(run: Run) -> None:
    """All remaining steps. A trainer group that dies is rebuilt from the last checkpoint, once per step."""
    died_at = -1
    while run.update < run.recipe.trainer.max_steps:
        try:
            _one_update(run, run.update + 1)
        except RankDied as error:
            if died_at == run.update:
                raise UpdateError(
                    f"step {run.update + 1}: the trainer group died twice: {error}.\n"
                    "Fix: look for memory pressure (trainer.micro_batch_tokens, zero_stage) or a failing "
                    "node; then --resume."
                ) from error
            died_at = run.update
            _rebuild(run, str(error))


def _one_update(run: Run, update: int) -> None:
    """One turn of the loop; the stages in order."""
    recipe, checks, clock = run.recipe, run.checks, Clock()
    with clock("data"):
        batch = step_batch(recipe, checks.examples, checks.objective, checks.spec, update - 1)
    rate = learning_rate(recipe.trainer, update)
    with clock("update"):
        (metrics,) = run.policy.sft([batch], [rate], f"step {update}")
    run.update = update
    metrics |= {"learning_rate": rate, **_throughput(metrics, clock["update"]), **clock.metrics()}
    if batch.plan.block_length is not None:
        metrics["sft/block_length"] = float(batch.plan.block_length)
    require_finite(update, metrics, ["loss", "grad_norm"], f"the rows of step {update}")
    run.tracker.log(update, metrics)
    last = update == recipe.trainer.max_steps
    if last or (recipe.eval.steps and update % recipe.eval.steps == 0):
        _evaluate(run)
    if last or update % recipe.trainer.save_steps == 0:
        _save(run)


def _throughput(metrics: dict[str, float], update_s: float) -> dict[str, float]:
    """Tokens per second, and the share of what was read that was padding; takes the padding's count out."""
    tokens, padding = metrics["sft/tokens"], metrics.pop("sft/padding")
    return {
        "sft/tokens_per_s": tokens / max(update_s, 1e-9),
        "sft/padding_share": padding / (tokens + padding),
    }


def _evaluate(run: Run) -> None:
    """Held-out ELBO, and greedy accuracy where there is a reward."""
    recipe, checks = run.recipe, run.checks
    run.reporter.say(f"evaluating on {recipe.eval.num_prompts} held-out examples")
    examples = checks.examples.held_out()
    trained = step_plan(recipe, checks.objective, checks.spec, max(0, run.update - 1))
    plan = held_out_plan(trained, checks.spec)
    states = 1 if plan.objective.type == "ar" else recipe.sft.elbo_states
    seed = derive_seed(recipe.run.seed, "evaluation", "elbo")
    batch = held_out_batch(examples, plan, checks.spec, seed, states)
    metrics = held_out_metrics(run.policy.held_out(batch), batch, len(examples))
    sampled = _sample(run)
    run.tracker.warn_once(sampled.warnings)
    run.tracker.evaluation(
        run.update,
        metrics | sampled.metrics,
        sampled.samples,
        {"elbo": {"objective": plan.objective.type, "states": states, "fill": plan.fill}, **sampled.decode},
    )


def _sample(run: Run) -> Evaluation:
    """Completions of the held-out prompts by the current weights, scored; nothing without a reward."""
    if run.sampling is None:
        return Evaluation({}, [], {}, {})
    rollouts, rewards = run.sampling
    rollouts.sync(run.policy.publish(run.update))
    prompts = run.checks.examples.eval_prompts()
    return evaluate(rollouts, rewards, prompts, run.recipe, version=run.update, update=run.update)


def _save(run: Run) -> None:
    run.reporter.say(f"saving step {run.update}")
    state = {"version": run.update, "model": run.model_path, "seed": run.recipe.run.seed}
    keep = run.recipe.trainer.save_total_limit
    run.folder.save_checkpoint(run.update, run.policy.save, state, keep)
    run.tracker.end_phase()


def _rebuild(run: Run, reason: str) -> None:
    """A new trainer group, at the last checkpoint; what was logged after it is forgotten."""
    run.tracker.warn(f"step {run.update + 1}: {reason}; the trainer group is rebuilt")
    run.policy.kill()
    run.policy = PolicyGroup(run.recipe, run.placement.trainers, run.reporter.say)
    run.policy.start()
    run.policy.load(run.model_path, supervised=True)
    checkpoint = run.folder.find()
    run.update = checkpoint.update if checkpoint else 0
    if checkpoint:
        run.policy.restore(checkpoint.folder)
    run.reporter.rewind(run.update)


def _finish(run: Run) -> None:
    """Export the model and show what the run did."""
    run.reporter.say("exporting the model")
    if run.folder.model.exists():
        shutil.rmtree(run.folder.model)  # of an earlier, shorter leg of this run
    run.policy.export(run.folder.model)
    run.tracker.finish(run.tracker.summary(places(run.folder)))
