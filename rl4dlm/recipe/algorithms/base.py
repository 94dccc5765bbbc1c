"""What methods share: their facts, advantages, clips, references, importance weights.

The facts of a method are properties of its settings: whoever asks (trainers, workers, cost, rules) reads them
here and nowhere else. A method also brings the rules that tie its settings to the rest of a recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import Field

from rl4dlm.recipe.findings import Finding
from rl4dlm.recipe.sections import Config, RolloutConfig

if TYPE_CHECKING:
    from rl4dlm.recipe.algorithms.tracerl import ValueConfig
    from rl4dlm.recipe.root import Recipe

Settings = TypeVar("Settings", bound=type[Config])


def defaults(**values: Any) -> Callable[[Settings], Settings]:
    """A class decorator: inherited settings that differ in their default alone.

    Example: `@defaults(epsilon=0.5)` above `class GDPOConfig(SequenceLevel)`.
    """

    def change(cls: Settings) -> Settings:
        for name, value in values.items():
            field = copy(cls.__pydantic_fields__[name])
            field.default = value
            cls.__pydantic_fields__[name] = field
        cls.model_rebuild(force=True)
        return cls

    return change


class Passes(Config):
    """What anything that learns from a batch has: passes over it, and what they need beside the current
    weights."""

    num_iterations: int = Field(1, ge=1)
    """mu: passes over a batch of rollouts, each with masks of its own."""

    @property
    def needs_old(self) -> bool:
        """Whether the loss compares with the weights that an update begins with."""
        return False

    @property
    def keeps_reference(self) -> bool:
        """Whether a frozen reference policy is needed."""
        return False

    @property
    def learns_from_every_row(self) -> bool:
        """Whether rows without an advantage can move the weights."""
        return self.keeps_reference

    @property
    def stays_near_old(self) -> bool:
        """Whether a term holds every row near the weights that an update begins with, whatever its advantage:
        it has a gradient from the update's second step on."""
        return False

    @property
    def importance_bound(self) -> float | None:
        """Largest importance weight of a token; None: tokens are not weighed."""
        return None

    def optimizer_steps(self, num_minibatches: int) -> int:
        """Steps of an update whose passes are cut into so many minibatches."""
        return self.num_iterations * num_minibatches

    def compares_estimates(self, num_minibatches: int) -> bool:
        """Whether current log-probabilities meet those that another evaluation of the model gave: with
        dropout in one of the two they differ where no weight does."""
        return self.keeps_reference or (self.needs_old and self.optimizer_steps(num_minibatches) > 1)


class MethodConfig(Passes):
    """What every method has."""

    type: str = "plugin"

    completion_scope: Literal["canvas", "until_eos"] = "until_eos"
    """Positions that count as the action: up to and including the first stop id, or the whole canvas without
    the filler after an early stop. What follows the last action is hidden from the model in every state that
    is made of a completion; states that the sampler visited are replayed as they were."""

    def rules(self, recipe: Recipe) -> Iterator[Finding]:
        """What does not fit between these settings, or between them and the recipe."""
        yield from ()

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
    def reference_share(self) -> float:
        """The policy's share when the reference moves towards it."""
        return 1.0

    @property
    def reference_follows(self) -> bool:
        """Whether the reference is moved towards the policy."""
        return False

    def syncs_reference_at(self, update: int, steps_per_update: int) -> bool:
        """Whether the reference moves towards the policy after update 1, 2, ...

        Args:
            update: from 1.
            steps_per_update: optimizer steps that each update takes.
        """
        return False

    @property
    def needs_predictions(self) -> bool:
        """Whether rollouts must hold what the sampler predicted at every masked position of every step."""
        return False

    @property
    def weighs_by_confidence(self) -> bool:
        """Whether the sampler's confidences are weights, so that they must be probabilities."""
        return False

    @property
    def scores_steps(self) -> bool:
        """Whether partial decodes of every rollout are scored too."""
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
    def samples_rollouts(self) -> bool:
        """Whether an update samples completions and scores them; else it learns from recorded pairs."""
        return True

    @property
    def value_model(self) -> ValueConfig | None:
        """The value model that is trained beside the policy, if any."""
        return None

    @property
    def freezes_model(self) -> bool:
        """Whether the language model stays as it is, and the network that decides its decoding is trained."""
        return False


class GroupMethod(MethodConfig):
    """Methods that compare the rewards of completions within their group."""

    scale_rewards: Literal["none", "group", "group_population", "batch"] = "none"
    """`none`: advantage = reward - baseline. `group`: also divided by the group's sample standard deviation
    (`group_population`: by the population's), `batch`: by that of all rewards of the update."""

    baseline: Literal["mean", "loo"] = "mean"
    """What a reward is compared with: the group's mean, or the mean of the group's others (leave one out),
    which makes advantages G/(G-1) times as large."""


class Clipped(GroupMethod):
    """Methods with clipped ratios."""

    epsilon: float = Field(0.2, gt=0)
    """Clip below: ratios under 1 - epsilon earn no further gain."""

    epsilon_high: float | None = Field(None, gt=0)
    """Clip above, 1 + epsilon_high; None: `epsilon`."""

    log_ratio_clamp: float = Field(10.0, gt=0)
    """Log-ratios are clamped to +- this before exp, nats."""

    @property
    def needs_old(self) -> bool:
        """For the ratios."""
        return True

    @property
    def clip_high(self) -> float:
        """Width of the clip above 1."""
        return self.epsilon if self.epsilon_high is None else self.epsilon_high

    def rules(self, recipe: Recipe) -> Iterator[Finding]:
        """Besides what all methods ask for: the clip leaves ratios positive."""
        yield from super().rules(recipe)
        if self.epsilon >= 1:
            yield (
                "algorithm.epsilon",
                f"algorithm.epsilon = {self.epsilon}: the lower clip 1 - epsilon must stay above 0",
                "use a value below 1 (GDPO: 0.5); epsilon_high may be larger",
            )


