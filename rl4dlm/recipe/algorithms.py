"""The method of a recipe, chosen by `algorithm.type`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from rl4dlm.recipe.sections import Config, RolloutConfig


class AnyMethod(Config):
    """What every method has."""

    num_iterations: int = Field(1, ge=1)
    """mu: passes over a batch of rollouts, each with masks of its own."""

    completion_scope: Literal["canvas", "until_eos"] = "until_eos"
    """Positions that count as the action: up to and including the first stop id, or the whole canvas without
    the filler after an early stop."""

    def states_per_completion(self, rollout: RolloutConfig) -> float:
        """Model inputs that an update evaluates per completion and pass, for cost estimates."""
        return 1.0

    def rows_per_prompt(self, rollout: RolloutConfig) -> int:
        """Rows of the batch that a prompt makes."""
        return rollout.num_generations

    def rollout_block_length(self, update: int) -> int | None:
        """Block length of the rollouts of update 1, 2, ...; None: the recipe's."""
        return None

    @property
    def keeps_reference(self) -> bool:
        """Whether a frozen reference policy is needed."""
        return False

    def syncs_reference_at(self, update: int) -> bool:
        """Whether the reference moves towards the policy after update 1, 2, ..."""
        return False

    @property
    def needs_predictions(self) -> bool:
        """Whether rollouts must hold what the sampler predicted at every masked position of every step."""
        return False

    @property
    def scores_trajectories(self) -> bool:
        """Whether the likelihood is that of the sampler's trajectory, so that the sampler's law matters."""
        return False

    @property
    def corrects_staleness(self) -> bool:
        """Whether rollouts that older weights drew are weighed, or need not be."""
        return False

    @property
    def has_ratios(self) -> bool:
        """Whether the loss compares with the weights that an update begins with."""
        return False

    @property
    def samples_rollouts(self) -> bool:
        """Whether an update samples completions and scores them."""
        return True

    @property
    def freezes_model(self) -> bool:
        """Whether the language model stays as it is, and the network that decides its decoding is trained."""
        return False


class Method(AnyMethod):
    """Methods that compare the rewards of completions within their group."""

    scale_rewards: Literal["none", "group", "group_population", "batch"] = "none"
    """`none`: advantage = reward - baseline. `group`: also divided by the group's sample standard deviation
    (`group_population`: by the population's), `batch`: by that of all rewards of the update."""

    baseline: Literal["mean", "loo"] = "mean"
    """What a reward is compared with: the group's mean, or the mean of the group's others (leave one out),
    which makes advantages G/(G-1) times as large."""


class Clipped(Method):
    """Methods with clipped ratios."""

    epsilon: float = Field(0.2, gt=0)
    """Clip below: ratios under 1 - epsilon earn no further gain."""

    epsilon_high: float | None = Field(None, gt=0)
    """Clip above, 1 + epsilon_high; None: `epsilon`."""

    log_ratio_clamp: float = Field(10.0, gt=0)
    """Log-ratios are clamped to +- this before exp, nats."""

    @property
    def has_ratios(self) -> bool:
        """Whether the loss compares with the weights that an update begins with."""
        return True


class Referenced(Method):
    """Methods that can be held near a reference policy."""

    beta: float = Field(0.0, ge=0)
    """Weight of the KL to the reference policy (the weights that training starts from); 0: none is kept."""

    kl_estimator: Literal["k2", "k3"] = "k2"
    """k2 = d^2/2 (its gradient is that of the KL), k3 = exp(-d) + d - 1, on differences of
    log-probabilities."""

    sync_ref_model: bool = False
    """Let the reference policy follow: every `ref_model_sync_steps` updates it becomes
    `ref_model_mixup_alpha` times the policy plus the rest of itself. Not under LoRA, whose reference is the
    base model."""

    ref_model_sync_steps: int = Field(512, ge=1)
    """Updates between two such moves; coupled-GRPO: 64."""

    ref_model_mixup_alpha: float = Field(0.6, gt=0, le=1)
    """The policy's share; 1 makes the reference the policy."""

    def syncs_reference_at(self, update: int) -> bool:
        """Whether the reference moves towards the policy after update 1, 2, ..."""
        return self.sync_ref_model and update % self.ref_model_sync_steps == 0

    @property
    def keeps_reference(self) -> bool:
        """Whether a frozen reference policy is needed."""
        return self.beta > 0


class Corrected(Clipped):
    """Methods whose tokens can be weighed by how much likelier they are now than when they were drawn."""

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

    @property
    def corrects_staleness(self) -> bool:
        """By importance weights."""
        return self.importance_correction != "none"


