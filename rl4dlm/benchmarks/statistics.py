"""Figures made of rewards and verdicts, with their 95 % confidence intervals. Plain Python, no I/O."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

Z95 = 1.959963984540054
"""Two-sided 95 % quantile of the standard normal distribution."""


@dataclass(frozen=True)
class Figure:
    """A mean with its interval.

    Example: `Figure(0.69, (0.66, 0.72), 1130)`.
    """

    value: float
    ci95: tuple[float, float] | None
    """Lower and upper end; None where the spread of one value is not known."""
    count: int
    """Observations."""

    def as_json(self) -> dict[str, object]:
        """`value`, `ci95` and `n`, as they are written to files."""
        return {"value": self.value, "ci95": None if self.ci95 is None else list(self.ci95), "n": self.count}


class RunningMean:
    """Mean and interval of a stream of values, in constant memory.

    Where every value is 0 or 1 the interval is Wilson's, which never leaves [0, 1] and is not empty at
    either end; else it is the normal one, mean +- 1.96 standard errors.

    Source: Welford, Technometrics 4 (1962), for the running sum of squared deviations.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean = 0.0
        self._squares = 0.0
        self._binary = True

    def add(self, value: float) -> None:
        """Take one finite value."""
        self.count += 1
        before = value - self._mean
        self._mean += before / self.count
        self._squares += before * (value - self._mean)
        self._binary = self._binary and value in (0.0, 1.0)

    def figure(self) -> Figure | None:
        """The mean so far; None before the first value."""
        if self.count == 0:
            return None
        if self._binary:
            share = round(self._mean * self.count) / self.count
            return Figure(share, wilson_interval(share, self.count), self.count)
        if self.count == 1:
            return Figure(self._mean, None, 1)
        half = Z95 * math.sqrt(self._squares / (self.count - 1) / self.count)
        return Figure(self._mean, (self._mean - half, self._mean + half), self.count)


def mean_figure(values: Sequence[float]) -> Figure | None:
    """Mean and interval of finite values; None where there are none."""
    running = RunningMean()
    for value in values:
        running.add(float(value))
    return running.figure()


def mean_share(values: Sequence[float]) -> Figure | None:
    """Mean and interval of values that lie in [0, 1] by their nature; the interval does too."""
    figure = mean_figure(values)
    if figure is None or figure.ci95 is None:
        return figure
    low, high = figure.ci95
    return replace(figure, ci95=(max(0.0, low), min(1.0, high)))


def wilson_interval(share: float, count: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's interval of a share of `count` independent trials.

    Source: Wilson, JASA 22 (1927).

    Raises:
        ValueError: no trials.
    """
    if count < 1:
        raise ValueError("an interval of no trials does not exist")
    scale = 1 + z * z / count
    centre = (share + z * z / (2 * count)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    # At the ends the formula gives exactly 0 and 1, up to rounding.
    return 0.0 if share == 0 else centre - half, 1.0 if share == 1 else centre + half


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Probability that `k` of the `num_samples` completions, drawn without replacement, hold a correct one.

    Source: Codex, arXiv:2107.03374, Eq. (1): 1 - C(n - c, k) / C(n, k), unbiased for pass@k when n >= k.

    Raises:
        ValueError: not 1 <= k <= n, or not 0 <= c <= n.
    """
    if not 1 <= k <= num_samples or not 0 <= num_correct <= num_samples:
        raise ValueError(f"pass@{k} of {num_correct} correct among {num_samples} samples does not exist")
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def pass_figures(correct: Sequence[Sequence[bool]]) -> dict[str, Figure]:
    """`avg@n` and `pass@k` for k = 1, 2, 4, ... and n, over prompts with n verdicts each.

    Intervals are over prompts, whose samples are not independent of each other.

    Args:
        correct: per prompt its n verdicts.

    Raises:
        ValueError: no prompts, or prompts with different numbers of verdicts.
    """
    sizes = {len(verdicts) for verdicts in correct}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(f"prompts need one number of verdicts each, not {sorted(sizes)}")
    (n,) = sizes
    counts = [sum(verdicts) for verdicts in correct]
    figures = {f"avg@{n}": mean_share([c / n for c in counts])}
    powers = [2**i for i in range(n.bit_length()) if 2**i < n]
    for k in [*powers, n]:
        figures[f"pass@{k}"] = mean_share([pass_at_k(n, c, k) for c in counts])
    return {name: figure for name, figure in figures.items() if figure is not None}
