"""Settings and facts of Group Diffusion Policy Optimization (GDPO, arXiv:2510.08554)."""

from __future__ import annotations

from typing import Literal

from rl4dlm.recipe.algorithms.base import ElboEstimated, SequenceLevel, defaults
from rl4dlm.recipe.sections import RolloutConfig


@defaults(epsilon=0.5, completion_scope="canvas")
class GDPOConfig(SequenceLevel, ElboEstimated):
    """Group Diffusion Policy Optimization (GDPO, arXiv:2510.08554): sequence-level ratios of ELBO estimates.
    The paper's `ratio_level` is `sequence`, the released code's `sequence_norm`; its code counts the whole
    canvas as the action."""

    type: Literal["gdpo"] = "gdpo"

    def states_per_completion(self, rollout: RolloutConfig) -> float:
        """N * K."""
        return float(self.num_states)
