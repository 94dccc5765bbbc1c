"""What the files of a run folder tell about the run, read back for the report and the closing table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rl4dlm.errors import CheckpointError
from rl4dlm.tracking.files import (
    EVALUATIONS_FILE,
    EVENTS_FILE,
    METRICS_FILE,
    PHASES_FILE,
    RECIPE_FILE,
    SAMPLES_FILE,
    Row,
    tracked_rows,
)
from rl4dlm.tracking.samples import SampleRow

_NOT_METRICS = ("update", "time_s", "phase", "step", "decode")


@dataclass(frozen=True)
class Curve:
    """One metric over updates (or over the steps of a phase); points without a finite value are NaN."""

    name: str
    x: tuple[int, ...]
    y: tuple[float, ...]


@dataclass(frozen=True)
class RunHistory:
    """Everything that the tracked files of a run hold, in order of writing."""

    folder: Path
    metrics: list[Row]
    evaluations: list[Row]
    samples: list[SampleRow]
    phases: list[Row]
    events: list[Row]
    recipe_text: str
    """The resolved recipe as YAML; empty where the file is missing."""

    @classmethod
    def load(cls, folder: Path) -> RunHistory:
        """Read a run folder; files that are missing count as empty.

        Raises:
            CheckpointError: the folder holds no run, or a line of a file is broken.
        """
        events = tracked_rows(folder / EVENTS_FILE)
        if not events:
            raise CheckpointError(
                f"{folder}: no run was tracked here ({EVENTS_FILE} is missing or empty).\n"
                "Fix: give the folder of a run, by default runs/<run.name>."
            )
        recipe = folder / RECIPE_FILE
        return cls(
            folder=folder,
            metrics=tracked_rows(folder / METRICS_FILE),
            evaluations=tracked_rows(folder / EVALUATIONS_FILE),
            samples=[_sample(row) for row in tracked_rows(folder / SAMPLES_FILE)],
            phases=tracked_rows(folder / PHASES_FILE),
            events=events,
            recipe_text=recipe.read_text(encoding="utf-8") if recipe.is_file() else "",
        )

    def curves(self) -> dict[str, Curve]:
        """The metrics of the updates, by name, in order of first appearance."""
        return _curves(self.metrics, "update")

    def evaluation_curves(self) -> dict[str, Curve]:
        """The metrics of the evaluations, by name."""
        return _curves(self.evaluations, "update")

    def phase_curves(self) -> dict[str, dict[str, Curve]]:
        """The metrics of phases that have steps, by phase and name."""
        phases = dict.fromkeys(row["phase"] for row in self.phases)
        return {
            phase: _curves([row for row in self.phases if row["phase"] == phase], "step") for phase in phases
        }

    def before_after(self) -> tuple[dict[str, float], dict[str, float]]:
        """Metrics of the first and of the last evaluation; both empty where there was none."""
        if not self.evaluations:
            return {}, {}
        return _finite(self.evaluations[0]), _finite(self.evaluations[-1])

    def texts(self, kind: str) -> dict[str, int]:
        """The distinct texts of one kind of event, and how often each was recorded."""
        counts: dict[str, int] = {}
        for event in self.events:
            if event["kind"] == kind:
                counts[event["text"]] = counts.get(event["text"], 0) + 1
        return counts

    def last_event(self, *kinds: str) -> Mapping[str, Any]:
        """The last event of these kinds; an empty one where there is none."""
        return next((event for event in reversed(self.events) if event["kind"] in kinds), {})

    def num_completions_to_print(self) -> int:
        """`tracking.num_completions_to_print` of the recipe; 4 where there is no recipe."""
        recipe = yaml.safe_load(self.recipe_text) or {}
        return int(recipe.get("tracking", {}).get("num_completions_to_print", 4))


def _curves(rows: Iterable[Row], axis: str) -> dict[str, Curve]:
    points: dict[str, tuple[list[int], list[float]]] = {}
    for row in rows:
        for name, value in row.items():
            if name not in _NOT_METRICS:
                x, y = points.setdefault(name, ([], []))
                x.append(row[axis])
                y.append(math.nan if value is None else float(value))
    return {name: Curve(name, tuple(x), tuple(y)) for name, (x, y) in points.items()}


def _finite(row: Row) -> dict[str, float]:
    return {name: value for name, value in row.items() if name not in _NOT_METRICS and value is not None}


def _sample(row: Row) -> SampleRow:
    rewards = {name: math.nan if value is None else value for name, value in row["rewards"].items()}
    reward = math.nan if row["reward"] is None else row["reward"]
    return SampleRow(**(row | {"reward": reward, "rewards": rewards}))
