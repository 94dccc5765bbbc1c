"""The main loop: prompts -> rollouts -> rewards -> update -> sync, with evaluation, checkpoints and
recovery."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from rl4dlm.data import KeptPrompts, PromptSource, demonstrations, open_task
from rl4dlm.decoding import SamplerSpec
from rl4dlm.diffusion.seeds import derive_seed
from rl4dlm.errors import CollapseError, RewardError, UpdateError
from rl4dlm.learner.learning_rate import warm_start_rate
from rl4dlm.loops.evaluate import evaluate, verify_steps
from rl4dlm.loops.over_denoising import num_tried, over_denoised_prompts
from rl4dlm.loops.rollouts import (
    STALENESS,
    Ahead,
    Drawn,
    draw,
    load_drawn,
    require_fresh,
    rollout_metrics,
    save_drawn,
)
from rl4dlm.models import encode
from rl4dlm.recipe import Recipe
from rl4dlm.recipe.sections import OverDenoisingFilter
from rl4dlm.reward.judge import is_correct, score_groups, score_steps, trainer_state
from rl4dlm.reward.scores import matters_of, too_many_failures
from rl4dlm.rollout import to_table, write_parquet
from rl4dlm.run.folder import Checkpoint, CheckpointParts, RunFolder, storage
from rl4dlm.run.preflight import Preflight, preflight, starting_model
from rl4dlm.run.reporter import Clock, Reporter, places
from rl4dlm.tracking import (
    RunHistory,
    Sentinel,
    Tracker,
    collapse_message,
    completion_health,
    require_finite,
)
from rl4dlm.trainers import make_trainer
from rl4dlm.trainers.base import Trainer
from rl4dlm.trainers.sft import SFTBatch, sft_batch
from rl4dlm.trainers.sft_steps import warm_start_plan
from rl4dlm.types import Prompt, RolloutGroup, Scores
from rl4dlm.workers.placement import Placement, ray_session, reserve
from rl4dlm.workers.policy_group import PolicyGroup, RankDied
from rl4dlm.workers.reward_worker import RewardWorkers
from rl4dlm.workers.rollout_pool import RolloutPool

_WARM_START_SLICE = 20
_REPLAYED_ROLLOUTS = 16
_MUST_BE_FINITE = ("loss/policy", "grad_norm", "reward", "replay/logprob_abs_diff")


@dataclass
class Run:
    """What a run holds while it is under way."""

    recipe: Recipe
    folder: RunFolder
    checks: Preflight
    reporter: Reporter
    placement: Placement
    trainer: Trainer
    model_path: str
    policy: PolicyGroup
    rollouts: RolloutPool
    rewards: RewardWorkers
    prompts: PromptSource
    """Training prompts; fewer than the data's where they are filtered."""
    update: int = 0
    """Updates done; also the version of the weights."""
    ahead: Ahead | None = field(init=False, default=None)
    """Draws the next update's rollouts while one runs; only under `cluster.schedule: one_step_off`."""
    sentinel: Sentinel = field(init=False)
    """Watches for collapse; made anew where the run goes on from a checkpoint."""

    @property
    def tracker(self) -> Tracker:
        return self.reporter.tracker


def train(recipe: Recipe, *, resume: bool = False, step: int | None = None) -> RunFolder:
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
    checks = preflight(recipe)
    make_trainer(recipe, checks.spec)  # a method that cannot be made is the user's to mend, before a start
    with ray_session(recipe.cluster, print):
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


