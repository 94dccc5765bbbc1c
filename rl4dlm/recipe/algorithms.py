"""The method of a recipe, chosen by `algorithm.type`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from rl4dlm.recipe.sections import Config, RolloutConfig


class Method(Config):
    """What every method has."""

    num_iterations: int = Field(1, ge=1)
    """mu: passes over a batch of rollouts, each with masks of its own."""

    completion_scope: Literal["canvas", "until_eos"] = "until_eos"
    """Positions that count as the action: up to and including the first stop id, or the whole canvas without
    the filler after an early stop."""

    scale_rewards: Literal["none", "group", "group_population", "batch"] = "none"
    """`none`: advantage = reward - baseline. `group`: also divided by the group's sample standard deviation
    (`group_population`: by the population's), `batch`: by that of all rewards of the update."""

    baseline: Literal["mean", "loo"] = "mean"
    """What a reward is compared with: the group's mean, or the mean of the group's others (leave one out),
    which makes advantages G/(G-1) times as large."""

    def states_per_completion(self, rollout: RolloutConfig) -> float:
        """Model inputs that an update evaluates per completion and pass, for cost estimates."""
        return 1.0

    @property
    def keeps_reference(self) -> bool:
        """Whether a frozen reference policy is needed."""
        return False

    @property
    def scores_trajectories(self) -> bool:
        """Whether the likelihood is that of the sampler's trajectory, so that the sampler's law matters."""
        return False


class Clipped(Method):
    """Methods with clipped ratios."""

    epsilon: float = Field(0.2, gt=0)
    """Clip below: ratios under 1 - epsilon earn no further gain."""

    epsilon_high: float | None = Field(None, gt=0)
    """Clip above, 1 + epsilon_high; None: `epsilon`."""

    log_ratio_clamp: float = Field(10.0, gt=0)
    """Log-ratios are clamped to +- this before exp, nats."""


class Referenced(Method):
    """Methods that can be held near a reference policy."""

    beta: float = Field(0.0, ge=0)
    """Weight of the KL to the reference policy (the weights that training starts from); 0: none is kept."""

    kl_estimator: Literal["k2", "k3"] = "k2"
    """k2 = d^2/2 (its gradient is that of the KL), k3 = exp(-d) + d - 1, on differences of
    log-probabilities."""

    @property
    def keeps_reference(self) -> bool:
        """Whether a frozen reference policy is needed."""
        return self.beta > 0


class TokenLevel(Clipped):
    """Methods with one ratio per token."""

    aggregation: Literal["token_mean", "seq_mean", "canvas"] = "token_mean"
    """How tokens become one number. `token_mean`: every token of the step alike. `seq_mean`: the mean over
    completions of each one's mean. `canvas`: the sum divided by completions times canvas length."""

    importance_correction: Literal["none", "truncated"] = "none"
    """`truncated`: weigh each token by min(p_trainer / p_sampler, importance_cap), where p_trainer replays
    the recorded trajectory under the weights that the update begins with and p_sampler is what the sampler
    recorded: corrects for rollouts of older weights or of approximate caches."""

    importance_cap: float = Field(2.0, ge=1)
    """Largest importance weight."""

    @property
    def scores_trajectories(self) -> bool:
        """Importance weights replay trajectories."""
        return self.importance_correction != "none"


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


class DiffuGRPOConfig(TokenLevel, Referenced):
    """diffu-GRPO (d1, arXiv:2504.12216): one-step mean-field log-probabilities with a randomly masked
    prompt."""

    type: Literal["diffu_grpo"] = "diffu_grpo"

    epsilon: float = Field(0.5, gt=0)
    """Clip below: ratios under 1 - epsilon earn no further gain."""

    beta: float = Field(0.04, ge=0)
    """Weight of the KL to the reference policy (the weights that training starts from); 0: none is kept."""

    kl_estimator: Literal["k2", "k3"] = "k3"
    """k2 = d^2/2 (its gradient is that of the KL), k3 = exp(-d) + d - 1, on differences of
    log-probabilities."""

    p_mask_prompt: float = Field(0.15, ge=0, lt=1)
    """Probability that a prompt token is hidden; 0: prompts are never masked."""


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

    process_chunk: int | None = Field(None, ge=1)
    """Score the text after every so many tokens and place each score where its chunk ended; needs `value`.
    None: one reward, at the end. Published: 200."""

    @property
    def scores_trajectories(self) -> bool:
        """It is."""
        return True

    def states_per_completion(self, rollout: RolloutConfig) -> float:
        """Shrunk steps; a doubled sequence holds one of every block, which only the model tells."""
        return float(-(-rollout.diffusion_steps // self.shrink))


class PluginConfig(Method):
    """A method of your own: a class in a file or module; docs/methods.md has a worked example."""

    type: Literal["plugin"] = "plugin"

    path: str = Field(pattern=r"^.+:[A-Za-z_]\w*$")
    """`my_method.py:MyMethod` or `package.module:MyMethod`."""

    settings: dict[str, Any] = {}
    """The method's own settings, checked by its class `Settings`."""

    @field_validator("path")
    @classmethod
    def _absolute(cls, path: str) -> str:
        """Files by their absolute path: workers have working directories of their own."""
        place, _, name = path.rpartition(":")
        return f"{Path(place).resolve()}:{name}" if place.endswith(".py") else path


AlgorithmConfig = Annotated[
    GDPOConfig | DiffuGRPOConfig | TraceRLConfig | PluginConfig, Field(discriminator="type")
]
"""The union of all methods, discriminated by `type`."""
