"""Methods with a likelihood per token: diffu-GRPO, coupled-GRPO, UniGRPO, AGRPO, JustGRPO."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rl4dlm.recipe.algorithms.base import Referenced, TokenLevel
from rl4dlm.recipe.sections import RolloutConfig


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
