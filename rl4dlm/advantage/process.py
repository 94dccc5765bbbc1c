"""Process rewards: parts of a completion are judged one by one, and each judgement lands on the tokens that
ended its part.

Source: TraceRL, arXiv:2509.06949, process rewards: chunks of a fixed length, the text up to the end
of each is scored, scores are compared within the group at equal chunk index.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rl4dlm.advantage.gae import place_on_last_step
from rl4dlm.advantage.group import ScaleRewards, group_advantage


def chunk_ends(length: int, chunk_length: int) -> list[int]:
    """Where the chunks of a completion of `length` tokens end; the last one may be shorter.

    Example: `chunk_ends(10, 4) == [4, 8, 10]`.
    """
    return [*range(chunk_length, length, chunk_length), length]


def compare_chunks(
    rewards: Sequence[np.ndarray], group: np.ndarray, *, scale_rewards: ScaleRewards
) -> list[np.ndarray]:
    """Chunk rewards compared within the group, at each chunk index over the completions that have it.

    Args:
        rewards: per completion float `[chunks]`, finite.
        group: int `[batch]`.

    Returns:
        float32 arrays of the same shapes.
    """
    compared = [np.zeros(len(row), dtype=np.float32) for row in rewards]
    for index in range(max((len(row) for row in rewards), default=0)):
        have = [i for i, row in enumerate(rewards) if len(row) > index]
        values = np.array([rewards[i][index] for i in have])
        for i, value in zip(
            have, group_advantage(values, group[have], scale_rewards=scale_rewards), strict=True
        ):
            compared[i][index] = value
    return compared


def place_chunks(
    rewards: np.ndarray, ends: Sequence[int], step: np.ndarray, trainable: np.ndarray
) -> np.ndarray:
    """Each chunk's reward on the tokens of the chunk's last step, float32 `[completion]`.

    Args:
        rewards: float `[chunks]`.
        ends: where the chunks end.
        step: int `[completion]`, (shrunk) step ids.
        trainable: bool `[completion]`.
    """
    placed = np.zeros(len(step), np.float32)
    position, start = np.arange(len(step)), 0
    for reward, end in zip(rewards.tolist(), ends, strict=True):
        inside = trainable & (position >= start) & (position < end)
        placed += place_on_last_step(reward, step, inside)
        start = end
    return placed