@contextmanager
def _cast(recipe: Recipe, folder: RunFolder, checks: Preflight, reporter: Reporter) -> Iterator[Run]:
    """Reserve resources and bring the workers up; all of them are gone when the block ends."""
    placement = reserve(recipe.cluster, reporter.say)
    for line in (*checks.notes, *placement.describe()):
        reporter.tracker.note(line)
    for line in checks.warnings:
        reporter.tracker.warn(line)
    policy = PolicyGroup(recipe, placement.trainers, reporter.say)
    rewards = RewardWorkers(
        recipe.reward, placement.rewards, reporter.say, start_timeout_s=recipe.cluster.start_timeout_s
    )
    run: Run | None = None
    try:
        model_path = starting_model(recipe, folder, checks)
        reporter.say("starting trainer ranks")
        policy.start()
        if recipe.warm_start is not None:
            model_path = _warm_start(recipe, folder, policy, reporter, checks, model_path)
        rollouts = RolloutPool(recipe, model_path, placement.rollouts, reporter.say)
        trainer = make_trainer(recipe, checks.spec)
        run = Run(
            recipe, folder, checks, reporter, placement, trainer, model_path, policy, rollouts, rewards,
            checks.prompts,
        )  # fmt: skip
        if STALENESS[recipe.cluster.schedule]:
            run.ahead = Ahead(partial(_draw, run))
        reporter.say("loading the model on all workers")
        policy.load(model_path)
        rollouts.wait_ready()
        yield run
        run.policy.close()
    finally:
        (run.policy if run else policy).kill()
        if run is not None:
            run.rollouts.close()
            if run.ahead is not None:
                run.ahead.close()
        rewards.close()
        placement.remove()


def _warm_start(
    recipe: Recipe,
    folder: RunFolder,
    policy: PolicyGroup,
    reporter: Reporter,
    checks: Preflight,
    model_path: str,
) -> str:
    """SFT on demonstrations; its result is a model folder, so a resumed run does not repeat it."""
    settings, tracker = recipe.warm_start, reporter.tracker
    assert settings is not None
    if not folder.warm_start.exists():
        policy.load(model_path, supervised=True, weight_decay=settings.weight_decay)
        tracker.phase("warm start", settings.steps)
        for first in range(0, settings.steps, _WARM_START_SLICE):
            steps = range(first, min(first + _WARM_START_SLICE, settings.steps))
            batches = [warm_start_batch(recipe, checks, step) for step in steps]
            rates = [warm_start_rate(settings, step) for step in steps]
            last = policy.sft(batches, rates, f"warm-start steps from {first}")[-1]
            metrics = {"sft/loss": last["loss"]}
            require_finite(0, metrics, list(metrics), f"warm-start step {steps.stop}")
            tracker.phase_step(steps.stop, metrics)
        policy.export(folder.warm_start)
    return str(folder.warm_start.resolve())


def warm_start_batch(recipe: Recipe, checks: Preflight, step: int) -> SFTBatch:
    """The demonstrations of one warm-start step (from 0), with the canvas of the rollouts."""
    settings = recipe.warm_start
    assert settings is not None and recipe.data.task is not None
    examples = demonstrations(
        open_task(recipe.data.task, recipe.run.seed),
        partial(encode, checks.tokenizer),
        completion_length=recipe.rollout.max_completion_length,
        indices=range(step * settings.batch_size, (step + 1) * settings.batch_size),
        render=checks.prompts.render,
    )
    seed = derive_seed(recipe.run.seed, "warm_start", step)
    return sft_batch(examples, warm_start_plan(recipe.rollout, checks.spec), checks.spec, seed)


def _begin(run: Run) -> None:
    """Bring the weights to where the run stands, and evaluate where it stands at the beginning."""
    checkpoint = run.folder.find()
    if checkpoint is not None:
        run.policy.restore(checkpoint.folder)
        run.update = checkpoint.update
    run.sentinel = _sentinel(run)
    _sync(run)
    run.prompts = _training_prompts(run)
    _take_up_rollouts(run, checkpoint)
    if not run.tracker.evaluated(0) and run.update == 0:
        _evaluate(run)


def _training_prompts(run: Run) -> PromptSource:
    """All prompts of the data, or those that `data.over_denoising` keeps."""
    settings, source = run.recipe.data.over_denoising, run.checks.prompts
    if settings is None:
        return source
    total = num_tried(source, settings.num_prompts)
    kept = over_denoised_prompts(
        source,
        settings.num_prompts,
        run.folder.prompt_filter,
        partial(_verify, run, settings),
        lambda tried, kept: run.reporter.say(f"data.over_denoising: {tried} of {total} tried, {kept} kept"),
        batch=run.recipe.rollout.prompts_per_update * run.recipe.rollout.num_generations,
        first_weights=run.update == 0,
    )
    run.tracker.note(f"data.over_denoising: {len(kept)} of {total} training prompts are kept")
    found = KeptPrompts(source, kept, seed=run.recipe.run.seed, shuffle=run.recipe.data.shuffle)
    found.batch(0, run.recipe.rollout.prompts_per_update)
    return found


