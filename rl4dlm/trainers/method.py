"""What a method is made of: states, an estimate, an objective, credit. No Ray, no DeepSpeed, no model is
held.

A method is a value, put together on its own page (see `gdpo.py`). What happens to rows is written once, as
functions over it: `prepare.py` makes batches of rollouts, `passes.py` estimates and losses of micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from rl4dlm.likelihood.states import States
from rl4dlm.recipe.algorithms import Passes
from rl4dlm.types import (
    Denoiser,
    DenoiserSpec,
    Kept,
    Pair,
    Record,
    Rollout,
    TrainBatch,
)

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
    num_minibatches: int = 1
    """Optimizer steps of each pass over a batch."""

    @property
    def law_temperature(self) -> float:
        """The temperature of the recorded law: greedy rollouts are recorded at temperature 1."""
        return self.temperature or 1.0


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
class BatchRows:
    """A micro-batch's rows as an objective sees them, tensors on the estimate's device and in its dtype."""

    advantage: Tensor
    """`[rows]`."""
    loss_mask: Tensor
    """bool `[rows, completion]`: the policy's actions."""
    live: Tensor
    """bool, of a per-token estimate's shape: positions that the objective is to judge."""
    stands_for: Tensor
    """Of its shape: how many actions each of them stands for; 0 elsewhere."""
    states: States
    """Those that the estimate is made of: all of the rows', or this pass's where the loss is a sum over
    states; `row` counts the rows of the micro-batch."""
    token_advantage: Tensor | None = None
    """Advantages of the estimate's shape, where they are finer than a row's."""
    importance: Tensor | None = None
    """Importance weights of the estimate's shape; None: 1."""
    record: Record | None = None
    """The method's own record of these rows, numpy."""

    @property
    def num_tokens(self) -> Tensor:
        """`[rows]`: actions of each row, at least 1."""
        return self.loss_mask.sum(1).clamp(min=1).to(self.advantage)

    def recorded(self, kind: type[Kept]) -> Kept:
        """The record, known to be of a kind."""
        assert isinstance(self.record, kind), f"the batch has no {kind.__name__}"
        return self.record

    def tensor(self, values: np.ndarray) -> Tensor:
        """An array of the record on the estimate's device; floats in its dtype."""
        return tensor_like(values, self.advantage)


def tensor_like(values: np.ndarray, like: Tensor) -> Tensor:
    """On the device of `like`; floats in its dtype, other kinds as they are."""
    tensor = torch.from_numpy(np.ascontiguousarray(values)).to(like.device)
    return tensor.to(like.dtype) if tensor.is_floating_point() else tensor


# --- Which states. ---


@dataclass(frozen=True)
class StatePlan:
    """Which states of every row are looked at: a function of the batch alone, whatever the model."""

    count: Callable[[TrainBatch], np.ndarray]
    """int64 `[batch]`: states of each row; a row without any is not run."""
    make: Callable[[TrainBatch, list[int], int], States]
    """(batch, rows, inner): all states of some rows in pass `inner`."""
    tokens: Callable[[TrainBatch], np.ndarray] | None = None
    """`[batch]`: positions that the loss sums over; None: the actions."""
    units: Callable[[TrainBatch], np.ndarray] | None = None
    """`[batch]`: what `StepSize.num_units` counts; None: the states."""


# --- How log-probabilities become an estimate. ---


@dataclass(frozen=True)
class Estimate:
    """How log-probabilities `[states, completion]` become the method's likelihood: a linear map, so that
    parts of a row add up. See `estimates.py`."""

    combine: Callable[[Tensor, States, int], Tensor]
    """(log-probabilities, states, number of rows): `[rows, ...]`, nats."""
    judged: Callable[[Tensor, States, int], Tensor]
    """(counts `[states, completion]`, states, number of rows): how many actions each judged position stands
    for."""
    separable: bool = False
    """The loss is a sum over the targets of single states: a row may be split without knowing the rest."""


