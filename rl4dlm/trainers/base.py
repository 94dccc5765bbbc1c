"""What a method is: which states, which advantage, which likelihood, which loss. A trainer never touches Ray
or DeepSpeed; the policy worker calls it and does the backward passes and the optimizer steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from rl4dlm.types import Denoiser, DenoiserSpec, Pair, RolloutGroup, Scores, TrainBatch

Metrics = dict[str, float]
"""Scalars by name. Values are already divided by global counts, so adding them over micro-batches and ranks
gives the value; names that end in `/max` or `/min` are combined by maximum or minimum."""

PLAIN_SPEC = DenoiserSpec(
    mask_id=0, pad_id=0, eos_id=0, stop_ids=(0,), vocab_size=0, forbidden_ids=(), attention="full"
)


@dataclass(frozen=True)
class Setting:
    """What a method must know of the run besides its own settings.

    Example: `Setting(temperature=0.8, spec=denoiser.spec)`.
    """

    temperature: float = 1.0
    """Of the rollouts; trajectory likelihoods are taken under it. Greedy rollouts are scored at 1."""
    spec: DenoiserSpec = PLAIN_SPEC
    """Of the model: attention and block length decide how states become inputs."""
    seed: int = 0
    """Of the run."""
    block_length: int | None = None
    """Of the rollouts: tokens that the sampler fills together; None: the whole canvas."""
    policy_sharpness: float = 1.0
    """Of the rollouts: multiplies the logits of an unmasking policy."""


@dataclass(frozen=True)
class MicroBatch:
    """The work of one forward and backward pass on one rank: some rows of a batch, and which of their states.

    `states` selects among the states that the method derives from each row (for an ELBO: its N * K
    corruptions); a row that has fewer simply lacks the higher ones. When the states of a row do not fit in
    one pass they are split over several micro-batches of that row.
    """

    rows: tuple[int, ...]
    states: tuple[int, ...]
    whole: bool
    """Every state of these rows is here, so the loss can be formed directly from this pass alone."""


@dataclass(frozen=True)
class StepSize:
    """How much one optimizer step holds over all ranks: the denominators of means."""

    num_rows: int
    num_tokens: float
    """Positions that the loss sums over."""
    num_units: int
    """States of all rows, or whatever else the method averages over."""
    num_counted: float
    """Rows that are run, averaged over the steps of a pass (exact with one minibatch)."""
    num_counted_tokens: float
    """Positions of those rows, likewise."""


@dataclass(frozen=True)
class Replay:
    """How importance weights against the sampler come about (`loss/importance.py`)."""

    trainer: Trainer
    """Its estimate is each token's log-probability under the recorded trajectory, `[rows, completion]`."""
    cap: float
    """Largest weight."""


class Trainer(Protocol):
    """A method of the toolkit; one page per file in `trainers/`."""

    num_iterations: int
    """mu: passes over a batch of rollouts."""
    needs_reference: bool
    """A frozen reference policy must be kept."""
    needs_old: bool
    """The loss compares with the weights that the update began with."""
    scores_steps: bool
    """Partial decodes of every rollout must be scored too (see `partial_decodes`)."""
    needs_predictions: bool
    """Rollouts must hold what the sampler predicted at every step (`Trace.predictions`)."""
    offline: bool
    """Batches are recorded pairs (see `prepare_pairs`): nothing is sampled or scored for an update."""

    @property
    def replay(self) -> Replay | None:
        """Where the loss wants importance weights: what they are computed with; else None."""
        ...

    def partial_decodes(self, groups: Sequence[RolloutGroup]) -> list[list[np.ndarray]]:
        """Per rollout, in the order of the flattened groups, token ids of the texts whose rewards the method
        wants besides the final one; only where `scores_steps`."""
        ...

    def rewards_by_step(
        self, groups: Sequence[RolloutGroup], step_rewards: Sequence[np.ndarray]
    ) -> list[np.ndarray] | None:
        """Rewards of partial decodes at their denoising steps, float32 `[num_steps]` per rollout, NaN where
        none was asked for: for the record. None where the decodes are not of steps."""
        ...

    def prepare(
        self,
        groups: Sequence[RolloutGroup],
        scores: Scores,
        *,
        policy_version: int,
        seed: int,
        step_rewards: Sequence[np.ndarray] | None = None,
    ) -> tuple[TrainBatch | None, Metrics]:
        """Rewards -> advantages on the global batch -> what an update needs. On the driver; no model.

        Rows whose reward failed are left out. Returns None for the batch when nothing is left to learn from.

        Args:
            step_rewards: per rollout the rewards of its `partial_decodes`; NaN where the reward failed.
        """
        ...

    def prepare_pairs(
        self, pairs: Sequence[Pair], *, policy_version: int, seed: int
    ) -> tuple[TrainBatch | None, Metrics]:
        """Recorded pairs -> what an update needs; only where `offline`. None where there are no pairs."""
        ...

    def minibatches(self, batch: TrainBatch, inner: int, num_minibatches: int) -> list[np.ndarray]:
        """Row indices of each optimizer step of pass `inner`; the same on every rank whatever their
        number."""
        ...

    def micro_batches(
        self, batch: TrainBatch, rows: Sequence[int], token_budget: int, inner: int = 0
    ) -> list[MicroBatch]:
        """Split a rank's rows into passes of at most `token_budget` padded tokens (one state at the
        least)."""
        ...

    def step_size(self, batch: TrainBatch, rows: Sequence[int] | np.ndarray) -> StepSize:
        """The denominators of an optimizer step on `rows` (of all ranks)."""
        ...

    def needs_current(self, micro: MicroBatch) -> bool:
        """Whether `loss` wants the whole current estimate of these rows, without gradient."""
        ...

    def estimate(self, denoiser: Denoiser, batch: TrainBatch, micro: MicroBatch, inner: int) -> Tensor:
        """The method's likelihood of these rows under `denoiser`, summed over the micro-batch's states.

        Called without gradients for old, reference and (when rows are split) current values.
        Returns float32 `[rows, ...]`, nats; adding the micro-batches of a row completes it.
        """
        ...

    def loss(
        self,
        denoiser: Denoiser,
        batch: TrainBatch,
        micro: MicroBatch,
        inner: int,
        *,
        old: Tensor | None,
        ref: Tensor | None,
        current: Tensor | None,
        step: StepSize,
    ) -> tuple[Tensor, Metrics]:
        """This micro-batch's share of the loss of one optimizer step, with gradient.

        Args:
            old: cached estimate of these rows under the behaviour weights; None when the current weights are
                the behaviour weights (first and only step): the ratio is then 1 by construction.
            ref: cached estimate under the reference weights; None without a KL term.
            current: estimate under the current weights without gradient, given where `needs_current`; the
                exact gradient then follows from the chain rule through it.
            step: denominators of the optimizer step, over all ranks.
        """
        ...
