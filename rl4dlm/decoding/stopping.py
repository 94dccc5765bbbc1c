"""Stopping: when a row is finished, and how long its completion is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from rl4dlm.recipe.samplers import EosPolicy


def ends_row(stop: Tensor, masked: Tensor, active: Tensor, is_last: Tensor, eos_policy: EosPolicy) -> Tensor:
    """Whether a row is finished after a step.

    Blocks are filled from left to right. A policy never acts on a stop id to the left of which a mask is
    left, so what it saves is what comes after the end of text: filling it with end-of-text changes nothing at
    or before the first stop id.

    Args:
        stop: bool `[rows, completion]`: holds an id that ends the text.
        masked: bool `[rows, completion]`.
        active: bool `[rows, completion]`: belongs to the active block.
        is_last: bool `[rows]`: the active block is the canvas's last.
        eos_policy: what ends a row beside its last block: `none` nothing; `block_eos` a finished block with a
            stop id up to its end; `block_all_eos` a finished block of nothing but stop ids; `accepted_eos` a
            stop id before which no mask is left, also in the middle of a block.

    Returns:
        bool `[rows]`.
    """
    decoded = active.flip(1).cumsum(dim=1).flip(1) > 0  # up to the end of the active block
    done = ~(masked & decoded).any(dim=1)
    if eos_policy == "accepted_eos":
        return (done & is_last) | (stop & (masked.cumsum(dim=1) == 0)).any(dim=1)
    if eos_policy == "block_eos":
        is_last = is_last | (stop & decoded).any(dim=1)
    elif eos_policy == "block_all_eos":
        is_last = is_last | (stop | ~active).all(dim=1)
    return done & is_last


def completion_length(tokens: np.ndarray, stop_ids: Sequence[int]) -> tuple[int, bool]:
    """Length up to and including the first stop id.

    Args:
        tokens: int `[completion]`.
        stop_ids: ids that end the text.

    Returns:
        The length (the whole canvas when nothing stops it), and whether a stop id was found.
    """
    stops = np.flatnonzero(np.isin(tokens, np.asarray(stop_ids)))
    return (int(stops[0]) + 1, True) if len(stops) else (len(tokens), False)
