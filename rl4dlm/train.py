"""The main loop: prompts -> rollouts -> rewards -> update -> sync, with evaluation, checkpoints and
recovery."""

from __future__ import annotations

import math
import shutil
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from rl4dlm.decoding import SamplerSpec
from rl4dlm.diffusion.seeds import derive_seed
from rl4dlm.errors import RewardError, UpdateError
from rl4dlm.evaluate import evaluate, group_rollouts, is_correct, make_requests, score_groups, score_steps
from rl4dlm.models import save
from rl4dlm.preflight import Preflight, preflight
from rl4dlm.recipe import Recipe
from rl4dlm.reward.scores import num_not_applicable, too_many_failures
from rl4dlm.rollout import to_table, write_parquet
from rl4dlm.run_folder import RunFolder, storage
from rl4dlm.tracking import Tracker, require_finite
from rl4dlm.trainers import make_trainer
from rl4dlm.trainers.base import Trainer
from rl4dlm.types import Prompt, Rollout, RolloutGroup, Scores, flatten
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
    voice: Voice
    placement: Placement
    trainer: Trainer
    model_path: str
    policy: PolicyGroup
    rollouts: RolloutPool
    rewards: RewardWorkers
    update: int = 0
    """Updates done; also the version of the weights."""
    warned: set[str] = field(default_factory=set)
    """Reward failures that have been told already."""

    @property
    def tracker(self) -> Tracker:
        return self.voice.tracker


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
    with ray_session(recipe.cluster, print):
        if resume:
            folder.reopen(recipe)
            folder.drop_after(checkpoint.update if checkpoint else 0)
        else:
            folder.create(recipe)
        resume_from = (checkpoint.update if checkpoint else 0) if resume else None
        with Voice(recipe, folder, resume_from) as voice, _cast(recipe, folder, checks, voice) as run:
            _begin(run)
            _loop(run)
            _finish(run)
    return folder


class Voice:
    """The run's tracker, which a rewind replaces, and its last words: a failure is recorded with its
    traceback."""

    def __init__(self, recipe: Recipe, folder: RunFolder, resume_from: int | None) -> None:
        self._recipe, self._folder = recipe, folder
        self.tracker = self._open(resume_from)

    def say(self, text: str) -> None:
        """Tell what is being done or waited for."""
        self.tracker.phase(text)

    def rewind(self, update: int) -> None:
        """Forget what was logged after `update`: the run goes on from there."""
        self.tracker.close()
        self.tracker = self._open(update)

    def _open(self, resume_from: int | None) -> Tracker:
        total = self._recipe.trainer.max_steps
        return Tracker(self._recipe, self._folder.root, total_updates=total, resume_from=resume_from)

    def __enter__(self) -> Voice:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self.tracker.fail(f"{type(error).__name__}: {error}")
            with suppress(OSError):  # a full disk must not hide the first error
                with open(self._folder.log, "a", encoding="utf-8") as log:
                    log.write("".join(traceback.format_exception(error)) + "\n")
        self.tracker.close()


@contextmanager
def _cast(recipe: Recipe, folder: RunFolder, checks: Preflight, voice: Voice) -> Iterator[Run]:
    """Reserve resources and bring the workers up; all of them are gone when the block ends."""
    placement = reserve(recipe.cluster, voice.say)
    for line in (*checks.notes, *placement.describe()):
        voice.tracker.note(line)
    policy = PolicyGroup(recipe, placement.trainers, voice.say)
    rewards = RewardWorkers(recipe.reward, placement.rewards, voice.say)
    run: Run | None = None
    try:
        model_path = _initial_model(recipe, folder, checks)
        voice.say("starting trainer ranks")
        policy.start()
        if recipe.warm_start is not None:
            model_path = _warm_start(recipe, folder, policy, voice.tracker, model_path)
        rollouts = RolloutPool(recipe, model_path, placement.rollouts, voice.say)
        trainer = make_trainer(recipe, checks.spec)
        run = Run(recipe, folder, checks, voice, placement, trainer, model_path, policy, rollouts, rewards)
        voice.say("loading the model on all workers")
        policy.load(model_path)
        rollouts.wait_ready()
        yield run
        run.policy.close()
    finally:
        (run.policy if run else policy).kill()
        if run is not None:
            run.rollouts.close()
        rewards.close()
        placement.remove()


