"""What methods share: advantages, clips, references, importance weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

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

    @property
    def reference_follows(self) -> bool:
        """Whether the reference is moved towards the policy."""
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

    @property
    def reference_follows(self) -> bool:
        """Where it is asked to."""
        return self.sync_ref_model

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
