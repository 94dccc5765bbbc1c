"""Stopping: when a row is finished, and how long its completion is (specs: decoding 12.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from torch import Tensor

EosPolicy = Literal["none", "block_eos"]


def ends_row(is_last: Tensor, is_stop: Tensor, eos_policy: EosPolicy) -> Tensor:
    """Whether a row is finished once its active block is.

    Blocks are filled from left to right, so no mask remains to the left of a stop id in a finished block: the
    blocks after it can be filled with end-of-text without changing anything at or before it.

    Args:
        is_last: bool `[rows]`, the active block is the canvas's last.
        is_stop: bool `[rows, positions]`, the decoded positions that hold an id that ends the text.
        eos_policy: `block_eos` ends a row at a block that holds a stop id; `none` at the last block only.

    Returns:
        bool `[rows]`; to be read only where no mask is left up to the end of the active block.
    """
    if eos_policy == "none":
        return is_last
    return is_last | is_stop.any(dim=1)


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