def _initial_model(recipe: Recipe, folder: RunFolder, checks: Preflight) -> str:
    """The model folder or hub name that the run starts from; a model from scratch is written into the run."""
    if recipe.model.path is not None:
        local = Path(recipe.model.path)  # workers have working directories of their own
        return str(local.resolve()) if local.exists() else recipe.model.path
    if not folder.initial_model.exists():
        model = checks.make_model()
        save(model, folder.initial_model, model.tokenizer)
    return str(folder.initial_model.resolve())


def _warm_start(
    recipe: Recipe, folder: RunFolder, policy: PolicyGroup, tracker: Tracker, model_path: str
) -> str:
    """Masked-diffusion SFT on demonstrations; its result is a model folder, so a resumed run does not repeat
    it."""
    settings = recipe.warm_start
    assert settings is not None
    if not folder.warm_start.exists():
        policy.load(model_path, warm_start=True)
        tracker.phase("warm start", settings.steps)
        for first in range(0, settings.steps, _WARM_START_SLICE):
            count = min(_WARM_START_SLICE, settings.steps - first)
            metrics = policy.warm_start(first, count)
            require_finite(0, metrics, ["sft/loss"], f"warm-start step {first + count}")
            tracker.phase_step(first + count, metrics)
        policy.export(folder.warm_start)
    return str(folder.warm_start.resolve())


def _begin(run: Run) -> None:
    """Bring the weights to where the run stands, and evaluate where it stands at the beginning."""
    checkpoint = run.folder.find()
    if checkpoint is not None:
        run.policy.restore(checkpoint.folder)
        run.update = checkpoint.update
    _sync(run)
    if not run.tracker.evaluated(0) and run.update == 0:
        _evaluate(run)


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
        groups = _sample(run, update)
    with clock("reward"):
        scores = score_groups(run.rewards, groups, update)
        step_rewards, step_metrics = _score_steps(run, groups, update)
    _refuse_failing_rewards(run, scores, update)
    seed = derive_seed(recipe.run.seed, "update", update)
    batch, metrics = run.trainer.prepare(
        groups, scores, policy_version=run.update, seed=seed, step_rewards=step_rewards
    )
    metrics |= step_metrics
    with clock("replay"):
        metrics["replay/logprob_abs_diff"] = _replay_gap(run, groups)
    with clock("update"):
        if batch is not None:
            metrics |= run.policy.update(batch, update)
    run.update = update
    with clock("sync"):
        metrics |= _sync(run)
    _write_rollouts(run, groups, scores, update)
    metrics |= rollout_metrics(groups, scores, is_correct(scores, recipe.reward), clock["rollout"])
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
    require_finite(update, metrics, finite, f"prompts {[prompt.uid for prompt in prompts]}")
    run.tracker.log(update, metrics)
    if _evaluates(recipe, update):
        _evaluate(run)
    if update == recipe.trainer.max_steps or update % recipe.trainer.save_steps == 0:
        _save(run)


def _evaluates(recipe: Recipe, update: int) -> bool:
    """Whether an evaluation follows an update."""
    every = recipe.eval.steps
    return update == recipe.trainer.max_steps or bool(every and update % every == 0)


def _sample(run: Run, update: int) -> list[RolloutGroup]:
    rollout = run.recipe.rollout
    prompts = run.checks.prompts.batch(update - 1, rollout.prompts_per_update)
    requests = make_requests(prompts, rollout.num_generations, run.recipe.run.seed, "rollout", update)
    spec = replace(SamplerSpec.from_config(rollout), record_predictions=run.trainer.needs_predictions)
    return group_rollouts(prompts, run.rollouts.generate(requests, spec, run.update))


def _score_steps(
    run: Run, groups: list[RolloutGroup], update: int
) -> tuple[list[np.ndarray] | None, dict[str, float]]:
    """Rewards of partial decodes, for methods that want them."""
    if not run.trainer.scores_steps:
        return None, {}
    decodes = run.trainer.partial_decodes(groups)
    rewards, scores = score_steps(run.rewards, groups, decodes, run.checks.decode, update)
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
    return run.policy.replay_gap(probe, run.recipe.rollout.temperature)


def _refuse_failing_rewards(run: Run, scores: Scores, update: int) -> None:
    for message in scores.messages:
        if message not in run.warned:
            run.warned.add(message)
            run.tracker.warn(message)
    cause = too_many_failures(scores, run.recipe.reward)
    if cause:
        raise RewardError(f"update {update}: {cause}")


def _write_rollouts(run: Run, groups: list[RolloutGroup], scores: Scores, update: int) -> None:
    every = run.recipe.tracking.rollouts_every
    if every and update % every == 0:
        table = to_table(groups, scores, update=update, record_states=run.recipe.rollout.record_states)
        with storage(f"{run.folder.rollouts} could not be written"):
            run.folder.rollouts.mkdir(exist_ok=True)
            write_parquet(table, run.folder.rollouts / f"update_{update:06d}.parquet")


