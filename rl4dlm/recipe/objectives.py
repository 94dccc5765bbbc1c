"""What supervised fine-tuning trains, chosen by `sft.objective.type`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rl4dlm.recipe.sections import Config


class Noise(Config):
    """How much of a completion is hidden: a mask rate p between two bounds."""

    min_rate: float = Field(1e-3, gt=0, le=1)
    """Smallest mask rate; keeps the weight 1/p below 1 / min_rate."""

    max_rate: float = Field(1.0, gt=0, le=1)
    """Largest mask rate; the rate is uniform between the two."""

    mask_rule: Literal["bernoulli", "count"] = "bernoulli"
    """`bernoulli`: each position independently with probability p, weight 1/p. `count`: k positions of n,
    k = round(p n + 1/2), weight n/k: the same mean with less variance."""

    weight: Literal["inverse_rate", "none"] = "inverse_rate"
    """`inverse_rate`: hidden tokens weigh 1/p (or n/k), so the loss is the negative ELBO. `none`: they weigh
    1, whatever the rate (TraceRL's and LLaDA2's SFT)."""


class RandomMaskObjective(Noise):
    """LLaDA's SFT (arXiv:2502.09992): one mask rate per row, any position of the completion, prompt visible.

    For models with full attention."""

    type: Literal["random_mask"] = "random_mask"

    cart: float | None = Field(None, gt=0, lt=1)
    """Dream's context-adaptive weights (arXiv:2508.15487) times those of `weight`: a hidden token between
    visible ones weighs more, by a geometric law with this parameter (0.3); None: off."""


class SemiARObjective(Noise):
    """Semi-autoregressive SFT: one block of each row is partly hidden, blocks before it are clean, blocks
    after it hidden whole, as when a model with full attention decodes block by block."""

    type: Literal["semi_ar"] = "semi_ar"

    block_length: int = Field(32, gt=0)
    """Tokens per block, counted from the first completion token; the sampler's `rollout.block_length`."""


class BlockObjective(Noise):
    """Block diffusion (BD3-LM, arXiv:2503.09573): every block partly hidden given the clean blocks before it,
    all blocks in one forward over `[sequence, noisy copy]`. For models with block-causal attention.

    With blocks of one token it is next-token prediction; with `half_life` it is the conversion of an
    autoregressive model of Efficient-DLM (arXiv:2512.14067)."""

    type: Literal["block"] = "block"

    block_length: int | None = Field(None, gt=0)
    """Tokens per block, counted from the first token of the prompt; None: the model's own."""

    growth: list[int] | None = Field(None, min_length=2)
    """Block lengths over equal parts of training, such as [1, 2, 4]: from next token to next block; the last
    one must be the block length. None: it never changes."""

    rate_per: Literal["block", "row"] = "block"
    """Whether every block has a mask rate of its own or a row has one for all."""

    half_life: float | None = Field(None, gt=0)
    """Position-dependent masking: at small rates later tokens of a block are hidden more often, with weights
    that double every `half_life` block lengths (0.1 is the paper's best). Needs `mask_rule: count`. None:
    all positions alike."""


class TraceObjective(Config):
    """Trace SFT (TraceRL, arXiv:2509.06949): tokens are learned in the order in which a sampler filled them,
    each given what was filled before. Rows need a `step_map`: a run's rollouts have one."""

    type: Literal["trace"] = "trace"

    shrink: int = Field(1, ge=1)
    """s: so many consecutive steps of the recorded order are learned from one state. Where the sampler
    committed one token per step this is l, the tokens predicted per state (published: Dream 16, SDAR 2)."""


class ARObjective(Config):
    """Next-token prediction with causal attention. For models whose output at a position predicts the next
    one, such as Dream; others reach it by `block` with blocks of one token."""

    type: Literal["ar"] = "ar"


ObjectiveConfig = Annotated[
    RandomMaskObjective | SemiARObjective | BlockObjective | TraceObjective | ARObjective,
    Field(discriminator="type"),
]
"""The union of all objectives, discriminated by `type`."""


def default_objective(attention: str) -> ObjectiveConfig:
    """What a model is fine-tuned with where the recipe does not say: `attention` is `full` or
    `block_causal`."""
    return BlockObjective() if attention == "block_causal" else RandomMaskObjective()