class TokenLevel(Corrected):
    """Methods with one ratio per token."""

    aggregation: Literal["token_mean", "seq_mean", "canvas"] = "token_mean"
    """How tokens become one number. `token_mean`: every token of the step alike. `seq_mean`: the mean over
    completions of each one's mean. `canvas`: the sum divided by completions times canvas length."""


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


class CoupledGRPOConfig(TokenLevel, Referenced):
    """coupled-GRPO (DiffuCoder, arXiv:2506.20639): token log-probabilities from complementary masks."""

    type: Literal["coupled_grpo"] = "coupled_grpo"

    num_iterations: int = Field(2, ge=1)
    """mu: passes over a batch of rollouts, each with masks of its own."""

    epsilon: float = Field(0.5, gt=0)
    """Clip below: ratios under 1 - epsilon earn no further gain."""

    beta: float = Field(0.01, ge=0)
    """Weight of the KL to the reference policy (the weights that training starts from); 0: none is kept."""

    kl_estimator: Literal["k2", "k3"] = "k3"
    """k2 = d^2/2 (its gradient is that of the KL), k3 = exp(-d) + d - 1, on differences of
    log-probabilities."""

    min_rate: float = Field(0.2, gt=0, lt=1)
    """Smallest probability t that the first of the two complementary views hides a token."""

    max_rate: float = Field(0.8, gt=0, lt=1)
    """Largest; t is uniform between the two."""

    calibrate: bool = False
    """Divide the estimate by 1.5, the sum of a token's weights in the mean, so that it is a log-probability
    where context does not matter. Released code: not."""

    def states_per_completion(self, rollout: RolloutConfig) -> float:
        """Everything hidden, a part, and the rest."""
        return 3.0


class UniGRPOConfig(TokenLevel, Referenced):
    """UniGRPO (MMaDA, arXiv:2505.15809): one random mask per pass, at rates that the passes spread out."""

    type: Literal["unigrpo"] = "unigrpo"

    num_iterations: int = Field(4, ge=1)
    """mu: passes over a batch of rollouts. Their mask rates go from a random first one to 1 in equal steps;
    one pass alone has the random rate."""

    beta: float = Field(0.01, ge=0)
    """Weight of the KL to the reference policy (the weights that training starts from); 0: none is kept."""

    kl_estimator: Literal["k2", "k3"] = "k3"
    """k2 = d^2/2 (its gradient is that of the KL), k3 = exp(-d) + d - 1, on differences of
    log-probabilities."""

    scale_rewards: Literal["none", "group", "group_population", "batch"] = "group"
    """`none`: advantage = reward - baseline. `group`: also divided by the group's sample standard deviation
    (`group_population`: by the population's), `batch`: by that of all rewards of the update."""

    aggregation: Literal["token_mean", "seq_mean", "canvas"] = "seq_mean"
    """How tokens become one number; the masked ones stand for all. `token_mean`: every token of the step
    alike. `seq_mean`: the mean over completions of each one's mean. `canvas`: the sum divided by completions
    times canvas length."""


class AGRPOConfig(TokenLevel, Referenced):
    """AGRPO (arXiv:2510.04019): a few random steps of the recorded trajectory estimate its gradient."""

    type: Literal["agrpo"] = "agrpo"

    num_steps: int = Field(24, ge=1)
    """M: steps of each trajectory that are evaluated per pass; shorter trajectories are evaluated whole."""

    step_sampling: Literal["uniform", "surprisal"] = "uniform"
    """`uniform`: every step alike. `surprisal`: half of the probability in proportion to -log p of what the
    step drew (a one-sample estimate of its entropy), with weights that keep the mean."""

    ratio_against: Literal["rollout", "update"] = "rollout"
    """`rollout`: ratios to the log-probabilities that the sampler recorded (published; no forward for old
    values). `update`: to those of the weights that the update begins with."""

    aggregation: Literal["over_steps", "token_mean", "seq_mean", "canvas"] = "over_steps"
    """How tokens become one number; the tokens of sampled steps stand for all. `over_steps` (published): the
    mean over completions of the sum over tokens divided by the number of steps. `token_mean`: every token of
    the update alike. `seq_mean`: the mean over completions of each one's mean. `canvas`: the sum divided by
    completions times canvas length."""

    kl_estimator: Literal["k2", "k3"] = "k3"
    """k2 = d^2/2, k3 = exp(-d) + d - 1, on differences of log-probabilities; multiplied by the ratio."""

    @property
    def scores_trajectories(self) -> bool:
        """It is."""
        return True

    @property
    def has_ratios(self) -> bool:
        """Not to those weights, where the sampler's record is compared with."""
        return self.ratio_against == "update"

    @property
    def corrects_staleness(self) -> bool:
        """By ratios to what the sampler recorded."""
        return self.ratio_against == "rollout" or super().corrects_staleness

    def states_per_completion(self, rollout: RolloutConfig) -> float:
        """M, or the steps of the sampler if they are fewer."""
        return float(min(self.num_steps, rollout.diffusion_steps))


