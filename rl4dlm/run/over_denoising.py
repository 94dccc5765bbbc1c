"""The over-denoising filter: training prompts that the model answers right on the way and wrong in the end.

Source: MDPO, arXiv:2508.13148, which kept 2,840 of 40,000 prompts so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rl4dlm.data import PromptSource, training_prompt
from rl4dlm.errors import CheckpointError
from rl4dlm.tracking.files import JsonLines
from rl4dlm.types import Prompt

Verify = Callable[[Sequence[Prompt]], Sequence[np.ndarray]]
"""Decodes each prompt once. Per prompt bool `[steps]`: whether the answer predicted at a step is correct; the
finished answer comes last."""


def over_denoised_prompts(
    source: PromptSource,
    num_prompts: int,
    path: Path,
    verify: Verify,
    tell: Callable[[int, int], None],
    *,
    batch: int,
    first_weights: bool,
) -> list[int]:
    """Try training prompts and say which are over-denoised.

    Verdicts are written down as they come, so an interrupted filter continues where it was, and a resumed run
    trains on the prompts that it began with.

    Args:
        source: of the training prompts.
        num_prompts: how many are tried, from the first on; at most as many as there are.
        path: of the verdicts, a JSON line per prompt.
        verify: decodes and verifies.
        tell: called after each batch with the numbers of prompts tried and kept.
        batch: prompts decoded at once.
        first_weights: the weights at hand are those that the run began with.

    Returns:
        Numbers of the kept prompts, see `training_prompt`.

    Raises:
        CheckpointError: verdicts are missing, and the weights that gave them are gone.
    """
    total = num_tried(source, num_prompts)
    lines = JsonLines(path)
    verdicts = lines.keep(lambda row: True)
    if not first_weights and len(verdicts) < total:
        raise CheckpointError(
            f"{path} has the verdicts on {len(verdicts)} of {total} prompts, and the run has moved on: the "
            "weights that gave them are not there any more.\n"
            "Fix: put the file back, or start a new run."
        )
    for first in range(len(verdicts), total, batch):
        numbers = range(first, min(first + batch, total))
        prompts = [training_prompt(source, number) for number in numbers]
        for number, prompt, correct in zip(numbers, prompts, verify(prompts), strict=True):
            verdicts.append(_verdict(number, prompt, correct))
            lines.append(verdicts[-1])
        tell(len(verdicts), sum(map(_is_over_denoised, verdicts)))
    lines.close()
    return [verdict["number"] for verdict in verdicts if _is_over_denoised(verdict)]


def num_tried(source: PromptSource, num_prompts: int) -> int:
    """Prompts that the filter tries: those that are wanted, or all there are."""
    return num_prompts if source.num_train is None else min(num_prompts, source.num_train)


def _verdict(number: int, prompt: Prompt, correct: np.ndarray) -> dict[str, Any]:
    return {
        "number": number,
        "uid": prompt.uid,
        "num_steps": len(correct),
        "correct_steps": int(correct[:-1].sum()),
        "correct": bool(correct[-1]),
    }


def _is_over_denoised(verdict: Mapping[str, Any]) -> bool:
    """Right at some step, wrong in the end."""
    return bool(verdict["correct_steps"]) and not verdict["correct"]
