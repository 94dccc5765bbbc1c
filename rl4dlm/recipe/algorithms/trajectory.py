"""Methods that learn from the steps of a trajectory: TraceRL, MDPO, a policy that unmasks."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rl4dlm.recipe.algorithms.base import Clipped, Corrected, Referenced, TokenLevel
from rl4dlm.recipe.sections import Config, RolloutConfig


class ValueConfig(Config):
    """The diffusion value model of TraceRL: one value per token of a state, trained along the trace."""

    learning_rate: float = Field(5e-6, gt=0)
    """Peak rate of its own AdamW; the schedule is the policy's."""

    gamma: float = Field(1.0, gt=0, le=1)
    """Discount per denoising step; 0.99 for process rewards."""

    lam: float = Field(1.0, ge=0, le=1)
    """Weight of longer returns in the advantage; 1: reward minus value."""

    epsilon: float = Field(0.2, gt=0)
    """Half-width of the clip of new values around old ones."""

    num_iterations: int = Field(1, ge=1)
    """Passes of the value model over a batch, before the policy's."""

    warmup_updates: int = Field(0, ge=0)
    """First updates that train the value model alone."""

    whiten_advantages: bool = False
    """Shift and scale the token advantages of an update to mean 0 and standard deviation 1."""


class BlockEnlargement(Config):
    """A curriculum that takes a block-causal model to longer blocks: first trained with them on rollouts of
    its own blocks, then on rollouts with longer blocks, too (TraceRL, arXiv:2509.06949: 4 to 8, after 60 of
    100 updates)."""

    block_length: int = Field(gt=0)
    """Tokens of the longer blocks, a multiple of `rollout.block_length`; `rollout.diffusion_steps` must be
    shared equally by their number, too."""

    rollouts_after: int = Field(60, ge=0)
    """Updates whose rollouts still have the model's own blocks. Evaluation has `rollout.block_length`
    throughout; sample the result with `rollout.block_length` set to the longer one."""


class TraceRLConfig(TokenLevel, Referenced):
    """TraceRL (arXiv:2509.06949): clipped token ratios along the trajectory that the sampler took."""

    type: Literal["tracerl"] = "tracerl"

    shrink: int = Field(1, ge=1)
    """s: consecutive denoising steps that are scored together (within each block of a block model). 1 is the
    exact trajectory; published: 1 for SDAR and TraDo, 8 for LLaDA and Dream."""

    trust_beta: float = Field(0.01, ge=0)
    """Weight of k3 between current and old policy, which the paper calls KL; zero in the first step."""

    scale_rewards: Literal["none", "group", "group_population", "batch"] = "group_population"
    """`none`: advantage = reward - baseline. `group`: also divided by the group's sample standard deviation
    (`group_population`: by the population's), `batch`: by that of all rewards of the update."""

    aggregation: Literal["token_mean", "seq_mean", "canvas", "step_mean", "state_mean"] = "token_mean"
    """How tokens become one number. `token_mean`: every token of the step alike. `seq_mean`: the mean over
    completions of each one's mean. `canvas`: the sum divided by completions times canvas length. `step_mean`:
    the mean over denoising steps of each one's mean (paper). `state_mean`: the sum divided by states times
    canvas length (released code for block models)."""

    accuracy_range: tuple[float, float] | None = None
    """Groups whose mean reward lies outside are left out; None: all are used. Published: [0.2, 0.8]."""

    overlong_margin: int | None = Field(None, ge=0)
    """Completions that end within this many tokens of the canvas's end count as wrong (reward at most 0);
    None: no such rule. Published: 5."""

    tempered: bool = True
    """Take log-probabilities at the rollout's temperature; false: at 1 (released code)."""

    value: ValueConfig | None = None
    """Train a diffusion value model and use each token's own advantage; None: the completion's for all."""

    enlarge: BlockEnlargement | None = None
    """Take a block-causal model to longer blocks; None: its own."""

    process_chunk: int | None = Field(None, ge=1)
    """Score the text after every so many tokens and place each score where its chunk ended; needs `value`.
    None: one reward, at the end. Published: 200."""

    @property
    def scores_trajectories(self) -> bool:
        """It is."""
        return True

    def rollout_block_length(self, update: int) -> int | None:
        """The longer one from its time on."""
        later = self.enlarge is not None and update > self.enlarge.rollouts_after
        return self.enlarge.block_length if later else None

    def states_per_completion(self, rollout: RolloutConfig) -> float:
        """Shrunk steps. A doubled sequence holds one of every block, so with the exact cache of block-causal
        models (which tells that it is one) those of a block."""
        blocks = rollout.max_completion_length // rollout.block_length if rollout.cache == "block" else 1
        return float(-(-(rollout.diffusion_steps // blocks) // self.shrink))


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

    beta: float = Field(0.02, ge=0)
    """Weight of the KL to the reference policy (the weights that training starts from); 0: none is kept."""

    completion_scope: Literal["canvas"] = "canvas"
    """The action is every masked position of a visited state; there is nothing to choose."""

    scale_rewards: Literal["none", "group", "group_population"] = "group"
    """Divide a step's advantages by the group's sample standard deviation at that step (`group`), by the
    population's (`group_population`), or not (`none`)."""

    @property
    def needs_predictions(self) -> bool:
        """They are its actions."""
        return True

    def states_per_completion(self, rollout: RolloutConfig) -> float:
        """K, or all steps that are verified where these are fewer."""
        return float(
            min(self.sample_train_steps, -(-(rollout.diffusion_steps - 1) // self.reward_stride) + 1)
        )


class UnmaskingPolicyConfig(Clipped):
    """Learning Unmasking Policies (arXiv:2512.09106): a small network learns which positions to commit, for
    correct answers in few steps; the language model is frozen."""

    type: Literal["unmasking_policy"] = "unmasking_policy"

    alpha: float = Field(1.0, ge=0)
    """Rewards are multiplied by (1 - steps / canvas length) ** alpha: the larger, the faster and the less
    accurate. 0: speed earns nothing. Published: 10, 3, 1, 0.3, 0."""

    tau: float = Field(1.0, gt=0)
    """Divides the logits of a new network. Published: 0.5 for blocks of 32, 1 for a canvas of 256."""

    initial_bias: float = -2.0
    """Logit of committing a position before training; -2 is a probability of 0.12."""

    completion_scope: Literal["canvas"] = "canvas"
    """The actions are decisions about masked positions; there is nothing to choose."""

    @property
    def freezes_model(self) -> bool:
        """It does."""
        return True

    def states_per_completion(self, rollout: RolloutConfig) -> float:
        """None: the language model is not asked again."""
        return 0.0
