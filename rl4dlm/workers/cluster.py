"""A run's workers on a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from rl4dlm.learner.protocols import Reserve, Say
from rl4dlm.recipe import AnyRecipe
from rl4dlm.recipe.sections import ClusterConfig, RewardConfig
from rl4dlm.workers.placement import Placement, ray_session, reserve
from rl4dlm.workers.policy_group import PolicyGroup
from rl4dlm.workers.reward_worker import RewardWorkers
from rl4dlm.workers.rollout_pool import RolloutPool


def cluster_needed(recipe: AnyRecipe) -> ClusterConfig:
    """The workers of a recipe; without a reward nobody samples or scores."""
    if recipe.reward is not None:
        return recipe.cluster
    return recipe.cluster.model_copy(update={"num_rollout_workers": 0, "num_reward_workers": 0})


@contextmanager
def ray_cluster(recipe: AnyRecipe, say: Say) -> Iterator[Reserve]:
    """A Ray cluster that is joined or started, and what reserves a run's workers on it.

    Raises:
        ClusterError: it does not answer, or lacks what the recipe asks for.
    """
    with ray_session(cluster_needed(recipe), say):
        yield partial(_ray_workers, recipe)


@contextmanager
def _ray_workers(recipe: AnyRecipe, say: Say) -> Iterator[RayWorkers]:
    placement = reserve(cluster_needed(recipe), say)
    try:
        yield RayWorkers(recipe, placement, say)
    finally:
        placement.remove()


class RayWorkers:
    """See `rl4dlm.learner.protocols.Workers`."""

    def __init__(self, recipe: AnyRecipe, placement: Placement, say: Say) -> None:
        self._recipe, self._placement, self._say = recipe, placement, say

    def describe(self) -> list[str]:
        return self._placement.describe()

    def policy(self) -> PolicyGroup:
        return PolicyGroup(self._recipe, self._placement.trainers, self._say)

    def sampler(self, model_path: str) -> RolloutPool:
        return RolloutPool(self._recipe, model_path, self._placement.rollouts, self._say)

    def scorer(self, reward: RewardConfig) -> RewardWorkers:
        timeout_s = self._recipe.cluster.start_timeout_s
        return RewardWorkers(reward, self._placement.rewards, self._say, start_timeout_s=timeout_s)
