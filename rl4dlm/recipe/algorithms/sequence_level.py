"""Methods with one likelihood per completion: GDPO, ESPO, SPG, wd1, wd1++."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rl4dlm.recipe.algorithms.base import Clipped, Method, Referenced
from rl4dlm.recipe.sections import RolloutConfig


class GDPOConfig(Clipped, Referenced):
    """Group Diffusion Policy Optimization (GDPO, arXiv:2510.08554): sequence-level ratios of ELBO
    estimates."""

    type: Literal["gdpo"] = "gdpo"

    estimator: Literal["sdmc", "double_mc", "stratified"] = "sdmc"
    """How the ELBO is estimated. `sdmc`: Gauss-Legendre nodes over the mask rate. `double_mc`: mask rates
    drawn uniformly. `stratified`: exact counts stratified over 1..L with weight L/k, unbiased."""

    num_nodes: int = Field(3, ge=1, le=64)
    """N: quadrature nodes, or draws of the rate or count."""

    num_masks: int = Field(1, ge=1)
    """K: masks per node. Forwards per completion and inner pass: N * K."""

    count_rule: Literal["round_half", "round", "floor_release", "bernoulli"] = "round_half"
    """Masked positions at rate t of L: `round_half` round(tL + 1/2) with weight L/count, `round` round(tL)
    with weight L/count, `floor_release` floor(tL) with weight 1/t (the released code; biased), `bernoulli`
    each position independently with weight 1/t. Not used by `stratified`."""

    epsilon: float = Field(0.5, gt=0)
    """Clip below: ratios under 1 - epsilon earn no further gain."""

    ratio_level: Literal["sequence_norm", "sequence"] = "sequence_norm"
    """`sequence_norm`: exp of the ELBO difference per token (released code). `sequence`: exp of the
    difference (paper), which leaves the clip range almost at once at hundreds of tokens."""

    completion_scope: Literal["canvas", "until_eos"] = "canvas"
    """Positions that count as the action: the whole canvas without the filler after an early stop (released
    code), or up to and including the first stop id."""

    def states_per_completion(self, rollout: RolloutConfig) -> float:
        """N * K."""
        return float(self.num_nodes * self.num_masks)


class ESPOConfig(Clipped, Referenced):
    """ELBO-based Sequence-level Policy Optimization (ESPO, arXiv:2512.03759): sequence-level ratios of ELBO
    estimates on pairs of complementary masks."""

    type: Literal["espo"] = "espo"

    num_masks: int = Field(2, ge=1)
    """n_mc: masks drawn per completion and pass; each is evaluated with its complement, so forwards are twice
    as many."""

    epsilon: float = Field(4e-4, ge=0)
    """Clip below: ratios under 1 - epsilon earn no further gain. Ratios are of log-likelihoods per token, so
    even the published 4e-4 is reached within a few passes, and 0.2 hardly ever."""

    ratio_level: Literal["sequence_norm", "sequence"] = "sequence_norm"
    """`sequence_norm`: exp of the ELBO difference per token. `sequence`: exp of the difference."""

    beta: float = Field(1e-3, ge=0)
    """Weight of the KL to the reference policy (the weights that training starts from), taken on the ELBO
    difference of whole completions and divided by their length; 0: no reference is kept. Published: 1e-3
    (mathematics), 3e-3 (Countdown), 1e-2 (Sudoku, code)."""

    kl_estimator: Literal["k1", "k2", "k3"] = "k2"
    """k1 = d with a score-function correction, k2 = d^2/2, k3 = exp(-d) + d - 1, on differences of whole
    sequences. The authors found k1 to collapse and k3 to spike."""

    baseline: Literal["mean", "loo"] = "loo"
    """What a reward is compared with: the mean of the group's others (leave one out, released code), or the
    group's mean (paper), which makes advantages (G-1)/G times as large."""

    completion_scope: Literal["canvas", "until_eos"] = "canvas"
    """Positions that count as the action: the whole canvas without the filler after an early stop, or up to
    and including the first stop id."""

    def states_per_completion(self, rollout: RolloutConfig) -> float:
        """Two per mask."""
        return 2.0 * self.num_masks


class SPGConfig(Method):
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


class Softmaxed(Method):
    """Methods that weigh completions by a softmax of their advantages."""

    psi: float = Field(1.0, gt=0)
    """Inverse temperature of the weights softmax(+-psi A) within a group; large values compare the best with
    the worst alone."""


class WD1Config(Softmaxed):
    """wd1 (arXiv:2507.08838): a weighted log-likelihood without ratios, on diffu-GRPO's one-step
    estimate."""

    type: Literal["wd1"] = "wd1"

    p_mask_prompt: float = Field(0.15, ge=0, lt=1)
    """Probability that a prompt token is hidden; 0: prompts are never masked."""


class WD1PlusConfig(Softmaxed):
    """wd1++ (arXiv:2507.08838): wd1's weights on the predictions that the sampler made at visited states."""

    type: Literal["wd1pp"] = "wd1pp"

    sample_train_steps: int = Field(8, ge=1)
    """K: denoising steps that are drawn of every completion; it may have fewer."""

    completion_scope: Literal["canvas", "until_eos"] = "canvas"
    """Which predictions are scored: those of every hidden position that the finished completion filled, or
    only of those up to and including its first stop id."""

    def states_per_completion(self, rollout: RolloutConfig) -> float:
        """K, or every step."""
        return float(min(self.sample_train_steps, rollout.diffusion_steps))

    @property
    def needs_predictions(self) -> bool:
        """They are what is learnt."""
        return True
