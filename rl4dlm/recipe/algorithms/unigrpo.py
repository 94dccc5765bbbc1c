"""Settings of UniGRPO (MMaDA, arXiv:2505.15809)."""

from __future__ import annotations

from typing import Literal

from rl4dlm.recipe.algorithms.base import Referenced, TokenLevel, defaults


@defaults(num_iterations=4, beta=0.01, kl_estimator="k3", scale_rewards="group", aggregation="seq_mean")
class UniGRPOConfig(TokenLevel, Referenced):
    """UniGRPO (MMaDA, arXiv:2505.15809): one random mask per pass, at rates that go from a random first one
    to 1 in equal steps; one pass alone has the random rate. The masked tokens stand for all."""

    type: Literal["unigrpo"] = "unigrpo"