def _verify(run: Run, settings: OverDenoisingFilter, prompts: Sequence[Prompt]) -> list[np.ndarray]:
    """Which steps of a decode of each prompt predict a correct answer."""
    spec = SamplerSpec.from_config(run.recipe.rollout, temperature=settings.temperature)
    verdicts, scores = verify_steps(
        run.rollouts,
        run.rewards,
        prompts,
        run.recipe,
        spec,
        settings.block_lengths,
        model=run.checks.spec,
        decode=run.checks.decode,
        version=run.update,
    )
    _refuse_failing_rewards(run, scores, run.update)
    return verdicts


def _loop(run: Run) -> None:
    """All remaining updates. A trainer group that dies is rebuilt from the last checkpoint, once per
    update."""
    died_at = -1
    while run.update < run.recipe.trainer.max_steps:
        try:
            _one_update(run, run.update + 1)
        except RankDied as error:
            if died_at == run.update:
                raise UpdateError(
                    f"update {run.update + 1}: the trainer group died twice: {error}.\n"
                    "Fix: look for memory pressure (trainer.micro_batch_tokens, zero_stage) or a failing "
                    "node; then --resume."
                ) from error
            died_at = run.update
            _rebuild(run, str(error))


def _one_update(run: Run, update: int) -> None:
    """One turn of the loop; the stages in order."""
    if run.trainer.offline:
        return _offline_update(run, update)
    recipe, clock = run.recipe, Clock()
    with clock("rollout"):
        drawn = _rollouts(run, update)
    groups = drawn.groups
    with clock("reward"):
        scores = score_groups(run.rewards, groups, _trainer_state(run))
        step_rewards, step_metrics = _score_steps(run, groups, update)
    _refuse_failing_rewards(run, scores, update)
    seed = derive_seed(recipe.run.seed, "update", update)
    batch, metrics = run.trainer.prepare(
        groups, scores, policy_version=drawn.version, seed=seed, step_rewards=step_rewards
    )
    metrics |= step_metrics | {"rollout/staleness": float(run.update - drawn.version)}
    with clock("replay"):
        metrics["replay/logprob_abs_diff"] = _replay_gap(run, groups)
    with clock("update"):
        if batch is not None:
            metrics |= run.policy.update(batch, update)
    run.update = update
    if run.ahead is not None:
        with clock("rollout"):
            run.ahead.wait()
    with clock("sync"):
        metrics |= _sync(run)
    _write_rollouts(run, groups, scores, step_rewards, update)
    metrics |= rollout_metrics(groups, scores, is_correct(scores, recipe.reward), drawn.seconds)
    metrics |= completion_health(groups, scores.reward)
    metrics |= {"rollout/restarts": float(run.rollouts.restarts), **clock.metrics()}
    _record(run, update, metrics, [group.prompt for group in groups])


def _offline_update(run: Run, update: int) -> None:
    """One turn of the loop for methods that learn from recorded pairs: nothing is sampled or scored, and
    weights are synced where an evaluation wants them."""
    recipe, checks, clock = run.recipe, run.checks, Clock()
    with clock("data"):
        prompts = checks.prompts.batch(update - 1, recipe.rollout.prompts_per_update)
        pairs = checks.pairs(recipe, prompts)
    seed = derive_seed(recipe.run.seed, "update", update)
    batch, metrics = run.trainer.prepare_pairs(pairs, policy_version=run.update, seed=seed)
    metrics["pairs/overlong"] = float(len(prompts) - len(pairs))
    with clock("update"):
        if batch is not None:
            metrics |= run.policy.update(batch, update)
    run.update = update
    with clock("sync"):
        if _evaluates(recipe, update):
            metrics |= _sync(run)
    metrics |= clock.metrics()
    _record(run, update, metrics, prompts)


