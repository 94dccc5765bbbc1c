"""The loop of supervised fine-tuning: examples -> optimizer step, with held-out evaluation."""

from __future__ import annotations

from rl4dlm.diffusion.seeds import derive_seed
from rl4dlm.learner.learning_rate import learning_rate
from rl4dlm.learner.protocols import Sampler, ScoringWorkers
from rl4dlm.loops.evaluate import evaluate
from rl4dlm.loops.session import Session, open_session
from rl4dlm.recipe import SFTRecipe
from rl4dlm.run.folder import RunFolder
from rl4dlm.run.preflight import SFTPreflight, preflight_sft
from rl4dlm.run.reporter import Clock
from rl4dlm.tracking import Evaluation, require_finite
from rl4dlm.trainers.sft_steps import (
    held_out_batch,
    held_out_metrics,
    held_out_plan,
    step_batch,
    step_plan,
    throughput,
)


def finetune(recipe: SFTRecipe, *, resume: bool = False, step: int | None = None) -> RunFolder:
    """Run a recipe to its end.

    Args:
        recipe: checked settings.
        resume: continue the run that lies in the recipe's folder from its newest checkpoint, or from `step`.

    Raises:
        UserError: something the user gave is wrong; nothing was started or overwritten.
        RunError: the run failed; its log has the traceback.
    """
    RunFolder.of(recipe).starting_point(recipe, resume=resume, step=step)
    checks = preflight_sft(recipe)
    notes = (*checks.notes, _epochs(recipe, checks))
    with open_session(recipe, checks, notes, supervised=True, resume=resume, step=step) as session:
        FineTuning(recipe, checks, session).run()
    return session.folder


def _epochs(recipe: SFTRecipe, checks: SFTPreflight) -> str:
    """How often the run goes through its data."""
    rows = recipe.trainer.max_steps * recipe.sft.batch_size
    seen = f"{recipe.trainer.max_steps} steps of {recipe.sft.batch_size} rows"
    known = checks.examples.num_train
    return f"objective: {checks.objective.type}; {seen}" + (f", {rows / known:.3g} epochs" if known else "")


class FineTuning:
    """A fine-tuning run under way."""

    def __init__(self, recipe: SFTRecipe, checks: SFTPreflight, session: Session) -> None:
        self._recipe, self._checks, self._session = recipe, checks, session
        self._sampling: tuple[Sampler, ScoringWorkers] | None = None
        """Who samples and scores held-out prompts; None without a reward."""
        if recipe.reward is not None:
            self._sampling = session.open_sampling(recipe.reward)
        session.policy.load(session.model_path, supervised=True)
        if self._sampling is not None:
            self._sampling[0].wait_ready()

    def run(self) -> None:
        """From where the run stands to its end."""
        session = self._session
        session.restore()
        if session.update == 0 and not session.tracker.evaluated(0):
            self._evaluate()
        session.run(self._step, recovered=lambda: None)
        session.finish(session.folder.model)

    def _step(self, step: int) -> None:
        """One turn of the loop; the stages in order."""
        recipe, checks, session, clock = self._recipe, self._checks, self._session, Clock()
        with clock("data"):
            batch = step_batch(recipe, checks.examples, checks.objective, checks.spec, step - 1)
        rate = learning_rate(recipe.trainer, step)
        with clock("update"):
            (metrics,) = session.policy.sft([batch], [rate], f"step {step}")
        session.advance(step)
        metrics |= {"learning_rate": rate, **throughput(metrics, clock["update"]), **clock.metrics()}
        if batch.plan.block_length is not None:
            metrics["sft/block_length"] = float(batch.plan.block_length)
        require_finite(step, metrics, ["loss", "grad_norm"], f"the rows of step {step}")
        session.tracker.log(step, metrics)
        if session.evaluates_at(step):
            self._evaluate()
        if session.saves_at(step):
            session.save()

    def _evaluate(self) -> None:
        """Held-out ELBO, and greedy accuracy where there is a reward."""
        recipe, checks, session = self._recipe, self._checks, self._session
        session.settle()
        session.reporter.say(f"evaluating on {recipe.eval.num_prompts} held-out examples")
        examples = checks.examples.held_out()
        trained = step_plan(recipe, checks.objective, checks.spec, max(0, session.update - 1))
        plan = held_out_plan(trained, checks.spec)
        states = 1 if plan.objective.type == "ar" else recipe.sft.elbo_states
        seed = derive_seed(recipe.run.seed, "evaluation", "elbo")
        batch = held_out_batch(examples, plan, checks.spec, seed, states)
        metrics = held_out_metrics(session.policy.held_out(batch), batch, len(examples))
        decode = {"elbo": {"objective": plan.objective.type, "states": states, "fill": plan.fill}}
        sampled = self._sample()
        session.tracker.warn_once(sampled.warnings)
        session.tracker.evaluation(
            session.update, {**metrics, **sampled.metrics}, sampled.samples, {**decode, **sampled.decode}
        )

    def _sample(self) -> Evaluation:
        """Completions of the held-out prompts by the current weights, scored; nothing without a reward."""
        update = self._session.update
        if self._sampling is None:
            return Evaluation(update, {}, [], {})
        sampler, scorer = self._sampling
        sampler.sync(self._session.policy.publish(update))
        prompts = self._checks.examples.eval_prompts()
        return evaluate(sampler.generate, scorer, prompts, self._recipe, version=update, update=update)
