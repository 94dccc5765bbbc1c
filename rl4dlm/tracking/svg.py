"""A picture file of its own: lines in panels, on logarithmic or linear axes. Numbers in, SVG out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rl4dlm.tracking.charts import text, ticks

_COLOURS = ("#2f6fde", "#e07b19", "#1f9d73", "#c2417c", "#7a5cd6", "#00869c", "#9a7b00", "#5b636d")
_DASHES = ("", "5 3", "2 2")
_WIDTH, _HEIGHT = 430, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 30, 36
_COLUMNS = 2
_LEGEND_COLUMNS, _LEGEND_LINE = 4, 17


@dataclass(frozen=True)
class Line:
    """A named curve."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]

    def points(self, scale: str = "log") -> list[tuple[float, float]]:
        """Those that can be drawn; what is not positive has no place on a logarithmic axis."""
        points = zip(self.x, self.y, strict=True)
        return [(x, y) for x, y in points if math.isfinite(y) and (scale == "linear" or min(x, y) > 0)]


@dataclass(frozen=True)
class Panel:
    """Axes with a heading; the same name has the same colour in every panel."""

    title: str
    lines: tuple[Line, ...]
    scale: str = "log"
    """Of both axes: `log` or `linear`."""
    axis: str | None = None
    """What x counts; None: what `draw` is told for all."""


def draw(panels: Sequence[Panel], *, axis: str) -> str:
    """An SVG document with the panels in two columns and a legend below.

    Args:
        axis: what x counts.
    """
    names = list(dict.fromkeys(line.name for panel in panels for line in panel.lines))
    rows = -(-len(panels) // _COLUMNS)
    legend_rows = -(-len(names) // _LEGEND_COLUMNS)
    width, height = _WIDTH * _COLUMNS, _HEIGHT * rows + _LEGEND_LINE * legend_rows + 14
    parts = []
    for index, panel in enumerate(panels):
        place = f"{_WIDTH * (index % _COLUMNS)} {_HEIGHT * (index // _COLUMNS)}"
        parts.append(f'<g transform="translate({place})">{_panel(panel, names, panel.axis or axis)}</g>')
    parts.append(f'<g transform="translate(0 {_HEIGHT * rows})">{_legend(names)}</g>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="system-ui, sans-serif" font-size="11">'
        f'<rect width="{width}" height="{height}" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def _panel(panel: Panel, names: Sequence[str], axis: str) -> str:
    scale = panel.scale
    points = [point for line in panel.lines for point in line.points(scale)] or [(1.0, 1.0)]
    x_low, x_high = _span([x for x, _ in points], scale)
    y_low, y_high = _span([y for _, y in points], scale)
    measure = math.log if scale == "log" else float

    def place(x: float, y: float) -> tuple[float, float]:
        across = (measure(x) - measure(x_low)) / (measure(x_high) - measure(x_low))
        up = (measure(y) - measure(y_low)) / (measure(y_high) - measure(y_low))
        return (
            _LEFT + across * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM),
        )

    parts = [f'<text x="{_LEFT}" y="18" font-weight="600" font-size="13">{text(panel.title)}</text>']
    rows = round_values(y_low, y_high) if scale == "log" else _inside(ticks(y_low, y_high), y_low, y_high)
    for value in rows:
        y = place(x_low, value)[1]
        parts.append(f'<path stroke="#e2e6ea" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(_label(f"{value:g}", _LEFT - 6, y + 3.5, "end"))
    columns = (
        sorted({x for x, _ in points}) if scale == "log" else _inside(ticks(x_low, x_high), x_low, x_high)
    )
    for value in columns:
        parts.append(_label(f"{value:g}", place(value, y_low)[0], _HEIGHT - _BOTTOM + 14, "middle"))
    parts.append(_label(axis, (_WIDTH + _LEFT - _RIGHT) / 2, _HEIGHT - 6, "middle"))
    for line in panel.lines:
        parts.append(_curve([place(x, y) for x, y in line.points(scale)], _style(names.index(line.name))))
    return "".join(parts)


def _inside(values: Sequence[float], low: float, high: float) -> list[float]:
    return [value for value in values if low <= value <= high]


def _span(values: Sequence[float], scale: str) -> tuple[float, float]:
    """The ends of an axis with a margin of 6 %."""
    if scale == "linear":
        margin = 0.06 * (max(values) - min(values)) or 0.5
        return min(values) - margin, max(values) + margin
    low, high = math.log(min(values)), math.log(max(values))
    margin = 0.06 * (high - low) or 0.5
    return math.exp(low - margin), math.exp(high + margin)


def round_values(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten in [low, high]; powers alone where that gives more than nine."""
    powers = [10.0**k for k in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    found = [power * factor for power in powers for factor in (1, 2, 5) if low <= power * factor <= high]
    return found if len(found) <= 9 else [power for power in powers if low <= power <= high]


def _curve(points: Sequence[tuple[float, float]], style: str) -> str:
    if not points:
        return ""
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.4" stroke-dasharray="none"/>' for x, y in points)
    return f'<g {style}><path fill="none" d="M{path}"/>{dots}</g>'


def _style(index: int) -> str:
    colour = _COLOURS[index % len(_COLOURS)]
    dash = _DASHES[index // len(_COLOURS) % len(_DASHES)]
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return f'stroke="{colour}" fill="{colour}" stroke-width="1.6"{dashed}'


def _label(value: str, x: float, y: float, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#626b76">{text(value)}</text>'


def _legend(names: Sequence[str]) -> str:
    width = (_WIDTH * _COLUMNS - _LEFT) / _LEGEND_COLUMNS
    parts = []
    for index, name in enumerate(names):
        x = _LEFT + width * (index % _LEGEND_COLUMNS)
        y = 12 + _LEGEND_LINE * (index // _LEGEND_COLUMNS)
        parts.append(f'<g {_style(index)}><path d="M{x:.0f} {y}h20"/></g>')
        parts.append(_label(name, x + 26, y + 4, "start"))
    return "".join(parts)