class Score(Protocol):
    """What is asked about a state: by default the log-probabilities of its targets."""

    def __call__(self, denoiser: Denoiser, batch: TrainBatch, rows: list[int], states: States) -> Tensor:
        """`[states, ...]`, 0 where a position is no target; gradients flow where the model's call allows
        them."""
        ...

    def num_tokens(self, batch: TrainBatch, row: int) -> int:
        """Tokens of the input that one state of a row makes."""
        ...


@dataclass(frozen=True)
class Likelihood:
    """States, what is asked about them, and how the answers become an estimate."""

    states: StatePlan
    estimate: Estimate
    score: Score


# --- The objective. ---

Loss = tuple[Tensor, dict[str, Tensor]]
"""A share of the loss, and shares of metrics."""


class Objective(Protocol):
    """A method's loss as a function of its estimate."""

    def __call__(
        self, value: Tensor, rows: BatchRows, old: Tensor | None, ref: Tensor | None, step: StepSize
    ) -> Loss:
        """These rows' share of the loss of one optimizer step, and of its metrics.

        Args:
            value: the estimate, with gradient.
            rows: advantages, actions, records.
            old: the estimate under the weights that the update began with; None: those are the current ones.
            ref: the estimate under the reference policy; None without one.
            step: denominators, over all ranks.
        """
        ...


# --- The credit. ---


@dataclass(frozen=True)
class Credit:
    """Rewards to advantages, on the global batch. See `credit.py`."""

    advantages: Callable[[np.ndarray, np.ndarray], np.ndarray]
    """(rewards `[batch]`, groups `[batch]`): float32 `[batch]`, compared within the group."""
    keep: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
    """(rewards, groups): bool `[batch]`, rows that may enter the update; None: all."""
    adjust: Callable[[Sequence[Rollout], np.ndarray], np.ndarray] | None = None
    """(rollouts, rewards): rewards as the method counts them; NaN stays NaN; None: as they are."""
    decodes: Callable[[Rollout], list[np.ndarray]] | None = None
    """Token ids of the texts whose rewards are wanted besides the final one, where the method scores
    steps."""
    decoded_steps: Callable[[Rollout], np.ndarray] | None = None
    """The denoising steps that these texts belong to; None: they are not of steps."""


@dataclass(frozen=True)
class UsableRollouts:
    """The rollouts that enter an update, and what is known of them."""

    rollouts: Sequence[Rollout]
    reward: np.ndarray
    """float32 `[batch]`, as the method counts it."""
    group: np.ndarray
    """int32 `[batch]`."""
    advantage: np.ndarray
    """float32 `[batch]`."""
    actions: np.ndarray
    """bool `[batch, completion]`."""
    step_rewards: Sequence[np.ndarray] | None
    """Per rollout the rewards of its partial decodes."""


@dataclass(frozen=True)
class Recorded:
    """What a method keeps of the rollouts of a batch."""

    record: Record | None = None
    token_advantage: np.ndarray | None = None
    metrics: Metrics | None = None


C = TypeVar("C", bound=Passes, covariant=True)


@dataclass(frozen=True)
class Method(Generic[C]):
    """Four parts, and the settings that hold the method's facts.

    Example: `Method(config, setting, Likelihood(...), objective=..., credit=...)`.
    """

    config: C
    setting: Setting
    likelihood: Likelihood
    objective: Objective
    credit: Credit
    record: Callable[[UsableRollouts], Recorded] | None = None
    """What states and objective need of the rollouts besides the usual; None: nothing."""
    replay: Likelihood | None = None
    """Where tokens have importance weights: the log-probabilities that are compared with the sampler's
    record."""
    regroup: Callable[[TrainBatch], tuple[TrainBatch | None, Metrics]] | None = None
    """What becomes of the rows of a batch, e.g. pairs of them; None: they stay."""
    pair_batch: Callable[[Sequence[Pair], int, int], TrainBatch] | None = None
    """(pairs, policy version, seed): the batch that recorded pairs make, where nothing is sampled."""
