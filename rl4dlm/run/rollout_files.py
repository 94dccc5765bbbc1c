"""Rollouts on the disk: those of an update, and those that a checkpoint keeps for the next one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from rl4dlm.errors import CheckpointError, DataError, RolloutError
from rl4dlm.recipe import Recipe
from rl4dlm.rollout import from_table, to_table, write_parquet
from rl4dlm.rollout.groups import group_rollouts
from rl4dlm.run.folder import RunFolder, storage
from rl4dlm.types import Prompt, RolloutGroup, Scores, flatten

STALENESS = {"sync": 0, "one_step_off": 1}
"""By `cluster.schedule`: how many updates older than the weights that learn from it a rollout may be."""


def write_rollouts(
    folder: RunFolder,
    recipe: Recipe,
    groups: Sequence[RolloutGroup],
    scores: Scores,
    step_rewards: Sequence[np.ndarray] | None,
    update: int,
) -> None:
    """Keep the rollouts of an update where `tracking.rollouts_every` wants them.

    Args:
        step_rewards: rewards of partial decodes at their denoising steps, float32 `[num_steps]` per rollout.

    Raises:
        StorageError: the disk refused.
    """
    every, rollout = recipe.tracking.rollouts_every, recipe.rollout
    if not every or update % every:
        return
    table = to_table(
        groups,
        scores,
        update=update,
        record_states=rollout.record_states,
        record_predictions=rollout.record_predictions,
        step_rewards=step_rewards,
    )
    with storage(f"{folder.rollouts} could not be written"):
        folder.rollouts.mkdir(exist_ok=True)
        write_parquet(table, folder.rollouts / f"update_{update:06d}.parquet")


@dataclass(frozen=True)
class Drawn:
    """The rollouts of an update."""

    groups: list[RolloutGroup]
    version: int
    """The update whose weights drew them."""
    seconds: float
    """Wall time of sampling; 0 for rollouts that were read from a checkpoint."""


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
            "Fix: delete the file, then the next rollouts are drawn by the checkpoint's weights; or resume "
            "from an earlier checkpoint with --resume step=N."
        ) from error
    return Drawn(group_rollouts(prompts, rollouts), rollouts[0].policy_version, 0.0)


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