def _record(run: Run, update: int, metrics: dict[str, float], prompts: list[Prompt]) -> None:
    """Log an update; evaluate and save where it is time to."""
    recipe = run.recipe
    finite = [name for name in _MUST_BE_FINITE if name in metrics]
    prompts_text = f"prompts {[prompt.uid for prompt in prompts]}"
    require_finite(update, metrics, finite, f"{prompts_text}; {_good_checkpoint(run)}")
    run.tracker.log(update, metrics)
    _refuse_collapse(run, metrics, update)
    if _evaluates(recipe, update):
        _evaluate(run)
    if update == recipe.trainer.max_steps or update % recipe.trainer.save_steps == 0:
        _save(run)


def _evaluates(recipe: Recipe, update: int) -> bool:
    """Whether an evaluation follows an update."""
    every = recipe.eval.steps
    return update == recipe.trainer.max_steps or bool(every and update % every == 0)


def _rollouts(run: Run, update: int) -> Drawn:
    """The rollouts of an update, drawn ahead or now; those of the next one are begun where the schedule says
    so."""
    ahead = run.ahead
    drawn = None if ahead is None else ahead.take(update)
    if drawn is None:
        drawn = _draw(run, update, run.update)
    if ahead is not None and update < run.recipe.trainer.max_steps:
        ahead.start(update + 1, run.update)
    require_fresh(drawn, run.update, run.recipe.cluster.schedule)
    return drawn


def _draw(run: Run, update: int, version: int) -> Drawn:
    prompts = run.prompts.batch(update - 1, run.recipe.rollout.prompts_per_update)
    return draw(run.recipe, run.trainer, prompts, run.rollouts.generate, update=update, version=version)


def _score_steps(
    run: Run, groups: list[RolloutGroup], update: int
) -> tuple[list[np.ndarray] | None, dict[str, float]]:
    """Rewards of partial decodes, for methods that want them."""
    if not run.trainer.scores_steps:
        return None, {}
    decodes = run.trainer.partial_decodes(groups)
    rewards, scores = score_steps(
        run.rewards, groups, decodes, run.checks.decode, run.checks.spec.stop_ids, _trainer_state(run)
    )
    if scores is None:
        return rewards, {}
    _refuse_failing_rewards(run, scores, update)
    texts = sum(len(row) for row in decodes)
    return rewards, {"reward/step_texts": float(texts), "reward/step_texts_scored": float(len(scores.reward))}


def _sync(run: Run) -> dict[str, float]:
    """Publish the weights of this update and bring every rollout worker to them."""
    manifest = run.policy.publish(run.update)
    run.rollouts.sync(manifest)
    return {
        "sync/version": float(manifest.version),
        "sync/mbytes": manifest.num_bytes / 2**20,
        "sync/pack_s": manifest.pack_s,
    }


def _replay_gap(run: Run, groups: list[RolloutGroup]) -> float:
    """Rollout against trainer, on one rollout of each of the first prompts."""
    probe = [group.rollouts[0] for group in groups[:_REPLAYED_ROLLOUTS]]
    enlarged = run.recipe.algorithm.rollout_block_length(run.update + 1)
    return run.policy.replay_gap(probe, run.recipe.rollout.temperature, enlarged)


def _trainer_state(run: Run) -> dict[str, int]:
    """What reward functions see as TRL's `trainer_state`."""
    return trainer_state(run.update, run.recipe.trainer.max_steps)


def _refuse_failing_rewards(run: Run, scores: Scores, update: int) -> None:
    run.tracker.warn_once(matters_of(scores))
    cause = too_many_failures(scores, run.recipe.reward)
    if cause:
        raise RewardError(f"update {update}: {cause}")


def _sentinel(run: Run) -> Sentinel:
    """One that has seen the updates on file up to where the run stands."""
    rows = [row for row in RunHistory.load(run.folder.root).metrics if row["update"] <= run.update]
    values = [{name: value for name, value in row.items() if value is not None} for row in rows]
    return Sentinel(run.recipe.sentinel, [(row["update"], row) for row in values])


def _good_update(run: Run) -> int:
    """The newest update whose weights are known to be good: they drew rollouts without a sign of decline."""
    return run.sentinel.last_good - 1


def _good_checkpoint(run: Run) -> str:
    checkpoint = run.folder.newest_until(_good_update(run))
    if checkpoint is None:
        return "no checkpoint was saved while the run was good"
    return f"the last good checkpoint is that of update {checkpoint.update}"


