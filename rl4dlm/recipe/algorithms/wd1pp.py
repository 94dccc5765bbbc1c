"""Settings and facts of wd1++ (arXiv:2507.08838)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rl4dlm.recipe.algorithms.base import Softmaxed, defaults
from rl4dlm.recipe.sections import RolloutConfig


@defaults(completion_scope="canvas")
class WD1PlusConfig(Softmaxed):
    """wd1++ (arXiv:2507.08838): wd1's weights on the predictions that the sampler made at visited states.
    Scored are the predictions of every hidden position that the finished completion filled (`canvas`), or
    only of those up to and including its first stop id."""

    type: Literal["wd1pp"] = "wd1pp"

    sample_train_steps: int = Field(8, ge=1)
    """K: denoising steps that are drawn of every completion; it may have fewer."""

    def states_per_completion(self, rollout: RolloutConfig) -> float:
        """K, or every step."""
        return float(min(self.sample_train_steps, rollout.diffusion_steps))

    @property
    def needs_predictions(self) -> bool:
        """They are what is learnt."""
        return True