class JustGRPOConfig(TokenLevel):
    """JustGRPO (arXiv:2601.15165): rollouts and exact likelihoods in the order of reading."""

    type: Literal["just_grpo"] = "just_grpo"

    scale_rewards: Literal["none", "group", "group_population", "batch"] = "group"
    """`none`: advantage = reward - baseline. `group`: also divided by the group's sample standard deviation
    (`group_population`: by the population's), `batch`: by that of all rewards of the update."""

    completion_scope: Literal["canvas", "until_eos"] = "canvas"
    """Positions that count as the action: the whole canvas without the filler after an early stop, or up to
    and including the first stop id."""

    aggregation: Literal["token_mean", "seq_mean", "canvas"] = "canvas"
    """How tokens become one number. `token_mean`: every token of the step alike. `seq_mean`: the mean over
    completions of each one's mean. `canvas`: the sum divided by completions times canvas length."""

    @property
    def scores_trajectories(self) -> bool:
        """It is."""
        return True

    def states_per_completion(self, rollout: RolloutConfig) -> float:
        """One per token. Block-causal models need only as many as a block has."""
        return float(rollout.max_completion_length)


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


class VRPOConfig(AnyMethod):
    """VRPO (LLaDA 1.5, arXiv:2505.19223): preference optimisation from pairs, DPO with ELBO estimates."""

    type: Literal["vrpo"] = "vrpo"

    pairs: Literal["offline", "online"] = "offline"
    """Where preferences come from. `offline`: `data.train` has the columns `prompt`, `chosen` and `rejected`;
    nothing is sampled for an update, and rewards serve evaluation alone. `online`: the best against the worst
    completion of every prompt by reward; prompts whose completions are all alike are left out."""

    estimator: Literal["sdmc", "double_mc", "stratified"] = "stratified"
    """How the ELBO is estimated. `stratified`: exact counts stratified over 1..L with weight L/k, unbiased.
    `double_mc`: mask rates drawn uniformly. `sdmc`: Gauss-Legendre nodes over the mask rate."""

    num_nodes: int = Field(8, ge=1, le=64)
    """n_t: mask rates (or counts) per completion and pass."""

    num_masks: int = Field(1, ge=1)
    """n_m: masks per rate. For a given product n_t * n_m, 1 has the lowest variance."""

    count_rule: Literal["round_half", "round", "floor_release", "bernoulli"] = "round_half"
    """Masked positions at rate t of L: `round_half` round(tL + 1/2) with weight L/count, `round` round(tL)
    with weight L/count, `floor_release` floor(tL) with weight 1/t, `bernoulli` each position independently
    with weight 1/t. Not used by `stratified`."""

    beta: float = Field(0.2, gt=0)
    """How soon a pair counts as learnt; larger values stay nearer to the reference. Multiplies differences of
    whole completions, in nats. The authors' value is not known; 0.2 is a port's."""

    normalise_by_length: bool = False
    """Divide likelihoods by the canvas length within the comparison (a port's), so that `beta` acts as
    `beta` / L."""

    sft_weight: float = Field(0.0, ge=0)
    """Weight of the preferred completion's negative ELBO per token; reported: 0.05."""

    def states_per_completion(self, rollout: RolloutConfig) -> float:
        """n_t * n_m for two completions of every prompt."""
        return 2.0 * self.num_nodes * self.num_masks / rollout.num_generations

    def rows_per_prompt(self, rollout: RolloutConfig) -> int:
        """A pair."""
        return 1

    @property
    def keeps_reference(self) -> bool:
        """Always: preferences are measured against it."""
        return True

    @property
    def samples_rollouts(self) -> bool:
        """Only online."""
        return self.pairs == "online"

    @property
    def corrects_staleness(self) -> bool:
        """Which completion is better does not depend on who wrote it."""
        return True


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


AlgorithmConfig = Annotated[
    AGRPOConfig
    | CoupledGRPOConfig
    | DiffuGRPOConfig
    | ESPOConfig
    | GDPOConfig
    | JustGRPOConfig
    | MDPOConfig
    | SPGConfig
    | TraceRLConfig
    | UniGRPOConfig
    | UnmaskingPolicyConfig
    | VRPOConfig
    | WD1Config
    | WD1PlusConfig
    | PluginConfig,
    Field(discriminator="type"),
]
"""The union of all methods, discriminated by `type`."""
