"""Settings, facts and rules of TraceRL (arXiv:2509.06949), its value model and its longer blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from rl4dlm.recipe.algorithms.base import Passes, Referenced, TokenLevel, defaults
from rl4dlm.recipe.findings import Finding
from rl4dlm.recipe.sections import Config, RolloutConfig

if TYPE_CHECKING:
    from rl4dlm.recipe.root import Recipe


class ValueConfig(Passes):
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

    @property
    def learns_from_every_row(self) -> bool:
        """Every completion teaches its value."""
        return True


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


@defaults(scale_rewards="group_population")
class TraceRLConfig(TokenLevel, Referenced):
    """TraceRL (arXiv:2509.06949): clipped token ratios along the trajectory that the sampler took."""

    type: Literal["tracerl"] = "tracerl"

    shrink: int = Field(1, ge=1)
    """s: consecutive denoising steps that are scored together (within each block of a block model). 1 is the
    exact trajectory; published: 1 for SDAR and TraDo, 8 for LLaDA and Dream."""

    trust_beta: float = Field(0.01, ge=0)
    """Weight of k3 between current and old policy, which the paper calls KL; zero in the first step. Rows
    with advantage 0 are run for it where an update has several steps."""

    aggregation: Literal["token_mean", "seq_mean", "canvas", "step_mean", "state_mean"] = "token_mean"  # type: ignore[assignment]
    """How tokens become one number. `token_mean`: every token of the step alike. `seq_mean`: the mean over
    completions of each one's mean. `canvas`: the sum divided by completions times canvas length. `step_mean`:
    the mean over denoising steps of each one's mean (paper). `state_mean`: the sum divided by states times
    canvas length (the form of the released code for block models, which has the batch's longest completion in
    place of the canvas)."""

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

    @property
    def scores_steps(self) -> bool:
        """With process rewards."""
        return self.process_chunk is not None

    @property
    def value_model(self) -> ValueConfig | None:
        """As set."""
        return self.value

    @property
    def learns_from_every_row(self) -> bool:
        """With a value model every token has an advantage of its own."""
        return self.value is not None or super().learns_from_every_row

    @property
    def stays_near_old(self) -> bool:
        """By its trust term."""
        return self.trust_beta > 0

    def rollout_block_length(self, update: int) -> int | None:
        """The longer one from its time on."""
        if self.enlarge is None or update <= self.enlarge.rollouts_after:
            return None
        return self.enlarge.block_length

    def states_per_completion(self, rollout: RolloutConfig) -> float:
        """Shrunk steps. A doubled sequence holds one of every block, so with the exact cache of block-causal
        models (which tells that it is one) those of a block."""
        blocks = rollout.max_completion_length // rollout.block_length if rollout.cache == "block" else 1
        return float(-(-(rollout.diffusion_steps // blocks) // self.shrink))

    def rules(self, recipe: Recipe) -> Iterator[Finding]:
        """Besides what token-level methods ask for: process rewards have values, ranges and blocks fit."""
        yield from super().rules(recipe)
        if self.process_chunk is not None and self.value is None:
            yield (
                "algorithm.process_chunk",
                f"algorithm.process_chunk = {self.process_chunk} places rewards along the trace, and "
                "without algorithm.value no value model turns them into advantages",
                "add algorithm.value (an empty mapping takes its defaults), or leave process_chunk out",
            )
        if self.accuracy_range is not None and self.accuracy_range[0] > self.accuracy_range[1]:
            yield (
                "algorithm.accuracy_range",
                f"algorithm.accuracy_range = {list(self.accuracy_range)}: no mean reward lies in it",
                "give the lower end first, e.g. [0.2, 0.8]",
            )
        if self.enlarge is not None:
            yield from self._longer_blocks_fit(self.enlarge.block_length, recipe.rollout)

    def _longer_blocks_fit(self, longer: int, rollout: RolloutConfig) -> Iterator[Finding]:
        own, canvas, key = (
            rollout.block_length,
            rollout.max_completion_length,
            "algorithm.enlarge.block_length",
        )
        if longer % own or canvas % longer or rollout.diffusion_steps % max(1, canvas // longer):
            yield (
                key,
                f"{key} = {longer} must be a multiple of rollout.block_length = {own}, divide "
                f"rollout.max_completion_length = {canvas}, and its blocks must share "
                f"rollout.diffusion_steps = {rollout.diffusion_steps} equally",
                f"use {2 * own}, with lengths and steps that are multiples of it",
            )
        if self.importance_correction != "none":
            yield (
                "algorithm.importance_correction",
                f"algorithm.importance_correction = {self.importance_correction} replays rollouts "
                "with the blocks that drew them, and algorithm.enlarge trains with others",
                "set it to none",
            )
