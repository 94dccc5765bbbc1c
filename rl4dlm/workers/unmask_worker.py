"""A rank that trains the network that decides what to unmask.

The language model is frozen, so only rollout workers hold it; what a rank has, publishes and saves is the
network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray

from rl4dlm.learner.update import RankUpdate
from rl4dlm.models import UnmaskNet, UnmaskNetConfig, policy_net, save_policy
from rl4dlm.recipe import AnyRecipe, Recipe
from rl4dlm.recipe.algorithms import UnmaskingPolicyConfig
from rl4dlm.trainers import make_trainer
from rl4dlm.trainers.base import PLAIN_SPEC
from rl4dlm.trainers.unmasking_policy import decision_gap
from rl4dlm.types import Denoiser, Rollout
from rl4dlm.workers import engine as ds
from rl4dlm.workers.policy_worker import _PolicyWorker


def freezes_model(recipe: AnyRecipe) -> bool:
    """Whether the recipe trains the policy of its sampler instead of the language model."""
    return isinstance(recipe, Recipe) and recipe.algorithm.freezes_model


def starting_net(recipe: AnyRecipe) -> UnmaskNetConfig:
    """The network that `rollout.policy = new` stands for."""
    algorithm = getattr(recipe, "algorithm", None)
    if not isinstance(algorithm, UnmaskingPolicyConfig):
        return UnmaskNetConfig()
    return UnmaskNetConfig(tau=algorithm.tau, initial_bias=algorithm.initial_bias)


class _UnmaskWorker(_PolicyWorker):
    """As `_PolicyWorker`, for the network. A warm start trains the language model, as ever."""

    _engine: Any
    _net: UnmaskNet | None = None

    def load(self, model_path: str, supervised: bool = False, weight_decay: float | None = None) -> int:
        """Build the engine around the network; returns the number of its parameters."""
        self._net = None
        if supervised:
            return super().load(model_path, supervised, weight_decay)
        recipe = self._recipe
        assert isinstance(recipe, Recipe)
        if self._engine is not None:
            self._engine.destroy()
        net = policy_net(recipe.rollout.policy, starting_net(recipe), recipe.run.seed)
        self._net = net.to(self._device)
        # float32 whatever the language model is held in: it is small, and its log-probabilities are compared.
        self._engine = ds.make_engine(self._net, recipe.trainer.model_copy(update={"bf16": False}))
        self._denoiser = Denoiser(self._engine, PLAIN_SPEC, self._device)
        self._update = RankUpdate(
            engine=self._engine,
            denoiser=self._denoiser,
            trainer=make_trainer(recipe, PLAIN_SPEC),
            rank=self._rank,
            world_size=self._world_size,
            token_budget=recipe.trainer.micro_batch_tokens,
            num_minibatches=recipe.trainer.num_minibatches,
        )
        return sum(parameter.numel() for parameter in self._net.parameters())

    def replay_gap(
        self, rollouts: list[Rollout], temperature: float, block_length: int | None = None
    ) -> tuple[float, int]:
        """Sum over recorded steps of |log-prob of the decisions now - at that step|, and their number."""
        self._engine.eval()
        sharpness = self._recipe.rollout.policy_sharpness
        return decision_gap(self._engine, rollouts, sharpness=sharpness, device=self._device)

    def export(self, folder: str) -> None:
        """Write the network's folder, or after a warm start the language model's; rank 0 writes.

        Raises:
            StorageError: the disk refused.
        """
        if self._net is None:
            super().export(folder)
        elif self._rank == 0:
            save_policy(self._net, Path(folder))


UnmaskWorker: Any = ray.remote(_UnmaskWorker)
