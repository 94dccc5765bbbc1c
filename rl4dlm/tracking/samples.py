"""Sampled completions as the trackers show them. What a model writes is hostile: never printed as it is."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rl4dlm.types import RolloutGroup, Scores

_LINE_CHARACTERS = "\n\t"


@dataclass(frozen=True)
class SampleRow:
    """One completion of an evaluation.

    Example: `SampleRow(update=0, prompt="872744=", completion="244778", reward=1.0, rewards={"sort": 1.0},
    correct=True, prompt_uid=7, sample=0)`.
    """

    update: int
    """0 is the evaluation before training."""
    prompt: str
    completion: str
    reward: float
    """Weighted sum over functions; NaN where a reward failed."""
    rewards: Mapping[str, float] = field(default_factory=dict)
    """Raw value per reward function; NaN = not applicable or failed."""
    correct: bool | None = None
    """None where correctness is not defined."""
    prompt_uid: int = 0
    sample: int = 0
    """Index within the prompt's completions, from 0."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What reward functions logged of it through TRL's `log_extra`."""


def shown_samples(rows: Sequence[SampleRow], count: int) -> list[SampleRow]:
    """The `count` rows that are displayed: first samples of different prompts before second samples."""
    return sorted(rows, key=lambda row: row.sample)[:count]


def visible(text: str, *, limit: int | None = None, lines: bool = False) -> str:
    """Text from a model made safe to display: control and format characters become visible escapes.

    Terminal escapes, bidirectional overrides and lone surrogates would otherwise reach a terminal or page.

    Args:
        text: any string.
        limit: characters of `text` that are kept; what is left out is counted. None: all.
        lines: keep newlines and tabs as they are; otherwise they are escaped too.
    """
    rest = 0 if limit is None else max(0, len(text) - limit)
    kept = text[: len(text) - rest] if rest else text
    shown = "".join(char if _is_harmless(char, lines) else _escape(char) for char in kept)
    return f"{shown} ... ({rest} more characters)" if rest else shown


def _is_harmless(char: str, lines: bool) -> bool:
    # str.isprintable refuses every space but U+0020; the other ones (Zs) are ordinary in many languages.
    return char.isprintable() or unicodedata.category(char) == "Zs" or (lines and char in _LINE_CHARACTERS)


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def sample_rows(
    groups: Sequence[RolloutGroup], scores: Scores, correct: np.ndarray | None, update: int
) -> list[SampleRow]:
    """Completions with their rewards, for tables; `correct` None: correctness is not defined."""
    rows = []
    pairs = [(group.prompt, rollout) for group in groups for rollout in group.rollouts]
    for i, (prompt, rollout) in enumerate(pairs):
        rows.append(
            SampleRow(
                update=update,
                prompt=prompt.text,
                completion=rollout.text,
                reward=float(scores.reward[i]),
                rewards={name: float(values[i]) for name, values in scores.components.items()},
                correct=None if correct is None else bool(correct[i]),
                prompt_uid=prompt.uid,
                sample=rollout.sample,
                extra={column: values[i] for column, values in scores.extra.items()},
            )
        )
    return rows