def _refuse_collapse(run: Run, metrics: Mapping[str, float], update: int) -> None:
    """Stop a run that falls apart, before its weights are evaluated and saved once more."""
    alarm = run.sentinel.observe(update, metrics)
    if alarm is None:
        return
    checkpoint = run.folder.newest_until(_good_update(run))
    step = None if checkpoint is None else checkpoint.update
    raise CollapseError(collapse_message(alarm, update, run.folder.root, step))


def _write_rollouts(
    run: Run,
    groups: list[RolloutGroup],
    scores: Scores,
    step_rewards: list[np.ndarray] | None,
    update: int,
) -> None:
    every = run.recipe.tracking.rollouts_every
    if every and update % every == 0:
        rollout = run.recipe.rollout
        table = to_table(
            groups,
            scores,
            update=update,
            record_states=rollout.record_states,
            record_predictions=rollout.record_predictions,
            step_rewards=None if step_rewards is None else run.trainer.rewards_by_step(groups, step_rewards),
        )
        with storage(f"{run.folder.rollouts} could not be written"):
            run.folder.rollouts.mkdir(exist_ok=True)
            write_parquet(table, run.folder.rollouts / f"update_{update:06d}.parquet")


def _evaluate(run: Run) -> None:
    run.reporter.say(f"evaluating on {run.recipe.eval.num_prompts} held-out prompts")
    prompts = run.checks.prompts.eval_prompts(run.recipe.eval.num_prompts)
    evaluation = evaluate(
        run.rollouts, run.rewards, prompts, run.recipe, version=run.update, update=run.update
    )
    run.tracker.warn_once(evaluation.warnings)
    run.tracker.evaluation(run.update, evaluation.metrics, evaluation.samples, evaluation.decode)


def _save(run: Run) -> None:
    run.reporter.say(f"saving update {run.update}")
    state = {"version": run.update, "model": run.model_path, "seed": run.recipe.run.seed}
    run.folder.save_checkpoint(
        run.update,
        partial(_save_parts, run),
        state,
        run.recipe.trainer.save_total_limit,
        good=_good_update(run) if run.recipe.sentinel.enabled else None,
    )
    run.tracker.end_phase()


def _save_parts(run: Run, folder: Path) -> None:
    run.policy.save(folder)
    drawn = None if run.ahead is None else run.ahead.wait()
    if drawn is not None:
        save_drawn(drawn, run.update + 1, CheckpointParts(folder).rollouts)


def _rebuild(run: Run, reason: str) -> None:
    """A new trainer group, at the last checkpoint; what was logged after it is forgotten."""
    run.tracker.warn(f"update {run.update + 1}: {reason}; the trainer group is rebuilt")
    run.policy.kill()
    run.policy = PolicyGroup(run.recipe, run.placement.trainers, run.reporter.say)
    run.policy.start()
    run.policy.load(run.model_path)
    checkpoint = run.folder.find()
    run.update = checkpoint.update if checkpoint else 0
    if checkpoint:
        run.policy.restore(checkpoint.folder)
    run.reporter.rewind(run.update)
    run.sentinel = _sentinel(run)
    if run.ahead is not None:
        run.ahead.drop()
    _sync(run)
    _take_up_rollouts(run, checkpoint)


def _take_up_rollouts(run: Run, checkpoint: Checkpoint | None) -> None:
    """Rollouts that were drawn ahead when the checkpoint was saved are learned from next."""
    if run.ahead is None or checkpoint is None or not checkpoint.parts.rollouts.exists():
        return
    update = checkpoint.update + 1
    prompts = run.prompts.batch(update - 1, run.recipe.rollout.prompts_per_update)
    run.ahead.put(update, load_drawn(checkpoint.parts.rollouts, prompts))


def _finish(run: Run) -> None:
    """Export what was trained and show what the run did."""
    frozen = run.recipe.algorithm.freezes_model
    target = run.folder.policy if frozen else run.folder.model
    run.reporter.say(f"exporting the {target.name}")
    if target.exists():
        shutil.rmtree(target)  # of an earlier, shorter leg of this run
    run.policy.export(target)
    run.tracker.finish(run.tracker.summary(places(run.folder)))
