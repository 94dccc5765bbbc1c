"""What every run does alike: bring up, recover, save, finish. What a turn of the loop is, the loops say."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rl4dlm.errors import UpdateError
from rl4dlm.learner.protocols import Policy, RankDied, Reserve, Sampler, Say, ScoringWorkers, Workers
from rl4dlm.recipe import AnyRecipe
from rl4dlm.recipe.sections import RewardConfig
from rl4dlm.run.folder import Checkpoint, RunFolder
from rl4dlm.run.interruption import Interruption
from rl4dlm.run.preflight import Checks, starting_model
from rl4dlm.run.reporter import Reporter, places
from rl4dlm.run.resume_command import told_how_to_resume
from rl4dlm.tracking import Tracker


def open_workers(recipe: AnyRecipe, say: Say) -> AbstractContextManager[Reserve]:
    """Where the recipe's work is done: a Ray cluster, or this process. Ray is imported only where it is
    asked for."""
    if recipe.cluster.backend == "local":
        from rl4dlm.learner.local import this_process

        return this_process(recipe)
    from rl4dlm.workers.cluster import ray_cluster

    return ray_cluster(recipe, say)


@contextmanager
def sampling(recipe: AnyRecipe, model_path: str, say: Say) -> Iterator[tuple[Sampler, Workers]]:
    """Samplers that hold a model folder's weights as version 0, without a policy."""
    with open_workers(recipe, say) as reserve, reserve(say) as workers:
        with closing(workers.sampler(model_path)) as sampler:
            sampler.wait_ready()
            sampler.accept_loaded(0)
            yield sampler, workers


@dataclass
class Session:
    """A run under way: its folder, its reporter, and its policy at some update."""

    recipe: AnyRecipe
    folder: RunFolder
    reporter: Reporter
    workers: Workers
    policy: Policy
    model_path: str
    """Folder or hub name of the weights that training starts from."""
    supervised: bool
    checkpoint: Checkpoint | None
    """The one that the run stands on: that of the resume, later the newest saved; None: the beginning."""
    rewinds: bool
    """What lies after `checkpoint` on the disk is of another leg, and goes when this one has moved on."""
    stack: ExitStack
    interruption: Interruption
    update: int = 0
    """Updates done; also the version of the weights."""

    @property
    def tracker(self) -> Tracker:
        return self.reporter.tracker

    @property
    def turn(self) -> str:
        """What messages call an update."""
        return "step" if self.supervised else "update"

    def open_sampling(self, reward: RewardConfig) -> tuple[Sampler, ScoringWorkers]:
        """Who samples and scores until the session ends; the model is loading."""
        scorer = self.stack.enter_context(closing(self.workers.scorer(reward)))
        return self.stack.enter_context(closing(self.workers.sampler(self.model_path))), scorer

    def restore(self) -> None:
        """Bring the policy to where the run stands."""
        if self.checkpoint is not None:
            self.policy.restore(self.checkpoint.folder)
        self.update = self.checkpoint.update if self.checkpoint else 0

    def advance(self, update: int) -> None:
        """The weights are those of `update` now.

        Only here is forgotten what a resume makes obsolete: until its first update is done it may fail, and
        then nothing is lost.
        """
        self.settle()
        self.update = update

    def settle(self) -> None:
        """Forget checkpoints, rollouts and rows of an earlier leg, once."""
        if self.rewinds:
            self.folder.drop_after(self.update)
            self.tracker.rewind()
        self.rewinds = False

    def run(self, turn: Callable[[int], None], recovered: Callable[[], None]) -> None:
        """All remaining updates. Ranks that die are started again at the last checkpoint, once per update.

        Args:
            turn: does an update, counted from 1.
            recovered: called where the policy is back at a checkpoint.

        Raises:
            UpdateError: they died twice at one update.
        """
        died_at = -1
        while self.update < self.recipe.trainer.max_steps:
            try:
                with self.interruption.turn():
                    turn(self.update + 1)
            except RankDied as error:
                self.interruption.leave()  # whoever ends the run may have ended its ranks, too
                if died_at == self.update:
                    raise UpdateError(
                        f"{self.turn} {self.update + 1}: the trainer group died twice: {error}.\n"
                        "Fix: look for memory pressure (trainer.micro_batch_tokens, zero_stage) or a "
                        "failing node; then --resume."
                    ) from error
                died_at = self.update
                self._recover(str(error))
                recovered()

    def _recover(self, reason: str) -> None:
        """New ranks, at the last checkpoint; what was logged after it is forgotten.

        Raises:
            UpdateError: one died again on the way.
        """
        self.tracker.warn(f"{self.turn} {self.update + 1}: {reason}; the trainer group is rebuilt")
        try:
            self.policy.start()
            self.policy.load(self.model_path, self.supervised)
            self.restore()
        except RankDied as again:
            raise UpdateError(
                f"{self.turn} {self.update + 1}: {reason}; while the trainer group was rebuilt, {again}.\n"
                "Fix: look for memory pressure or a failing node (docs/cluster.md); then --resume."
            ) from again
        self.reporter.reopen(self.update)
        self.rewinds = True

    def evaluates_at(self, update: int) -> bool:
        """Whether an evaluation follows an update."""
        every = self.recipe.eval.steps
        return update == self.recipe.trainer.max_steps or bool(every and update % every == 0)

    def saves_at(self, update: int) -> bool:
        """Whether a checkpoint follows an update."""
        trainer = self.recipe.trainer
        due = update == trainer.max_steps or update % trainer.save_steps == 0
        return due or self.interruption.asked

    def save(self, more: Callable[[Path], None] = lambda folder: None, good: int | None = None) -> None:
        """Write a checkpoint of this update.

        Args:
            more: writes what the loop keeps besides the policy.
            good: see `RunFolder.save_checkpoint`.
        """
        self.reporter.say(f"saving {self.turn} {self.update}")

        def write(folder: Path) -> None:
            self.policy.save(folder)
            more(folder)

        state = {"version": self.update, "model": self.model_path, "seed": self.recipe.run.seed}
        keep = self.recipe.trainer.save_total_limit
        self.folder.save_checkpoint(self.update, write, state, keep, good=good)
        self.checkpoint = self.folder.find(self.update)
        self.tracker.end_phase()

    def finish(self, target: Path) -> None:
        """Export what was trained, show what the run did, and let the ranks leave."""
        self.reporter.say(f"exporting the {target.name}")
        if target.exists():
            shutil.rmtree(target)  # of an earlier, shorter leg of this run
        self.policy.export(target)
        self.tracker.finish(self.tracker.summary(places(self.folder)))
        self.policy.close()


