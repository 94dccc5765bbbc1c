"""Settings and facts of Masked Diffusion Policy Optimization (MDPO, arXiv:2508.13148)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rl4dlm.recipe.algorithms.base import Corrected, Referenced, defaults
from rl4dlm.recipe.sections import RolloutConfig


@defaults(beta=0.02)
class MDPOConfig(Corrected, Referenced):
    """Masked Diffusion Policy Optimization (MDPO, arXiv:2508.13148): every denoising step is rewarded by
    verifying the whole answer it predicts."""

    type: Literal["mdpo"] = "mdpo"

    adv_kind: Literal["reward", "mean_future_incl", "diff", "diff_plus_future"] = "diff_plus_future"
    """What a step is worth, before it is compared with the group's other completions at the same step:
    `diff_plus_future` its improvement plus the mean reward of later steps, `diff` the improvement alone,
    `mean_future_incl` the mean reward from it on, `reward` its own reward."""

    sample_train_steps: int = Field(8, ge=1)
    """K: steps of each prompt group that are trained on, those where the completions differ most. One model
    input per completion and chosen step."""

    reward_stride: int = Field(1, ge=1)
    """Verify every n-th step and the last one; the others are not trained on. 1 verifies all."""

    lambda_mode: Literal["inv_mask_frac", "none"] = "inv_mask_frac"
    """`inv_mask_frac`: a step's policy term is multiplied by canvas length / masked positions, as in the
    ELBO; late steps then weigh most. `none`: all steps alike."""

    token_weights: Literal["confidence", "uniform"] = "confidence"
    """Weight of a predicted token: the sampler's confidence in it (published), or 1."""

    train_beyond_block: bool = True
    """Train on predictions beyond the active block, too: the action is the whole prediction."""

    completion_scope: Literal["canvas"] = "canvas"
    """The action is every masked position of a visited state; there is nothing to choose."""

    scale_rewards: Literal["none", "group", "group_population"] = "group"
    """Divide a step's advantages by the group's sample standard deviation at that step (`group`), by the
    population's (`group_population`), or not (`none`)."""

    @property
    def scores_steps(self) -> bool:
        """Every step is worth what the answer that it predicts is worth."""
        return True

    @property
    def learns_from_every_row(self) -> bool:
        """Steps have advantages of their own; a row without any step that counts has no states."""
        return True

    @property
    def weighs_by_confidence(self) -> bool:
        """Predictions are."""
        return self.token_weights == "confidence"

    @property
    def needs_predictions(self) -> bool:
        """They are its actions."""
        return True

    def states_per_completion(self, rollout: RolloutConfig) -> float:
        """K, or all steps that are verified where these are fewer."""
        return float(
            min(self.sample_train_steps, -(-(rollout.diffusion_steps - 1) // self.reward_stride) + 1)
        )