class Following(GroupMethod):
    """Methods whose reference policy, where they keep one, can follow the policy."""

    sync_ref_model: bool = False
    """Let the reference policy follow: every `ref_model_sync_steps` optimizer steps it becomes
    `ref_model_mixup_alpha` times the policy plus the rest of itself. Not under LoRA, whose reference is the
    base model."""

    ref_model_sync_steps: int = Field(512, ge=1)
    """Optimizer steps between two such moves, as in TRL; coupled-GRPO: 64. An update takes `num_iterations`
    times `trainer.num_minibatches` of them, and the reference moves after the update in which their count
    reaches or passes a multiple."""

    ref_model_mixup_alpha: float = Field(0.6, gt=0, le=1)
    """The policy's share; 1 makes the reference the policy."""

    @property
    def reference_share(self) -> float:
        """As set."""
        return self.ref_model_mixup_alpha

    @property
    def reference_follows(self) -> bool:
        """Where it is asked to."""
        return self.sync_ref_model

    def syncs_reference_at(self, update: int, steps_per_update: int) -> bool:
        """Where the count of optimizer steps reaches or passes a multiple."""
        done, every = update * steps_per_update, self.ref_model_sync_steps
        return self.sync_ref_model and done // every > (done - steps_per_update) // every

    def rules(self, recipe: Recipe) -> Iterator[Finding]:
        """Besides what all methods ask for: a reference that follows is kept, and can move."""
        yield from super().rules(recipe)
        if self.reference_follows and not self.keeps_reference:
            why = " with algorithm.beta = 0" if "beta" in type(self).model_fields else ""
            yield (
                "algorithm.sync_ref_model",
                f"algorithm.sync_ref_model = true{why}: no reference policy is kept",
                "set algorithm.beta above 0, or algorithm.sync_ref_model=false",
            )
        if self.reference_follows and recipe.trainer.lora is not None:
            yield (
                "algorithm.sync_ref_model",
                "algorithm.sync_ref_model = true with trainer.lora: the reference is the base model, which "
                "stays as it is",
                "set algorithm.sync_ref_model=false, or train all weights",
            )


class Referenced(Following):
    """Methods that can be held near a reference policy."""

    beta: float = Field(0.0, ge=0)
    """Weight of the KL to the reference policy (the weights that training starts from); 0: none is kept."""

    kl_estimator: Literal["k2", "k3"] = "k2"
    """k2 = d^2/2 (its gradient is that of the KL), k3 = exp(-d) + d - 1, on differences of
    log-probabilities."""

    @property
    def keeps_reference(self) -> bool:
        """Where its KL has a weight."""
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
    def importance_bound(self) -> float | None:
        """Where weights are asked for."""
        return None if self.importance_correction == "none" else self.importance_cap

    @property
    def scores_trajectories(self) -> bool:
        """Importance weights replay trajectories."""
        return self.importance_bound is not None

    @property
    def corrects_staleness(self) -> bool:
        """By importance weights."""
        return self.importance_bound is not None


class Aggregated(GroupMethod):
    """Methods whose loss is a sum over tokens."""

    aggregation: Literal["token_mean", "seq_mean", "canvas"] = "token_mean"
    """How tokens become one number. `token_mean`: every token of the step alike. `seq_mean`: the mean over
    completions of each one's mean. `canvas`: the sum divided by completions times canvas length."""


class TokenLevel(Corrected, Aggregated):
    """Methods with one ratio per token."""


class SequenceLevel(Clipped, Referenced):
    """Methods with one ratio per completion."""

    ratio_level: Literal["sequence_norm", "sequence"] = "sequence_norm"
    """`sequence_norm`: exp of the ELBO difference per token (released codes). `sequence`: exp of the
    difference, which leaves the clip range almost at once at hundreds of tokens."""


class MaskedPrompt(Config):
    """Methods that hide a random part of the prompt, too."""

    p_mask_prompt: float = Field(0.15, ge=0, lt=1)
    """Probability that a prompt token is hidden; 0: prompts are never masked."""


class ElboEstimated(Config):
    """Methods that estimate the ELBO of whole completions."""

    estimator: Literal["sdmc", "double_mc", "stratified"] = "sdmc"
    """How the ELBO is estimated. `sdmc`: Gauss-Legendre nodes over the mask rate. `double_mc`: mask rates
    drawn uniformly. `stratified`: exact counts stratified over 1..L with weight L/k, unbiased."""

    num_nodes: int = Field(3, ge=1, le=64)
    """N: quadrature nodes, or draws of the rate or count."""

    num_masks: int = Field(1, ge=1)
    """K: masks per node. Forwards per completion and inner pass: N * K."""

    count_rule: Literal["round_half", "round", "floor_release", "bernoulli"] = "round_half"
    """Masked positions at rate t of L: `round_half` round(tL + 1/2) with weight L/count, `round` round(tL)
    with weight L/count, `floor_release` floor(tL) with weight 1/t (GDPO's released code; biased), `bernoulli`
    each position independently with weight 1/t. Not used by `stratified`."""

    @property
    def num_states(self) -> int:
        """N * K: masked states of a completion."""
        return self.num_nodes * self.num_masks


class Softmaxed(GroupMethod):
    """Methods that weigh completions by a softmax of their advantages."""

    psi: float = Field(1.0, gt=0)
    """Inverse temperature of the weights softmax(+-psi A) within a group; large values compare the best with
    the worst alone."""
