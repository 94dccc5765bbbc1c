"""What a sink of the tracker is, and what a run reports at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rl4dlm.tracking.samples import SampleRow

Metrics = Mapping[str, float]


@dataclass(frozen=True)
class Summary:
    """The end of a run in figures: what the closing table shows.

    Example: `Summary(updates=60, wall_s=312.0, before={"eval/greedy_accuracy": 0.17},
    after={"eval/greedy_accuracy": 0.64}, places={"report": Path("runs/quickstart/report.html")})`.
    """

    updates: int
    """Updates that the policy has had, those before a resume included."""
    wall_s: float
    """Seconds that the run has taken, waits between a kill and a resume excluded."""
    before: Metrics = field(default_factory=dict)
    """Metrics of the first evaluation."""
    after: Metrics = field(default_factory=dict)
    """Metrics of the last evaluation."""
    places: Mapping[str, Path] = field(default_factory=dict)
    """What the run left behind, by name, in the order in which it is shown."""


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found, as the sinks get it."""

    update: int
    metrics: Metrics
    samples: Sequence[SampleRow]
    decode: Mapping[str, Any]
    """Settings of the sampler, written beside the score; any JSON value by name."""
    warnings: Mapping[str, str] = field(default_factory=dict)
    """What should be said of the rewards, by what makes two warnings one."""


@dataclass(frozen=True)
class PhaseStep:
    """One step of a phase that has steps."""

    phase: str
    step: int
    metrics: Metrics


class Sink:
    """One destination of a run's metrics. It overrides what it shows; `time_s` counts from its start."""

    def phase(self, text: str, total: int | None, start: int) -> None:
        """The run now does `text`, which has `total` steps of which `start` are done; None: not counted."""

    def phase_step(self, step: PhaseStep, time_s: float) -> None:
        """A step of the current phase is done."""

    def end_phase(self) -> None:
        """The current phase is over and no other one begins yet."""

    def log(self, update: int, metrics: Metrics, time_s: float) -> None:
        """An update is done."""

    def evaluation(self, evaluation: Evaluation, time_s: float) -> None:
        """The weights after an update have been evaluated."""

    def warn(self, text: str) -> None:
        """Something is unwise or degraded; the run continues."""

    def note(self, text: str) -> None:
        """Something worth knowing."""

    def finish(self, summary: Summary) -> None:
        """The run has ended well."""

    def fail(self, message: str) -> None:
        """The run has failed."""

    def interrupt(self, message: str) -> None:
        """The run was interrupted from outside."""

    def close(self) -> None:
        """Release everything. Called once, after `finish`, `fail` or `interrupt`."""
