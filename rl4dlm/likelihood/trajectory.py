"""The states of a recorded trajectory: what is evaluated to score every token given what the sampler saw.

    log pi(tau) = sum over steps t, positions j in tau(t) of log p(y_j | q, tau(1 .. t - 1))

Shrinkage merges every `s` consecutive steps: fewer states, and tokens of a merged step see a coarser context.
Sources: TraceRL, arXiv:2509.06949 (shrinkage, rounds over blocks); d2, arXiv:2509.21474 (StepMerge, the same
with N = T / s segments); JustGRPO, arXiv:2601.15165 (left-to-right order).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rl4dlm.likelihood.states import States, block_of_positions
from rl4dlm.types import FORCED, SAMPLED, DenoiserSpec, Record, Rollout

VISIBLE = -1
"""Step id of positions that every state shows: they were given, not filled."""


def shrink_steps(step_map: np.ndarray, drawn: np.ndarray, block: np.ndarray, shrink: int) -> np.ndarray:
    """Merge every `shrink` consecutive steps of each block into the last of them.

    Args:
        step_map: int `[completion]`, the step that committed each position.
        drawn: bool `[completion]`: these positions define the steps; the others keep their ids.
        block: int `[completion]`: steps are counted within a block; one block for full attention.
        shrink: s, at least 1; 1 changes nothing.

    Returns:
        int64 `[completion]`, step ids after merging.
    """
    merged = step_map.astype(np.int64)
    for number in np.unique(block):
        inside = drawn & (block == number)
        steps, index = np.unique(merged[inside], return_inverse=True)
        if len(steps):
            last = np.minimum((index // shrink + 1) * shrink, len(steps)) - 1
            merged[inside] = steps[last]
    return merged


def rounds(step: np.ndarray, trainable: np.ndarray, block: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The states that score every trainable position once: in each, the next step of every block.

    With one block (full attention) this is one state per step. Blocks are independent given the clean blocks
    before them, so the doubled layout evaluates one step of all of them in one forward.

    Args:
        step: int `[completion]`, (shrunk) step ids.
        trainable: bool `[completion]`, positions to score.
        block: int `[completion]`.

    Returns:
        Per state bool `[completion]` twice: hidden, and scored. Hidden are the positions whose step is not
        before the block's step; positions that are no targets follow their own step ids.
    """
    states = []
    left = trainable.copy()
    never = np.iinfo(np.int64).max
    while left.any():
        first: np.ndarray = np.full(int(block.max()) + 1, never, dtype=np.int64)
        np.minimum.at(first, block[left], step[left].astype(np.int64))
        target = left & (step == first[block])
        states.append((step >= first[block], target))
        left = left & ~target
    return states


@dataclass(frozen=True)
class Trajectories:
    """What is known of some rows' trajectories; arrays are `[rows, completion]`."""

    step_map: np.ndarray
    """int: the step that committed each position; `VISIBLE` where it was given, after the last step where it
    was never filled by the policy."""
    drawn: np.ndarray
    """bool: filled by the policy; these positions define the steps that shrinkage merges."""
    trainable: np.ndarray
    """bool: to be scored; a subset of `drawn`."""
    block: np.ndarray
    """int: block of each position; all 0 for full attention."""

    def row_steps(self, row: int, shrink: int) -> np.ndarray:
        """The shrunk step ids of a row, int64 `[completion]`."""
        return shrink_steps(self.step_map[row], self.drawn[row], self.block[row], shrink)


def trajectory_states(trajectories: Trajectories, shrink: int) -> States:
    """The states of several trajectories, each trainable position a target exactly once, weight 1."""
    row, number, hidden, target = [], [], [], []
    for index in range(len(trajectories.step_map)):
        steps = trajectories.row_steps(index, shrink)
        made = rounds(steps, trajectories.trainable[index], trajectories.block[index])
        for state, (is_hidden, is_target) in enumerate(made):
            row.append(index)
            number.append(state)
            hidden.append(is_hidden)
            target.append(is_target)
    shape = (-1, trajectories.step_map.shape[1])
    targets = torch.from_numpy(np.array(target, dtype=bool).reshape(shape))
    return States(
        row=torch.tensor(row, dtype=torch.int64),
        number=torch.tensor(number, dtype=torch.int64),
        is_masked=torch.from_numpy(np.array(hidden, dtype=bool).reshape(shape)),
        target=targets,
        weight=targets.double(),
    )


def count_states(trajectories: Trajectories, shrink: int) -> np.ndarray:
    """States per row, int64 `[rows]`: the most shrunk steps with a target that any of its blocks has."""
    counts: np.ndarray = np.zeros(len(trajectories.step_map), dtype=np.int64)
    for index in range(len(counts)):
        pairs = _steps_by_block(trajectories, index, shrink)
        counts[index] = np.bincount(pairs[0]).max() if pairs.shape[1] else 0
    return counts


def count_steps(trajectories: Trajectories, shrink: int) -> np.ndarray:
    """Shrunk steps with a target, counted in every block, int64 `[rows]`."""
    counts: np.ndarray = np.zeros(len(trajectories.step_map), dtype=np.int64)
    for index in range(len(counts)):
        counts[index] = _steps_by_block(trajectories, index, shrink).shape[1]
    return counts


def _steps_by_block(trajectories: Trajectories, row: int, shrink: int) -> np.ndarray:
    """The distinct (block, shrunk step) pairs of a row's targets, int64 `[2, pairs]`."""
    steps, block = trajectories.row_steps(row, shrink), trajectories.block[row]
    wanted = trajectories.trainable[row]
    return np.unique(np.stack([block[wanted], steps[wanted]]), axis=1)


@dataclass(frozen=True)
class DrawnTokens(Record):
    """What was drawn, and how likely the sampler said that it was."""

    rollout_logp: np.ndarray
    """float32 `[rows, ...]`, nats, of the estimate's shape."""


@dataclass(frozen=True)
class TrajectoryRecord(DrawnTokens):
    """The recorded trajectories of a batch's rows; arrays `[rows, completion]`."""

    step_map: np.ndarray
    """int32, `VISIBLE` where a position was given."""
    drawn: np.ndarray
    """bool: positions whose tokens the policy drew."""
    block: np.ndarray
    """int64: the model's block of each position."""

    def trajectories(self, trainable: np.ndarray) -> Trajectories:
        """What scoring them needs to know.

        Args:
            trainable: bool `[rows, completion]`: positions to score.
        """
        return Trajectories(self.step_map, self.drawn, trainable, self.block)


def record_trajectories(rollouts: Sequence[Rollout], spec: DenoiserSpec) -> TrajectoryRecord:
    """The trajectories of some rollouts, for a model of these facts."""
    kind = np.stack([rollout.trace.kind for rollout in rollouts])
    lengths = [len(rollout.prompt_ids) for rollout in rollouts]
    return TrajectoryRecord(
        rollout_logp=np.stack([rollout.trace.rollout_logp for rollout in rollouts]).astype(np.float32),
        step_map=np.stack([rollout.trace.step_map for rollout in rollouts]),
        drawn=(kind == SAMPLED) | (kind == FORCED),
        block=block_of_positions(lengths, kind.shape[1], spec).numpy(),
    )
