"""What all methods share: rewards to rows, rows to states, states to estimates, estimates to a share of the
loss.

A method names its states, how their log-probabilities combine into its estimate (a linear map, so that parts
of a row add up), and its objective; a page that does is a method (see `gdpo.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rl4dlm.advantage.group import group_advantage, reward_metrics, shuffle_groups
from rl4dlm.diffusion.seeds import derive_seed
from rl4dlm.likelihood.packing import action_mask
from rl4dlm.likelihood.states import States, block_of_positions, sequence_tokens, state_logp
from rl4dlm.trainers.base import Metrics, MicroBatch, Replay, Setting, StepSize
from rl4dlm.types import STOP_ABORTED, Denoiser, Pair, Rollout, RolloutGroup, Scores, TrainBatch, flatten


@dataclass(frozen=True)
class Rows:
    """A micro-batch's rows as an objective sees them, tensors on the estimate's device and in its dtype."""

    advantage: Tensor
    """`[rows]`."""
    loss_mask: Tensor
    """bool `[rows, completion]`: the policy's actions."""
    live: Tensor
    """bool `[rows, completion]`: positions that the objective is to judge."""
    stands_for: Tensor
    """`[rows, completion]`: how many actions each of them stands for; 0 elsewhere."""
    states: States
    """Those that the estimate is made of: all of the rows', or this pass's where the loss is a sum over
    states; `row` counts the rows of the micro-batch."""
    extra: Mapping[str, Tensor]
    """The batch's `extra` for these rows."""

    @property
    def num_tokens(self) -> Tensor:
        """`[rows]`: actions of each row, at least 1."""
        return self.loss_mask.sum(1).clamp(min=1).to(self.advantage)


