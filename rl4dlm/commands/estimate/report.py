"""What was measured, as one JSON object, as tables and as a plot."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from rl4dlm.likelihood.lab import Reference, Spread
from rl4dlm.tracking.files import replace_file
from rl4dlm.tracking.panels import Line, Panel, panels_svg

_KINDS = {
    "block_elbo": "has another bound as its mean, that of decoding block by block",
    "surrogate": "no bound of the likelihood",
}


@dataclass(frozen=True)
class Measured:
    """One estimator at one number of forwards."""

    estimator: str
    estimates: str
    """`elbo`, `block_elbo` or `surrogate`."""
    forwards: int
    repeats: int
    """Draws per completion."""
    spread: Spread
    """Around the ELBO, whatever the estimator estimates."""


@dataclass(frozen=True)
class LogRatio:
    """The difference between two models' estimates."""

    estimator: str
    estimates: str
    forwards: int
    repeats: int
    shared: Spread
    """Both models on the same masks, as trainers do."""
    independent: Spread
    """Each model on masks of its own."""


@dataclass(frozen=True)
class Report:
    """What `rl4dlm estimate` found; everything in nats per completion."""

    source: str
    model: str
    against: str | None
    num_completions: int
    positions: tuple[int, int]
    """Fewest and most positions that are estimated."""
    scope: str
    seed: int
    reference: Reference
    log_ratio_reference: Reference | None
    measured: tuple[Measured, ...]
    log_ratios: tuple[LogRatio, ...]
    states_read: int = 0
    """Forwards of single states, over all models."""
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        return {
            "source": self.source,
            "model": self.model,
            "against": self.against,
            "completions": self.num_completions,
            "positions": list(self.positions),
            "scope": self.scope,
            "seed": self.seed,
            "unit": "nats per completion",
            "reference": _reference(self.reference),
            "estimators": [_flat(entry) for entry in self.measured],
            "log_ratio_reference": None
            if self.log_ratio_reference is None
            else _reference(self.log_ratio_reference),
            "log_ratio": [asdict(entry) for entry in self.log_ratios],
            "states_read": self.states_read,
            "seconds": round(self.seconds, 3),
        }


def _reference(reference: Reference) -> dict[str, Any]:
    count = len(reference.value)
    return {
        "kind": "exact" if reference.exact else "stratified",
        "mean": reference.value.mean().item(),
        "se": reference.se.square().sum().sqrt().item() / count,
        "values": reference.value.tolist(),
    }


def _flat(entry: Measured) -> dict[str, Any]:
    values = asdict(entry)
    return values | values.pop("spread")


def estimate_json(report: Report) -> str:
    """The report as one JSON object on one line."""
    return json.dumps(report.as_json(), ensure_ascii=True, allow_nan=False)


def print_estimates(report: Report, console: Console | None = None) -> None:
    """The figures of a report for people, on stdout unless told otherwise."""
    console = console or Console()
    for line in _head(report):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    entries = report.measured
    console.print(_table("Standard deviation, nats", entries, lambda e: _figure(e.spread.std)))
    console.print(_table("Bias, nats", entries, lambda e: _bias(e.spread)))
    console.print(_table("Root mean squared error, nats", entries, lambda e: _figure(e.spread.rmse)))
    if report.log_ratios:
        _print_log_ratios(report.log_ratios, console)
    for line in _notes(report):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _print_log_ratios(entries: Sequence[LogRatio], console: Console) -> None:
    shared, independent = "Log-ratio, shared masks", "Log-ratio, independent masks"
    console.print(_table(f"{shared}: standard deviation", entries, lambda e: _figure(e.shared.std)))
    console.print(_table(f"{shared}: bias", entries, lambda e: _bias(e.shared)))
    console.print(_table(f"{independent}: standard deviation", entries, lambda e: _figure(e.independent.std)))


def _head(report: Report) -> Iterator[str]:
    low, high = report.positions
    length = f"{low}" if low == high else f"{low} to {high}"
    yield f"{report.num_completions} completions of {length} positions from {report.source}"
    yield f"model: {report.model}"
    yield f"ELBO: {_reference_text(report.reference)}"
    if report.log_ratio_reference is not None:
        yield f"ELBO minus that of {report.against}: {_reference_text(report.log_ratio_reference)}"


def _reference_text(reference: Reference) -> str:
    values = _reference(reference)
    if reference.exact:
        return f"{values['mean']:.4g} nats in the mean, exact"
    return f"{values['mean']:.4g} +- {values['se']:.2g} nats in the mean, from a long stratified estimate"


def _notes(report: Report) -> Iterator[str]:
    yield "Columns are forwards per estimate. (In brackets: within 2 standard errors of 0.)"
    kinds: dict[str, list[str]] = {}
    for entry in report.measured:
        kinds.setdefault(entry.estimates, []).append(entry.estimator)
    for kind, names in kinds.items():
        if kind in _KINDS:
            yield f"{', '.join(dict.fromkeys(names))}: {_KINDS[kind]}"


def _figure(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def _bias(spread: Spread) -> str:
    text = f"{spread.bias:.2f}" if abs(spread.bias) >= 0.1 else f"{spread.bias:.3f}"
    return text if abs(spread.bias) > 2 * spread.bias_se else f"({text})"


def _table(title: str, entries: Sequence[Any], cell: Callable[[Any], str]) -> Table:
    """A row per estimator, a column per number of forwards."""
    columns = sorted({entry.forwards for entry in entries})
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("estimator", no_wrap=True)
    for forwards in columns:
        table.add_column(str(forwards), justify="right", no_wrap=True)
    for name, cells in _by_estimator(entries).items():
        table.add_row(name, *(cell(cells[n]) if n in cells else "" for n in columns))
    return table


def _by_estimator(entries: Sequence[Any]) -> Mapping[str, dict[int, Any]]:
    grouped: dict[str, dict[int, Any]] = {}
    for entry in entries:
        grouped.setdefault(entry.estimator, {})[entry.forwards] = entry
    return grouped


def write_plot(report: Report, path: Path) -> None:
    """The report as an SVG of curves over forwards, both axes logarithmic.

    Raises:
        StorageError: the disk refuses.
    """
    panels = [
        _panel("Standard deviation, nats", report.measured, lambda e: e.spread.std),
        _panel("Root mean squared error, nats", report.measured, lambda e: e.spread.rmse),
    ]
    if report.log_ratios:
        panels += [
            _panel("Log-ratio, shared masks: std, nats", report.log_ratios, lambda e: e.shared.std),
            _panel("Log-ratio, independent masks: std, nats", report.log_ratios, lambda e: e.independent.std),
        ]
    replace_file(path, panels_svg(panels, axis="forwards per completion").encode("utf-8"))


def _panel(title: str, entries: Sequence[Any], value: Callable[[Any], float]) -> Panel:
    lines = []
    for name, cells in _by_estimator(entries).items():
        points = sorted(cells.items())
        lines.append(Line(name, tuple(n for n, _ in points), tuple(value(e) for _, e in points)))
    return Panel(title, tuple(lines))
