"""Settings and facts of Sandwiched Policy Gradient (SPG, arXiv:2510.09541)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from rl4dlm.recipe.algorithms.base import GroupMethod
from rl4dlm.recipe.findings import Finding
from rl4dlm.recipe.sections import RolloutConfig

if TYPE_CHECKING:
    from rl4dlm.recipe.root import Recipe


class SPGConfig(GroupMethod):
    """Sandwiched Policy Gradient (SPG, arXiv:2510.09541): a lower bound of the likelihood for good
    completions, a mixture with an upper bound for bad ones; no ratio, no KL."""

    type: Literal["spg"] = "spg"

    num_masks: int = Field(2, ge=1)
    """n_t: states per completion and pass."""

    mask_scheme: Literal["block_random", "random"] = "block_random"
    """`block_random`: a random number of tokens of one random block of the sampler is hidden, and all later
    blocks. `random`: a random number of tokens of the whole completion (of each block, where the model is
    block-causal)."""

    restrict_to_block: bool = False
    """Score only the chosen block of `block_random`; the released code scores everything that is hidden."""

    eubo_beta: float = Field(1.5, ge=1)
    """b of the upper bound; larger is higher. Published: 1.5 (GSM8K, MATH, Countdown), 1.0 (Sudoku)."""

    omega: float = Field(0.5, ge=0, le=1)
    """Share of the upper bound in what bad completions are lowered by; 0: the lower bound for all."""

    p_mask_prompt: float = Field(0.15, ge=0, lt=1)
    """Probability that a prompt token is hidden, and under `block_random` a token of an earlier block."""

    after_eos: Literal["mask", "keep"] = "mask"
    """What the model sees after the last action: mask tokens, or what the canvas holds there."""

    def states_per_completion(self, rollout: RolloutConfig) -> float:
        """n_t."""
        return float(self.num_masks)

    def rules(self, recipe: Recipe) -> Iterator[Finding]:
        """Besides what all methods ask for: a block is chosen where scores are restricted to it."""
        yield from super().rules(recipe)
        if self.restrict_to_block and self.mask_scheme != "block_random":
            yield (
                "algorithm.restrict_to_block",
                f"algorithm.restrict_to_block is not read by algorithm.mask_scheme = {self.mask_scheme}",
                "remove it, or use mask_scheme: block_random",
            )