class StateTrainer:
    """A `Trainer` up to its states, its combination and its objective."""

    needs_old = True
    scores_steps = False
    offline = False
    separable = False
    """The loss is a sum over the targets of single states: a row may be split without knowing the rest."""
    temperature = 1.0
    """Of the log-probabilities; see `state_logp`."""

    def __init__(self, config: Any, setting: Setting | None = None) -> None:
        self.config = config
        self.setting = setting or Setting()
        self.num_iterations: int = config.num_iterations
        self.needs_reference: bool = config.keeps_reference
        self.needs_predictions: bool = config.needs_predictions

    @property
    def replay(self) -> Replay | None:
        """See `Trainer.replay`."""
        return None

    # --- What a method says. ---

    def num_states(self, batch: TrainBatch) -> np.ndarray:
        """int64 `[batch]`: states of each row."""
        raise NotImplementedError

    def states(self, batch: TrainBatch, rows: Sequence[int], inner: int) -> States:
        """All states of some rows in pass `inner`."""
        raise NotImplementedError

    def combine(self, logp: Tensor, states: States, num_rows: int) -> Tensor:
        """The estimate that log-probabilities `[states, completion]` make: linear, `[rows, ...]`.

        Here one number per row: the weighted sum over its states' targets.
        """
        return sum_states((states.weight.to(logp) * logp).sum(-1), states, num_rows)

    def objective(
        self, value: Tensor, rows: Rows, old: Tensor | None, ref: Tensor | None, step: StepSize
    ) -> tuple[Tensor, Metrics]:
        """The rows' share of the loss at the estimate `value`, which carries gradient."""
        raise NotImplementedError

    # --- What a method may replace. ---

    def advantages(self, reward: np.ndarray, group: np.ndarray) -> np.ndarray:
        """float32 `[batch]`: rewards compared within their group, as the settings say."""
        return group_advantage(
            reward,
            group,
            scale_rewards=self.config.scale_rewards,
            baseline=self.config.baseline,
        )

    def action_mask(self, rollouts: Sequence[Rollout]) -> np.ndarray:
        """bool `[batch, completion]`: positions that count as the action."""
        return action_mask(rollouts, until_eos=self.config.completion_scope == "until_eos")

    def keep(self, reward: np.ndarray, group: np.ndarray) -> np.ndarray:
        """bool `[batch]`: rows that may enter the update at all."""
        return np.ones(len(reward), dtype=bool)

    def adjust(self, rollouts: Sequence[Rollout], reward: np.ndarray) -> np.ndarray:
        """Rewards as the method counts them, float32 `[batch]`; NaN stays NaN."""
        return reward

    def extra(
        self,
        rollouts: Sequence[Rollout],
        reward: np.ndarray,
        group: np.ndarray,
        step_rewards: Sequence[np.ndarray] | None,
    ) -> tuple[dict[str, np.ndarray], Metrics]:
        """What the states and the objective need besides the usual: arrays `[batch, ...]`, and metrics."""
        return {}, {}

    def score(self, denoiser: Denoiser, batch: TrainBatch, micro: MicroBatch, states: States) -> Tensor:
        """What the model says at the targets, `[states, completion]`, 0 elsewhere."""
        rows = list(micro.rows)
        prompts = [batch.prompt_ids[row] for row in rows]
        return state_logp(denoiser, prompts, batch.completion_ids[rows], states, self.temperature)

    def state_tokens(self, batch: TrainBatch, row: int) -> int:
        """Tokens of the input that one state of a row makes."""
        completion = batch.completion_ids.shape[1]
        return sequence_tokens(len(batch.prompt_ids[row]), completion, self.setting.spec)

    def has_loss(self, batch: TrainBatch) -> np.ndarray:
        """bool `[batch]`: rows that can move the weights. Without KL, a row with advantage 0 cannot."""
        return (batch.advantage != 0) | self.needs_reference

    def partial_decodes(self, groups: Sequence[RolloutGroup]) -> list[list[np.ndarray]]:
        """See `Trainer.partial_decodes`."""
        return [[] for _ in flatten(groups)]

    def rewards_by_step(
        self, groups: Sequence[RolloutGroup], step_rewards: Sequence[np.ndarray]
    ) -> list[np.ndarray] | None:
        """See `Trainer.rewards_by_step`."""
        return None

    # --- What `Trainer` asks for. ---

    def prepare(
        self,
        groups: Sequence[RolloutGroup],
        scores: Scores,
        *,
        policy_version: int,
        seed: int,
        step_rewards: Sequence[np.ndarray] | None = None,
    ) -> tuple[TrainBatch | None, Metrics]:
        """See `Trainer.prepare`. Aborted rollouts are left out too: their canvas is not a completion."""
        rollouts = flatten(groups)
        sizes = [len(group.rollouts) for group in groups]
        group: np.ndarray = np.repeat(np.arange(len(groups), dtype=np.int32), sizes)
        usable = _usable(rollouts, scores, step_rewards)
        every_reward = self.adjust(rollouts, scores.reward)
        metrics: Metrics = {"reward/excluded": float(len(rollouts) - usable.sum())}
        if not usable.any():
            return None, metrics
        metrics |= reward_metrics(scores.reward[usable], group[usable])
        usable[usable] = self.keep(every_reward[usable], group[usable])
        metrics["reward/filtered"] = float(len(rollouts) - usable.sum()) - metrics["reward/excluded"]
        if not usable.any():
            return None, metrics
        index = np.flatnonzero(usable)
        steps = None if step_rewards is None else [step_rewards[i] for i in index]
        rows, reward, group = [rollouts[i] for i in index], every_reward[index], group[index]
        advantage = self.advantages(reward, group)
        extra, more = self.extra(rows, reward, group, steps)
        batch = TrainBatch(
            prompt_ids=tuple(row.prompt_ids for row in rows),
            completion_ids=np.stack([row.completion_ids for row in rows]),
            loss_mask=self.action_mask(rows),
            advantage=advantage,
            seed=np.array([derive_seed(seed, "corruption", row.seed) for row in rows], dtype=np.int64),
            group=group,
            policy_version=policy_version,
            extra=extra,
        )
        return batch, metrics | {"advantage/abs_mean": float(np.abs(advantage).mean(dtype=np.float64))} | more

    def prepare_pairs(
        self, pairs: Sequence[Pair], *, policy_version: int, seed: int
    ) -> tuple[TrainBatch | None, Metrics]:
        """See `Trainer.prepare_pairs`: methods that compare rollouts have no use for them."""
        raise NotImplementedError

    def minibatches(self, batch: TrainBatch, inner: int, num_minibatches: int) -> list[np.ndarray]:
        """Whole groups in an order of their own for each pass; rows without loss are counted in."""
        seed = derive_seed(int(batch.seed[0]), "minibatches", inner)
        return shuffle_groups(batch.group, num_minibatches, seed)

    def micro_batches(
        self, batch: TrainBatch, rows: Sequence[int], token_budget: int, inner: int = 0
    ) -> list[MicroBatch]:
        """Rows without loss are not run. A row whose states together exceed the budget is split over them."""
        counts = self.num_states(batch)
        run = self.has_loss(batch) & (counts > 0)
        work = [
            (self.state_tokens(batch, row), int(counts[row]), row)
            for row in (int(row) for row in rows)
            if run[row]
        ]
        micro: list[MicroBatch] = []
        for part in share_states(work, token_budget):
            most = max(count for _, count, _ in part)
            fitting = most if len(part) > 1 else min(most, max(1, token_budget // part[0][0]))
            for first in range(0, most, fitting):
                states = tuple(range(first, min(first + fitting, most)))
                micro.append(MicroBatch(tuple(row for *_, row in part), states, whole=fitting == most))
        return micro

    def step_size(self, batch: TrainBatch, rows: Sequence[int] | np.ndarray) -> StepSize:
        """Rows, actions and states of an optimizer step."""
        index, run = np.asarray(rows, dtype=np.int64), self.has_loss(batch)
        actions = batch.loss_mask.sum(1)
        num_tokens = max(1.0, float(actions[index].sum()))
        return StepSize(
            num_rows=len(index),
            num_tokens=num_tokens,
            num_units=max(1, int(self.num_states(batch)[index].sum())),
            num_counted=max(1e-9, len(index) * float(run.mean())),
            num_counted_tokens=max(1e-9, num_tokens * float(actions[run].sum()) / max(1, actions.sum())),
        )

    def needs_current(self, micro: MicroBatch) -> bool:
        """Split rows of a loss that is not a sum over states."""
        return not micro.whole and not self.separable

    def estimate(self, denoiser: Denoiser, batch: TrainBatch, micro: MicroBatch, inner: int) -> Tensor:
        """See `Trainer.estimate`."""
        states = self._micro_states(batch, micro, inner)
        return self.combine(self.score(denoiser, batch, micro, states), states, len(micro.rows))

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
        """See `Trainer.loss`. Where rows are split, value and metrics are counted with the first state."""
        states = self._micro_states(batch, micro, inner)
        value = self.combine(self.score(denoiser, batch, micro, states), states, len(micro.rows))
        partial = self.needs_current(micro)
        if partial:
            assert current is not None, "rows split over their states need their whole estimate"
            # Chain rule: the loss is formed at the whole value, its gradient flows through these states.
            value = current + (value - value.detach())
        loss, metrics = self.objective(value, self._rows(batch, micro, states, value, inner), old, ref, step)
        if partial and 0 not in micro.states:
            return loss - loss.detach(), {}
        return loss, metrics

    def blocks(self, batch: TrainBatch, rows: Sequence[int]) -> Tensor:
        """The model's block of each completion position, int64 `[rows, completion]`."""
        lengths = [len(batch.prompt_ids[row]) for row in rows]
        return block_of_positions(lengths, batch.completion_ids.shape[1], self.setting.spec)

    def _micro_states(self, batch: TrainBatch, micro: MicroBatch, inner: int) -> States:
        states = self.states(batch, list(micro.rows), inner)
        if micro.whole:
            return states
        return states.take(torch.isin(states.number, torch.tensor(micro.states)))

    def _rows(self, batch: TrainBatch, micro: MicroBatch, states: States, value: Tensor, inner: int) -> Rows:
        index = list(micro.rows)
        # A row that is split is judged as a whole, unless the loss is a sum over its states.
        judged = self.states(batch, index, inner) if self.needs_current(micro) else states
        count = judged.target.double() if judged.stands_for is None else judged.stands_for
        zeros = count.new_zeros(len(index), batch.completion_ids.shape[1])
        stands_for = zeros.scatter_reduce(0, judged.row[:, None].expand_as(count), count, "amax")
        return Rows(
            advantage=torch.tensor(batch.advantage[index]).to(value),
            loss_mask=torch.from_numpy(batch.loss_mask[index]).to(value.device),
            live=(stands_for > 0).to(value.device),
            stands_for=stands_for.to(value),
            states=judged,
            extra={name: _tensor(values[index], value) for name, values in batch.extra.items()},
        )


def share_states(work: Sequence[tuple[int, int, int]], token_budget: int) -> list[list[tuple[int, int, int]]]:
    """Share rows out over passes, longest first, such that no pass exceeds a budget of padded tokens.

    Args:
        work: (tokens of a state, number of states, row) of each row.
        token_budget: bound on (states of a pass) x (tokens of its longest one). A row above it has a pass of
            its own.
    """
    passes: list[list[tuple[int, int, int]]] = []
    states = 0
    for item in sorted(work, key=lambda item: (-item[0], -item[1])):
        if passes and (states + item[1]) * passes[-1][0][0] <= token_budget:
            passes[-1].append(item)
            states += item[1]
        else:
            passes.append([item])
            states = item[1]
    return passes


def sum_states(values: Tensor, states: States, num_rows: int) -> Tensor:
    """Sum `[states, ...]` over the states of each row: `[rows, ...]`."""
    zeros = values.new_zeros(num_rows, *values.shape[1:])
    return zeros.index_add(0, states.row.to(values.device), values)


def place_states(values: Tensor, states: States, num_rows: int, num_states: int) -> Tensor:
    """`[states, ...]` at their places in `[rows, num_states, ...]`, zeros elsewhere."""
    zeros = values.new_zeros(num_rows * num_states, *values.shape[1:])
    where = (states.row * num_states + states.number).to(values.device)
    return zeros.index_add(0, where, values).unflatten(0, (num_rows, num_states))


def stack_metrics(values: Mapping[str, Tensor]) -> Metrics:
    """Scalars as numbers, in one transfer from the device for all of them."""
    stacked = torch.stack([value.detach().double() for value in values.values()])
    return dict(zip(values, stacked.tolist(), strict=True))


def _usable(
    rollouts: Sequence[Rollout], scores: Scores, step_rewards: Sequence[np.ndarray] | None
) -> np.ndarray:
    """bool `[rollouts]`: whole completions whose rewards are all known."""
    aborted = np.array([rollout.stop_reason == STOP_ABORTED for rollout in rollouts], dtype=bool)
    usable = np.isfinite(scores.reward) & ~scores.failed & ~aborted
    if step_rewards is not None:
        usable &= np.array([bool(np.isfinite(rewards).all()) for rewards in step_rewards])
    return usable


def _tensor(values: np.ndarray, like: Tensor) -> Tensor:
    """On the device of `like`; floats in its dtype, other kinds as they are."""
    tensor = torch.from_numpy(np.ascontiguousarray(values)).to(like.device)
    return tensor.to(like.dtype) if tensor.is_floating_point() else tensor
