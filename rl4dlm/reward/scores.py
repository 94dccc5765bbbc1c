"""From what reward functions returned to the `Scores` of a batch: weights, exclusions, counts, messages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rl4dlm.recipe.sections import RewardConfig
from rl4dlm.types import Scores

MAX_MESSAGES = 5
_MESSAGE_CHARS = 500
_LARGEST = float(np.finfo(np.float32).max)


@dataclass
class Outcome:
    """What one function made of some samples of a batch."""

    name: str
    """Of the function."""
    values: dict[int, float | None] = field(default_factory=dict)
    """By index in the batch; None = not applicable."""
    failures: dict[int, str] = field(default_factory=dict)
    """By index in the batch: the kind of failure."""
    messages: list[str] = field(default_factory=list)
    metrics: list[tuple[str, float]] = field(default_factory=list)

    def accept(self, row: int, value: float | None) -> None:
        """Take a value; one that is not finite in float32 fails the sample."""
        if value is None or abs(value) <= _LARGEST:
            self.values[row] = value
        else:
            self.fail(row, "not_finite", f"returned {value}")

    def fail(self, row: int, kind: str, message: str) -> None:
        """Note that the function failed on a sample."""
        self.failures[row] = kind
        self.messages.append(f"{self.name}: {kind}: {message}"[:_MESSAGE_CHARS])


def combine(count: int, weights: Mapping[str, float], outcomes: Sequence[Outcome]) -> Scores:
    """Weigh the functions' values into one reward per sample.

    A sample on which a function failed gets NaN and is marked as failed. A function that said None adds
    nothing to the sum; where all of them said None the reward is NaN without a failure: the sample leaves the
    update too, and `num_not_applicable` counts it.

    Args:
        count: samples in the batch.
        weights: by function name, in the recipe's order.
        outcomes: together they cover every function and sample.
    """
    components: dict[str, np.ndarray] = {name: np.full(count, np.nan, np.float32) for name in weights}
    failed: np.ndarray = np.zeros(count, bool)
    errors: Counter[str] = Counter()
    kinds: dict[int, str] = {}
    logged: dict[str, list[float]] = {}
    for outcome in outcomes:
        for row, value in outcome.values.items():
            components[outcome.name][row] = np.nan if value is None else value
        failed[list(outcome.failures)] = True
        errors.update(outcome.failures.values())
        kinds = outcome.failures | kinds
        for name, value in outcome.metrics:
            logged.setdefault(name, []).append(value)
    stacked = np.stack([components[name] for name in weights]).astype(np.float64)  # [functions, batch]
    total = np.nansum(stacked * np.array(list(weights.values()))[:, None], axis=0)
    excluded = failed | np.isnan(stacked).all(axis=0)
    return Scores(
        reward=np.where(excluded, np.nan, total).astype(np.float32),
        components=components,
        errors=dict(errors),
        failed=failed,
        messages=_first_distinct([message for outcome in outcomes for message in outcome.messages]),
        logged={name: float(np.mean(values)) for name, values in logged.items()},
        kinds=kinds,
    )


def merge(parts: Sequence[Scores]) -> Scores:
    """One `Scores` for a batch that several reward workers scored in consecutive parts.

    Raises:
        ValueError: there are no parts.
    """
    if not parts:
        raise ValueError("there are no scores to merge")
    errors: Counter[str] = Counter()
    kinds: dict[int, str] = {}
    start = 0
    for part in parts:
        errors.update(part.errors)
        kinds |= {start + row: kind for row, kind in part.kinds.items()}
        start += len(part.reward)
    return Scores(
        reward=np.concatenate([part.reward for part in parts]),
        components={
            name: np.concatenate([part.components[name] for part in parts]) for name in parts[0].components
        },
        errors=dict(errors),
        failed=np.concatenate([part.failed for part in parts]),
        messages=_first_distinct([message for part in parts for message in part.messages]),
        logged=_average_logged(parts),
        kinds=kinds,
    )


def num_not_applicable(scores: Scores) -> int:
    """Samples for which every function said None: without a reward, and without a failure."""
    return int(np.sum(np.isnan(scores.reward) & ~scores.failed))


def too_many_failures(scores: Scores, config: RewardConfig) -> str | None:
    """Why the run must stop, where more than `max_error_rate` of a batch failed; else None."""
    count, failed = len(scores.failed), int(scores.failed.sum())
    if count == 0 or failed <= config.max_error_rate * count:
        return None
    kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(scores.errors.items()))
    first = "\n".join(scores.messages)
    return (
        f"the reward of {failed} of {count} samples failed, more than reward.max_error_rate = "
        f"{config.max_error_rate:g} allows ({kinds}):\n{first}\n"
        "Fix: mend the reward function (`rl4dlm rewards test PATH` tries it on hostile text), "
        "or raise reward.timeout_s where it is merely slow."
    )


def _first_distinct(messages: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(messages))[:MAX_MESSAGES]


def _average_logged(parts: Sequence[Scores]) -> dict[str, float]:
    """Averages weighted by the samples of each part that logged the name."""
    values: dict[str, list[tuple[float, int]]] = {}
    for part in parts:
        for name, value in part.logged.items():
            values.setdefault(name, []).append((value, len(part.reward)))
    return {
        name: sum(value * count for value, count in pairs) / sum(count for _, count in pairs)
        for name, pairs in values.items()
    }