def _evaluate(run: Run) -> None:
    run.voice.say(f"evaluating on {run.recipe.eval.num_prompts} held-out prompts")
    prompts = run.checks.prompts.eval_prompts(run.recipe.eval.num_prompts)
    evaluation = evaluate(
        run.rollouts, run.rewards, prompts, run.recipe, version=run.update, update=run.update
    )
    run.tracker.evaluation(run.update, evaluation.metrics, evaluation.samples, evaluation.decode)


def _save(run: Run) -> None:
    run.voice.say(f"saving update {run.update}")
    state = {"version": run.update, "model": run.model_path, "seed": run.recipe.run.seed}
    run.folder.save_checkpoint(
        run.update,
        run.policy.save,
        state,
        run.recipe.trainer.save_total_limit,
    )
    run.tracker.end_phase()


def _rebuild(run: Run, reason: str) -> None:
    """A new trainer group, at the last checkpoint; what was logged after it is forgotten."""
    run.tracker.warn(f"update {run.update + 1}: {reason}; the trainer group is rebuilt")
    run.policy.kill()
    run.policy = PolicyGroup(run.recipe, run.placement.trainers, run.voice.say)
    run.policy.start()
    run.policy.load(run.model_path)
    checkpoint = run.folder.find()
    run.update = checkpoint.update if checkpoint else 0
    if checkpoint:
        run.policy.restore(checkpoint.folder)
    run.voice.rewind(run.update)
    _sync(run)


def _finish(run: Run) -> None:
    """Export the model and show what the run did."""
    run.voice.say("exporting the model")
    if run.folder.model.exists():
        shutil.rmtree(run.folder.model)  # of an earlier, shorter leg of this run
    run.policy.export(run.folder.model)
    run.tracker.finish(run.tracker.summary(places(run.folder)))


def places(folder: RunFolder) -> dict[str, Path]:
    """Where everything of a run lies, by what it is."""
    everything = {
        "report": folder.root / "report.html",
        "metrics": folder.root / "metrics.jsonl",
        "rollouts": folder.rollouts,
        "W&B": folder.root / "wandb",
        "checkpoints": folder.checkpoints,
        "model": folder.model,
    }
    return {name: path for name, path in everything.items() if path.exists()}


def rollout_metrics(
    groups: list[RolloutGroup], scores: Scores, correct: np.ndarray, rollout_s: float
) -> dict[str, float]:
    """What the rollouts of one update say about the policy and the sampler."""
    rollouts: list[Rollout] = flatten(groups)
    lengths = np.array([rollout.completion_len for rollout in rollouts])
    canvas = np.array([len(rollout.completion_ids) for rollout in rollouts])
    forwards = np.array([rollout.num_forwards for rollout in rollouts])
    ended = np.array([rollout.completion_len < len(rollout.completion_ids) for rollout in rollouts])
    metrics = {
        "accuracy": float(correct.mean()),
        "completions/mean_length": float(lengths.mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": float(1 - ended.mean()),
        "diffusion/nfe_per_sample": float(forwards.mean()),
        "diffusion/tokens_per_forward": float(lengths.sum() / forwards.sum()),
        "rollout/tokens_per_s": float(canvas.sum() / max(rollout_s, 1e-9)),
        "reward/errors": float(sum(scores.errors.values())),
        "reward/not_applicable": float(num_not_applicable(scores)),
    }
    for name, values in scores.components.items():
        known = values[np.isfinite(values)]
        if len(known):
            metrics[f"rewards/{name}/mean"] = float(known.mean())
            metrics[f"rewards/{name}/std"] = float(known.std())
    return metrics | {f"rewards/{name}": value for name, value in scores.logged.items()}


class Clock:
    """Seconds per phase of one update."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._phases: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._phases[phase] = self._phases.get(phase, 0.0) + time.monotonic() - began

    def __getitem__(self, phase: str) -> float:
        return self._phases[phase]

    def metrics(self) -> Mapping[str, float]:
        """`timing_s/<phase>`, the rest of the step as `timing_s/driver`, and `step_time`."""
        total = time.monotonic() - self._started
        named = {f"timing_s/{phase}": seconds for phase, seconds in self._phases.items()}
        return {
            **named,
            "timing_s/driver": max(0.0, total - math.fsum(self._phases.values())),
            "step_time": total,
        }