@contextmanager
def open_session(
    recipe: AnyRecipe,
    checks: Checks,
    notes: Sequence[str],
    *,
    supervised: bool,
    resume: bool,
    step: int | None,
) -> Iterator[Session]:
    """Bring a run up as far as its ranks; all of it is gone when the block ends, however far it came.

    Args:
        checks: of the recipe.
        notes: what the run's events begin with.
        supervised: the policy takes supervised steps alone.
        resume: continue the run that lies in the recipe's folder from its newest checkpoint, or from `step`.
    """
    folder = RunFolder.of(recipe)
    with ExitStack() as stack:
        stack.enter_context(told_how_to_resume(recipe, folder))
        interruption = stack.enter_context(Interruption(recipe.run.save_on_signal).watched())
        stack.enter_context(folder.owned())
        checkpoint = folder.starting_point(recipe, resume=resume, step=step)
        if checkpoint is not None:
            checkpoint.verify()
        reserve = stack.enter_context(open_workers(recipe, print))
        interruption.take_over()  # Ray has handlers of its own
        folder.reopen(recipe) if resume else folder.create(recipe)
        stands_at = checkpoint.update if checkpoint else 0
        reporter = stack.enter_context(Reporter(recipe, folder, stands_at if resume else None))
        workers = stack.enter_context(reserve(reporter.say))
        for line in (*notes, *workers.describe()):
            reporter.tracker.note(line)
        for line in checks.warnings:
            reporter.tracker.warn(line)
        model_path = starting_model(recipe, folder, checks)
        policy = workers.policy()
        stack.callback(policy.kill)
        reporter.say("starting trainer ranks")
        policy.start()
        yield Session(
            recipe=recipe,
            folder=folder,
            reporter=reporter,
            workers=workers,
            policy=policy,
            model_path=model_path,
            supervised=supervised,
            checkpoint=checkpoint,
            rewinds=resume,
            stack=stack,
            interruption=interruption,
        )
