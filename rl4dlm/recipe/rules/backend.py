"""What one process can do: the rules of `cluster.backend: local`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rl4dlm.recipe.rules.base import Finding, rule

if TYPE_CHECKING:
    from rl4dlm.recipe import AnyRecipe


@rule
def one_process_does_one_thing_at_a_time(recipe: AnyRecipe) -> Iterator[Finding]:
    """Everything that asks for a second process or device, with one line that sets it right."""
    cluster = recipe.cluster
    if cluster.backend != "local":
        return
    wanted: dict[str, tuple[object, object]] = {
        "cluster.num_trainers": (cluster.num_trainers, 1),
        "cluster.num_rollout_workers": (cluster.num_rollout_workers, 1),
        "cluster.num_reward_workers": (cluster.num_reward_workers, 1),
        "cluster.schedule": (cluster.schedule, "sync"),
        "cluster.placement": (cluster.placement, "colocated"),
        "cluster.address": (cluster.address, None),
        "cluster.trainer_resource": (cluster.trainer_resource, None),
        "cluster.rollout_resource": (cluster.rollout_resource, None),
        "trainer.zero_stage": (recipe.trainer.zero_stage, 0),
    }
    if recipe.reward is not None and cluster.gpus_per_trainer and not cluster.gpus_per_rollout_worker:
        wanted["cluster.gpus_per_trainer"] = (cluster.gpus_per_trainer, 0.5)
        wanted["cluster.gpus_per_rollout_worker"] = (0, 0.5)
    elif cluster.gpus_per_rollout_worker and not cluster.gpus_per_trainer:
        wanted["cluster.gpus_per_trainer"] = (0, 0.5)
        wanted["cluster.gpus_per_rollout_worker"] = (cluster.gpus_per_rollout_worker, 0.5)
    wrong = {key: pair for key, pair in wanted.items() if pair[0] != pair[1]}
    if wrong:
        has = ", ".join(f"{key} = {value}" for key, (value, _) in wrong.items())
        right = " ".join(f"{key}={'null' if fit is None else fit}" for key, (_, fit) in wrong.items())
        yield (
            next(iter(wrong)),
            f"cluster.backend = local is one process on one device, and {has}",
            f"set {right}, or cluster.backend=ray",
        )
