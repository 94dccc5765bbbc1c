"""The rollouts of an update: what is asked for, and drawing them while the update before runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from rl4dlm.decoding import SamplerSpec
from rl4dlm.errors import CheckpointError, DataError, RolloutError
from rl4dlm.recipe import Recipe
from rl4dlm.reward.scores import num_not_applicable
from rl4dlm.rollout import Request, from_table, mix_block_lengths, to_table, write_parquet
from rl4dlm.rollout.groups import group_rollouts, make_requests
from rl4dlm.trainers.base import Trainer
from rl4dlm.types import Prompt, Rollout, RolloutGroup, Scores, flatten

Generate = Callable[[Sequence[Request], SamplerSpec, int], list[Rollout]]
"""Samples requests, in their order, with the weights of a version."""

STALENESS = {"sync": 0, "one_step_off": 1}
"""By `cluster.schedule`: how many updates older than the weights that learn from it a rollout may be."""


@dataclass(frozen=True)
class Drawn:
    """The rollouts of an update."""

    groups: list[RolloutGroup]
    version: int
    """The update whose weights drew them."""
    seconds: float
    """Wall time of sampling; 0 for rollouts that were read from a checkpoint."""


def requests_of(
    recipe: Recipe, trainer: Trainer, prompts: Sequence[Prompt], update: int
) -> tuple[list[Request], SamplerSpec]:
    """What is sampled for an update (from 1), and how: a function of the recipe alone."""
    rollout, seed = recipe.rollout, recipe.run.seed
    requests = make_requests(prompts, rollout.num_generations, seed, "rollout", update)
    requests = mix_block_lengths(requests, rollout.block_lengths, seed, "block_length", update)
    record = rollout.record_predictions or trainer.needs_predictions
    spec = replace(SamplerSpec.from_config(rollout), record_predictions=record)
    enlarged = recipe.algorithm.rollout_block_length(update)
    return requests, spec if enlarged is None else replace(spec, block_length=enlarged)


def draw(
    recipe: Recipe,
    trainer: Trainer,
    prompts: Sequence[Prompt],
    generate: Generate,
    *,
    update: int,
    version: int,
) -> Drawn:
    """Sample the rollouts of an update with the weights of a version."""
    began = time.monotonic()
    requests, spec = requests_of(recipe, trainer, prompts, update)
    groups = group_rollouts(prompts, generate(requests, spec, version))
    return Drawn(groups, version, time.monotonic() - began)


def require_fresh(drawn: Drawn, version: int, schedule: str) -> None:
    """Rollouts may be as old as the schedule allows, and no older.

    Raises:
        RolloutError: some were drawn by other weights.
    """
    bound = STALENESS[schedule]
    for rollout in flatten(drawn.groups):
        if not 0 <= version - rollout.policy_version <= bound:
            raise RolloutError(
                f"prompt uid {rollout.prompt_uid}, sample {rollout.sample}: drawn by the weights of update "
                f"{rollout.policy_version}, and cluster.schedule = {schedule} lets those of update {version} "
                f"learn from rollouts that are {bound} older at most.\n"
                "Fix: with rollout.engine, see to it that the engine samples with the weights it was given."
            )


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


def save_drawn(drawn: Drawn, update: int, path: Path) -> None:
    """Keep the rollouts of an update with the checkpoint before it.

    Raises:
        StorageError: the disk refused.
    """
    write_parquet(to_table(drawn.groups, None, update=update), path)


def load_drawn(path: Path, prompts: Sequence[Prompt]) -> Drawn:
    """The rollouts that `save_drawn` wrote, for the prompts that they were drawn for.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        rollouts = flatten(from_table(pq.read_table(path))[0])
    except (OSError, ValueError, DataError) as error:  # Arrow's errors are ValueErrors
        raise CheckpointError(
            f"{path}: cannot be read: {str(error).splitlines()[0]}\n"
            "Fix: delete the file, then the next rollouts are drawn by the checkpoint's weights; or go on "
            "from an earlier checkpoint with --resume step=N."
        ) from error
    return Drawn(group_rollouts(prompts, rollouts), rollouts[0].policy_version, 0.0)


def rollout_metrics(
    groups: list[RolloutGroup], scores: Scores, correct: np.ndarray | None, rollout_s: float
) -> dict[str, float]:
    """What the rollouts of one update say about the policy and the sampler.

    Args:
        groups: what was drawn.
        scores: their rewards.
        correct: bool `[batch]`; None where correctness is not defined.
        rollout_s: seconds that drawing them took; 0: not known.
    """
    rollouts: list[Rollout] = flatten(groups)
    lengths = np.array([rollout.completion_len for rollout in rollouts])
    canvas = np.array([len(rollout.completion_ids) for rollout in rollouts])
    forwards = np.array([rollout.num_forwards for rollout in rollouts])
    ended = np.array([rollout.completion_len < len(rollout.completion_ids) for rollout in rollouts])
    metrics = {
        "completions/mean_length": float(lengths.mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": float(1 - ended.mean()),
        "diffusion/nfe_per_sample": float(forwards.mean()),
        "diffusion/tokens_per_forward": float(lengths.sum() / forwards.sum()),
        "reward/errors": float(sum(scores.errors.values())),
        "reward/not_applicable": float(num_not_applicable(scores)),
    }
    if correct is not None:
        metrics["accuracy"] = float(correct.mean())
    if rollout_s > 0:
        metrics["rollout/tokens_per_s"] = float(canvas.sum() / rollout_s)
    for name, values in scores.components.items():
        known = values[np.isfinite(values)]
        if len(known):
            metrics[f"rewards/{name}/mean"] = float(known.mean())
            metrics[f"rewards/{name}/std"] = float(known.std())
    return metrics | {f"rewards/{name}": value for name, value in scores.logged.items()}
