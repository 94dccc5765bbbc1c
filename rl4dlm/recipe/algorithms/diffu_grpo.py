"""Settings of diffu-GRPO (d1, arXiv:2504.12216)."""

from __future__ import annotations

from typing import Literal

from rl4dlm.recipe.algorithms.base import MaskedPrompt, Referenced, TokenLevel, defaults


@defaults(epsilon=0.5, beta=0.04, kl_estimator="k3")
class DiffuGRPOConfig(TokenLevel, Referenced, MaskedPrompt):
    """diffu-GRPO (d1, arXiv:2504.12216): one-step mean-field log-probabilities with a randomly masked
    prompt."""

    type: Literal["diffu_grpo"] = "diffu_grpo"
