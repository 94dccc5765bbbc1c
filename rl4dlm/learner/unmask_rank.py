"""One rank of the network that decides what to unmask.

The language model is frozen, so only samplers hold it; what a rank has, publishes and saves is the network.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

from rl4dlm.decoding import UnmaskPolicy
from rl4dlm.learner.engine import Networks
from rl4dlm.learner.rank import PolicyRank
from rl4dlm.models import UnmaskNet, UnmaskNetConfig, policy_net, save_policy
from rl4dlm.recipe import AnyRecipe, Recipe
from rl4dlm.recipe.algorithms import UnmaskingPolicyConfig
from rl4dlm.trainers import method_of
from rl4dlm.trainers.method import PLAIN_SPEC
from rl4dlm.trainers.unmasking_policy import decision_gap
from rl4dlm.types import Denoiser, Rollout


def freezes_model(recipe: AnyRecipe) -> bool:
    """Whether the recipe trains the policy of its sampler instead of the language model."""
    return isinstance(recipe, Recipe) and recipe.algorithm.freezes_model


def starting_net(recipe: AnyRecipe) -> UnmaskNetConfig:
    """The network that `rollout.policy = new` stands for."""
    algorithm = getattr(recipe, "algorithm", None)
    if not isinstance(algorithm, UnmaskingPolicyConfig):
        return UnmaskNetConfig()
    return UnmaskNetConfig(tau=algorithm.tau, initial_bias=algorithm.initial_bias)


class UnmaskRank(PolicyRank):
    """As `PolicyRank`, for the network. A warm start trains the language model, as ever."""

    _net: UnmaskNet | None = None

    def load(self, model_path: str, supervised: bool = False, weight_decay: float | None = None) -> int:
        """Build the engine around the network; returns the number of its parameters."""
        self._net = None
        if supervised:
            return super().load(model_path, supervised, weight_decay)
        recipe = self._recipe
        assert isinstance(recipe, Recipe)
        self._release()
        self._net = policy_net(recipe.rollout.policy, starting_net(recipe), recipe.run.seed)
        self._net.to(self._networks.device)
        # float32 whatever the language model is held in: it is small, and its log-probabilities are compared.
        full = recipe.trainer.model_copy(update={"bf16": False})
        self._engine = self._networks.train(self._net, full)
        self._denoiser = Denoiser(self._engine, PLAIN_SPEC, self._networks.device)
        method = method_of(recipe, PLAIN_SPEC)
        self._update = self._rank_update(self._engine, self._denoiser, method)
        return sum(parameter.numel() for parameter in self._net.parameters())

    def replay_gap(
        self, rollouts: list[Rollout], temperature: float, block_length: int | None = None
    ) -> tuple[float, int]:
        """Sum over recorded steps of |log-prob of the decisions now - at that step|, and their number."""
        self.engine.eval()
        policy = cast(UnmaskPolicy, self.engine)  # an engine is called like its network
        sharpness = self._recipe.rollout.policy_sharpness
        return decision_gap(policy, rollouts, sharpness=sharpness, device=self._networks.device)

    def export(self, folder: Path) -> None:
        """Write the network's folder, or after a warm start the language model's; rank 0 writes.

        Raises:
            StorageError: the disk refused.
        """
        if self._net is None:
            super().export(folder)
        elif self._networks.rank == 0:
            save_policy(self._net, folder)


def make_rank(recipe: AnyRecipe, networks: Networks) -> PolicyRank:
    """A rank of whatever the recipe trains."""
    return (UnmaskRank if freezes_model(recipe) else PolicyRank)(recipe, networks)
