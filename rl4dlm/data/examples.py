"""What supervised fine-tuning learns from: a prompt and the completion that follows it, as token ids."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Example:
    """One row of the data, ready for fine-tuning.

    Example: `Example(uid=7, prompt_ids=ids("872744="), completion_ids=ids("244778"))`.
    """

    uid: int
    """Stable identity of the row within its split."""
    prompt_ids: np.ndarray
    """int32 `[prompt]`: given, never hidden, never trained."""
    completion_ids: np.ndarray
    """int32 `[completion]`, without the end-of-text that follows it."""
    ended: bool = True
    """End-of-text follows. False where the completion was cut, or is a piece of a longer text."""
    filled: bool = True
    """The rest of the canvas may be filled with end-of-text; False for texts without a prompt."""
    step_map: np.ndarray | None = None
    """int32 `[completion]`: the step in which a sampler committed each token, -1 where it did not."""
