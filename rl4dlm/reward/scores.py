"""From what reward functions returned to the `Scores` of a batch: weights, exclusions, counts, messages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

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
    bounds: tuple[float, float] | None = None
    """Lowest and highest value that the function can return, where it declares them."""
    values: dict[int, float | None] = field(default_factory=dict)
    """By index in the batch; None = not applicable."""
    failures: dict[int, str] = field(default_factory=dict)
    """By index in the batch: the kind of failure."""
    messages: list[str] = field(default_factory=list)
    warnings: dict[str, str] = field(default_factory=dict)
    """What the user should know once though no completion was lost, by a name of the matter."""
    metrics: list[tuple[str, float, int]] = field(default_factory=list)
    """What it logged: name, value, and the samples of the call that logged it."""
    extra: dict[str, dict[int, Any]] = field(default_factory=dict)
    """What it logged of single samples, by column and index in the batch."""

    def accept(self, row: int, value: float | None) -> None:
        """Take a value; one that is not finite in float32 fails the sample."""
        if value is None or abs(value) <= _LARGEST:
            self.values[row] = value
        else:
            self.fail(row, "not_finite", f"returned {value}")

    def warn(self, matter: str, message: str) -> None:
        """Note something that should be said once in a run."""
        self.warnings.setdefault(f"{self.name}: {matter}", f"{self.name}: {message}"[: 2 * _MESSAGE_CHARS])

    def shifted(self, first: int) -> Outcome:
        """The same of samples that stand at `first` and behind it in a larger batch."""
        return replace(
            self,
            values={first + row: value for row, value in self.values.items()},
            failures={first + row: kind for row, kind in self.failures.items()},
            extra={
                column: {first + row: value for row, value in values.items()}
                for column, values in self.extra.items()
            },
        )

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
    for outcome in outcomes:
        for row, value in outcome.values.items():
            components[outcome.name][row] = np.nan if value is None else value
        failed[list(outcome.failures)] = True
        errors.update(outcome.failures.values())
        kinds = outcome.failures | kinds
    stacked = np.stack([components[name] for name in weights]).astype(np.float64)  # [functions, batch]
    total = np.nansum(stacked * np.array(list(weights.values()))[:, None], axis=0)
    excluded = failed | np.isnan(stacked).all(axis=0)
    return Scores(
        reward=np.where(excluded, np.nan, total).astype(np.float32),
        components=components,
        errors=dict(errors),
        failed=failed,
        messages=_first_distinct([message for outcome in outcomes for message in outcome.messages]),
        warnings={matter: text for outcome in outcomes for matter, text in outcome.warnings.items()},
        logged=_averages([entry for outcome in outcomes for entry in outcome.metrics]),
        extra=_extra_columns(count, outcomes),
        kinds=kinds,
        bounds={outcome.name: outcome.bounds for outcome in outcomes if outcome.bounds is not None},
    )


def matters_of(scores: Scores) -> dict[str, str]:
    """What should be said of a batch, by what makes two warnings one: a matter is told once in a run."""
    return {message: message for message in scores.messages} | dict(scores.warnings)


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


def _averages(logged: Sequence[tuple[str, float, int]]) -> dict[str, float]:
    """What `log_metric` was given, averaged over the calls, each weighted by its samples."""
    sums: dict[str, tuple[float, int]] = {}
    for name, value, count in logged:
        total, samples = sums.get(name, (0.0, 0))
        sums[name] = (total + value * count, samples + count)
    return {name: total / samples for name, (total, samples) in sums.items()}


def _extra_columns(count: int, outcomes: Sequence[Outcome]) -> dict[str, tuple[Any, ...]]:
    columns: dict[str, list[Any]] = {}
    for outcome in outcomes:
        for column, values in outcome.extra.items():
            filled = columns.setdefault(column, [None] * count)
            for row, value in values.items():
                filled[row] = value
    return {column: tuple(values) for column, values in columns.items()}
