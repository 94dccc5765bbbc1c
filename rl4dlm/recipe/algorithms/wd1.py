"""Settings of wd1 (arXiv:2507.08838)."""

from __future__ import annotations

from typing import Literal

from rl4dlm.recipe.algorithms.base import MaskedPrompt, Softmaxed


class WD1Config(Softmaxed, MaskedPrompt):
    """wd1 (arXiv:2507.08838): a weighted log-likelihood without ratios, on diffu-GRPO's one-step
    estimate."""

    type: Literal["wd1"] = "wd1"
