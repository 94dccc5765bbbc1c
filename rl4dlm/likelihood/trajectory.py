"""The states of a recorded trajectory: what a trainer evaluates to score every token given what the sampler
saw.

Sources: TraceRL, arXiv:2509.06949 (shrinkage, rounds over blocks); specs/rl-algorithms 4.2, 4.3.
"""

from __future__ import annotations

import numpy as np


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
