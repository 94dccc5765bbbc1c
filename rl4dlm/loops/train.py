"""The main loop: prompts -> rollouts -> rewards -> update -> sync, with evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rl4dlm.diffusion.seeds import derive_seed
from rl4dlm.loops.evaluate import evaluate
from rl4dlm.loops.health import Health
from rl4dlm.loops.over_denoising import training_prompts
from rl4dlm.loops.rollouts import UpdateRollouts
from rl4dlm.loops.session import Session, open_session
from rl4dlm.loops.warm_start import warm_start
from rl4dlm.recipe import Recipe
from rl4dlm.reward.rollout_scores import is_correct, score_groups, score_steps, trainer_state
from rl4dlm.run.folder import RunFolder
from rl4dlm.run.preflight import Preflight, preflight
from rl4dlm.run.reporter import Clock
from rl4dlm.run.rollout_files import write_rollouts
from rl4dlm.run.rollout_metrics import rollout_metrics
from rl4dlm.tracking import completion_health, require_finite
from rl4dlm.trainers import method_of
from rl4dlm.trainers.method import Metrics
from rl4dlm.trainers.prepare import partial_decodes, prepare_batch, rewards_by_step
from rl4dlm.trainers.trial import tried_method
from rl4dlm.types import Prompt, RolloutGroup

_REPLAYED_ROLLOUTS = 16
_MUST_BE_FINITE = ("loss/policy", "grad_norm", "reward", "replay/logprob_abs_diff")


def train(recipe: Recipe, *, resume: bool = False, step: int | None = None) -> RunFolder:
    """Run a recipe to its end.

    Args:
        recipe: checked settings.
        resume: continue the run that lies in the recipe's folder from its newest checkpoint, or from `step`.

    Raises:
        UserError: something the user gave is wrong; nothing was started or overwritten.
        RunError: the run failed; its log has the traceback.
    """
    RunFolder.of(recipe).starting_point(recipe, resume=resume, step=step)
    checks = preflight(recipe)
    tried_method(recipe, checks.spec)  # a method that cannot be made is the user's to fix, before a start
    with open_session(recipe, checks, checks.notes, supervised=False, resume=resume, step=step) as session:
        Training(recipe, checks, session).run()
    return session.folder


class Training:
    """A run under way."""

    def __init__(self, recipe: Recipe, checks: Preflight, session: Session) -> None:
        self.recipe, self.checks, self.session = recipe, checks, session
        self.method = method_of(recipe, checks.spec)
        if recipe.warm_start is not None:
            session.model_path = warm_start(session, recipe, checks)
        self.rollouts = UpdateRollouts(recipe, checks.prompts)
        session.stack.callback(self.rollouts.close)  # after the samplers that its thread waits for are gone
        self.sampler, self.scorer = session.open_sampling(recipe.reward)
        self.rollouts.sample_with(self.sampler.generate)
        session.reporter.say("loading the model on all workers")
        session.policy.load(session.model_path)
        self.sampler.wait_ready()

    def run(self) -> None:
        """From where the run stands to its end."""
        session = self.session
        session.restore()
        self.health = Health(session, self.recipe)
        self._sync()
        self.rollouts.prompts = training_prompts(
            session, self.recipe, self.checks, self.sampler, self.scorer, self.health
        )
        self.rollouts.resume(session.checkpoint)
        if session.update == 0 and not session.tracker.evaluated(0):
            self._evaluate()
        algorithm, folder = self.recipe.algorithm, session.folder
        session.run(self._update if algorithm.samples_rollouts else self._offline_update, self._recovered)
        session.finish(folder.policy if algorithm.freezes_model else folder.model)

    def _recovered(self) -> None:
        """The policy is back at a checkpoint: so must be whoever follows it."""
        self.health.look_back()
        self.rollouts.resume(None)
        self._sync()
        self.rollouts.resume(self.session.checkpoint)

    def _update(self, update: int) -> None:
        """One turn of the loop; the stages in order."""
        session, clock = self.session, Clock()
        with clock("rollout"):
            drawn = self.rollouts.take(update, session.update)
        groups = drawn.groups
        with clock("reward"):
            scores = score_groups(self.scorer, groups, self._trainer_state)
            step_rewards, step_metrics = self._score_steps(groups, update)
        self.health.check_rewards(scores, update)
        seed = derive_seed(self.recipe.run.seed, "update", update)
        batch, metrics = prepare_batch(
            self.method, groups, scores, policy_version=drawn.version, seed=seed, step_rewards=step_rewards
        )
        metrics |= step_metrics | {"rollout/staleness": float(session.update - drawn.version)}
        with clock("replay"):
            metrics["replay/logprob_abs_diff"] = self._replay_gap(groups)
        with clock("update"):
            if batch is not None:
                metrics |= session.policy.update(batch, update)
        session.advance(update)
        with clock("rollout"):
            self.rollouts.wait()
        with clock("sync"):
            metrics |= self._sync()
        if step_rewards is not None:
            step_rewards = rewards_by_step(self.method, groups, step_rewards)
        write_rollouts(session.folder, self.recipe, groups, scores, step_rewards, update)
        metrics |= rollout_metrics(groups, scores, is_correct(scores, self.recipe.reward), drawn.seconds)
        metrics |= completion_health(groups, scores.reward)
        metrics |= {"rollout/restarts": float(self.sampler.restarts), **clock.metrics()}
        self._record(metrics, [group.prompt for group in groups])

    def _offline_update(self, update: int) -> None:
        """One turn of the loop for methods that learn from recorded pairs: nothing is sampled or scored, and
        weights are synced where an evaluation wants them."""
        session, clock = self.session, Clock()
        with clock("data"):
            prompts = self.rollouts.prompts_of(update)
            pairs = self.checks.pairs(self.recipe, prompts)
        seed = derive_seed(self.recipe.run.seed, "update", update)
        assert self.method.pair_batch is not None, "a method without rollouts learns from pairs"
        batch = self.method.pair_batch(pairs, session.update, seed) if pairs else None
        metrics: Metrics = {"pairs/overlong": float(len(prompts) - len(pairs))}
        with clock("update"):
            if batch is not None:
                metrics |= session.policy.update(batch, update)
        session.advance(update)
        with clock("sync"):
            metrics |= self._sync() if session.evaluates_at(update) else {}
        self._record({**metrics, **clock.metrics()}, prompts)

    def _record(self, metrics: Metrics, prompts: Sequence[Prompt]) -> None:
        """Log an update; evaluate and save where it is time to."""
        session, update = self.session, self.session.update
        where = f"prompts {[prompt.uid for prompt in prompts]}; {self.health.good_checkpoint()}"
        require_finite(update, metrics, [name for name in _MUST_BE_FINITE if name in metrics], where)
        session.tracker.log(update, metrics)
        self.health.check_metrics(metrics, update)
        if session.evaluates_at(update):
            self._evaluate()
        if session.saves_at(update):
            session.save(lambda folder: self.rollouts.save(update, folder), self.health.good_update)

    def _score_steps(
        self, groups: Sequence[RolloutGroup], update: int
    ) -> tuple[list[np.ndarray] | None, Metrics]:
        """Rewards of partial decodes, for methods that want them."""
        if not self.recipe.algorithm.scores_steps:
            return None, {}
        decodes = partial_decodes(self.method, groups)
        rewards, scores = score_steps(
            self.scorer, groups, decodes, self.checks.decode, self.checks.spec.stop_ids, self._trainer_state
        )
        if scores is None:
            return rewards, {}
        self.health.check_rewards(scores, update)
        texts, scored = float(sum(map(len, decodes))), float(len(scores.reward))
        return rewards, {"reward/step_texts": texts, "reward/step_texts_scored": scored}

    @property
    def _trainer_state(self) -> dict[str, int]:
        return trainer_state(self.session.update, self.recipe.trainer.max_steps)

    def _sync(self) -> Metrics:
        """Publish the weights of this update and bring every sampler to them."""
        manifest = self.session.policy.publish(self.session.update)
        self.sampler.sync(manifest)
        return {
            "sync/version": float(manifest.version),
            "sync/mbytes": manifest.num_bytes / 2**20,
            "sync/pack_s": manifest.pack_s,
        }

    def _replay_gap(self, groups: Sequence[RolloutGroup]) -> float:
        """Rollout against trainer, on one rollout of each of the first prompts."""
        probe = [group.rollouts[0] for group in groups[:_REPLAYED_ROLLOUTS]]
        enlarged = self.recipe.algorithm.rollout_block_length(self.session.update + 1)
        return self.session.policy.replay_gap(probe, self.recipe.rollout.temperature, enlarged)

    def _evaluate(self) -> None:
        session, at, count = self.session, self.session.update, self.recipe.eval.num_prompts
        session.settle()
        session.reporter.say(f"evaluating on {count} held-out prompts")
        prompts = self.checks.prompts.eval_prompts(count)
        found = evaluate(self.sampler.generate, self.scorer, prompts, self.recipe, version=at, update=at)
        session.tracker.warn_once(found.warnings)
        session.tracker.evaluation(at, found.metrics, found.samples, found.decode)
