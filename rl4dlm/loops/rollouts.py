"""The rollouts of an update: what is asked for, and drawing them while the update before runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from rl4dlm.data import PromptSource
from rl4dlm.decoding import SamplerSpec
from rl4dlm.recipe import Recipe
from rl4dlm.rollout import Generate, Request, mix_block_lengths
from rl4dlm.rollout.groups import group_rollouts, make_requests
from rl4dlm.run.folder import Checkpoint, CheckpointParts
from rl4dlm.run.rollout_files import STALENESS, Drawn, load_drawn, require_fresh, save_drawn
from rl4dlm.types import Prompt


def requests_of(recipe: Recipe, prompts: Sequence[Prompt], update: int) -> tuple[list[Request], SamplerSpec]:
    """What is sampled for an update (from 1), and how: a function of the recipe alone."""
    rollout, seed = recipe.rollout, recipe.run.seed
    requests = make_requests(prompts, rollout.num_generations, seed, "rollout", update)
    requests = mix_block_lengths(requests, rollout.block_lengths, seed, "block_length", update)
    record = rollout.record_predictions or recipe.algorithm.needs_predictions
    spec = replace(SamplerSpec.from_config(rollout), record_predictions=record)
    enlarged = recipe.algorithm.rollout_block_length(update)
    return requests, spec if enlarged is None else replace(spec, block_length=enlarged)


class Ahead:
    """Draws the rollouts of the next update in the background, one batch at a time."""

    def __init__(self, draw: Callable[[int, int], Drawn]) -> None:
        """
        Args:
            draw: update and version -> its rollouts; it runs in a thread of its own.
        """
        self._draw = draw
        self._thread = ThreadPoolExecutor(1, "rollouts")
        self._update = 0
        self._coming: Future[Drawn] | None = None

    def start(self, update: int, version: int) -> None:
        """Begin to draw the rollouts of an update; those of another one must have been taken."""
        assert self._coming is None
        self._update, self._coming = update, self._thread.submit(self._draw, update, version)

    def put(self, update: int, drawn: Drawn) -> None:
        """Rollouts of an update that were drawn earlier."""
        self._update, self._coming = update, Future()
        self._coming.set_result(drawn)

    def wait(self) -> Drawn | None:
        """The rollouts under way once they are there; they stay to be taken. None: nothing is under way.

        Raises:
            RolloutError: they could not be drawn.
        """
        return None if self._coming is None else self._coming.result()

    def take(self, update: int) -> Drawn | None:
        """The rollouts of an update; None where none were begun for it."""
        if self._update != update:
            self.drop()
        drawn = self.wait()
        self._coming = None
        return drawn

    def drop(self) -> None:
        """Forget what is under way, when it has ended: nobody samples then."""
        if self._coming is not None:
            self._coming.exception()
        self._coming = None

    def close(self) -> None:
        """End the thread; what it waits for must have ended or been killed."""
        self._thread.shutdown(wait=True, cancel_futures=True)


class UpdateRollouts:
    """The rollouts of a run's updates: drawn when they are wanted, or under `cluster.schedule: one_step_off`
    while the update before runs."""

    def __init__(self, recipe: Recipe, prompts: PromptSource) -> None:
        self.prompts = prompts
        """Training prompts; fewer than the data's where they are filtered."""
        self._recipe = recipe
        self._generate: Generate | None = None
        self._ahead = Ahead(self._draw) if STALENESS[recipe.cluster.schedule] else None

    def sample_with(self, generate: Generate) -> None:
        """Who samples from now on."""
        self._generate = generate

    def prompts_of(self, update: int) -> list[Prompt]:
        """The prompts of an update."""
        return self.prompts.batch(update - 1, self._recipe.rollout.prompts_per_update)

    def take(self, update: int, version: int) -> Drawn:
        """The rollouts of an update; those of the next one are begun where the schedule says so.

        Args:
            version: of the weights at hand.
        """
        drawn = None if self._ahead is None else self._ahead.take(update)
        if drawn is None:
            drawn = self._draw(update, version)
        if self._ahead is not None and update < self._recipe.trainer.max_steps:
            self._ahead.start(update + 1, version)
        require_fresh(drawn, version, self._recipe.cluster.schedule)
        return drawn

    def _draw(self, update: int, version: int) -> Drawn:
        assert self._generate is not None, "nobody samples yet"
        began, prompts = time.monotonic(), self.prompts_of(update)
        requests, spec = requests_of(self._recipe, prompts, update)
        groups = group_rollouts(prompts, self._generate(requests, spec, version))
        return Drawn(groups, version, time.monotonic() - began)

    def wait(self) -> None:
        """Return when nobody samples: the weights may then be replaced."""
        if self._ahead is not None:
            self._ahead.wait()

    def resume(self, checkpoint: Checkpoint | None) -> None:
        """Take up what was drawn ahead when a checkpoint was saved; anything else under way is forgotten."""
        if self._ahead is None:
            return
        self._ahead.drop()
        if checkpoint is not None and checkpoint.parts.rollouts.exists():
            update = checkpoint.update + 1
            self._ahead.put(update, load_drawn(checkpoint.parts.rollouts, self.prompts_of(update)))

    def save(self, update: int, folder: Path) -> None:
        """Keep with the checkpoint of an update what is drawn ahead for the next."""
        drawn = None if self._ahead is None else self._ahead.wait()
        if drawn is not None:
            save_drawn(drawn, update + 1, CheckpointParts(folder).rollouts)

    def close(self) -> None:
        """End the thread; who samples must have ended or been killed."""
        if self._ahead is not None:
            self._ahead.close()
