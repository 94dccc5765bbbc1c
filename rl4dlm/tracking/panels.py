"""Pictures for documents: lines in panels with a common legend, drawn by matplotlib, as SVG."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rl4dlm.errors import RecipeError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PANEL_INCHES = (5.4, 3.8)
_COLUMNS = 2
_LEGEND_COLUMNS = 4


@dataclass(frozen=True)
class Line:
    """A named curve; what is not finite, or has no place on a logarithmic axis, is left out."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True)
class Panel:
    """Axes with a heading; the same name has the same colour in every panel."""

    title: str
    lines: tuple[Line, ...]
    scale: Literal["log", "linear"] = "log"
    """Of both axes."""
    axis: str | None = None
    """What x counts; None: what `panels_svg` is told for all."""


def panels_svg(panels: Sequence[Panel], *, axis: str) -> str:
    """An SVG document with the panels in two columns and a legend below.

    Args:
        axis: what x counts.

    Raises:
        RecipeError: matplotlib is not installed.
    """
    require_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(line.name for panel in panels for line in panel.lines))
    rows = -(-len(panels) // _COLUMNS)
    width, height = _PANEL_INCHES
    # Without a salt the ids inside the file differ from run to run, and so would every committed picture.
    with matplotlib.rc_context({"svg.hashsalt": "rl4dlm", "svg.fonttype": "none"}):
        figure = Figure(figsize=(width * _COLUMNS, height * rows + 0.6), layout="constrained")
        grid = figure.subplots(rows, _COLUMNS, squeeze=False).flat
        for axes, panel in zip(grid, panels, strict=False):
            _draw(axes, panel, names, panel.axis or axis)
        for unused in list(grid)[len(panels) :]:
            unused.set_visible(False)
        drawn = {str(line.get_label()): line for axes in figure.axes for line in axes.get_lines()}
        figure.legend(list(drawn.values()), list(drawn), loc="outside lower center", ncols=_LEGEND_COLUMNS)
        document = io.StringIO()
        figure.savefig(document, format="svg", metadata={"Date": None})
    return document.getvalue()


def require_matplotlib() -> None:
    """Refuse to draw before anything is measured, where it cannot be.

    Raises:
        RecipeError: matplotlib is not installed.
    """
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise RecipeError(
            "a plot needs the package matplotlib, which is not installed.\n"
            "Fix: `pip install 'rl4dlm[plots]'`, or leave --plot out."
        )


def _draw(axes: Axes, panel: Panel, names: Sequence[str], axis: str) -> None:
    something = False
    for line in panel.lines:
        points = [(x, y) for x, y in zip(line.x, line.y, strict=True) if _has_a_place(x, y, panel.scale)]
        number = names.index(line.name)
        style = ("-", "--", ":")[number // 10 % 3]
        x, y = zip(*points, strict=True) if points else ((), ())
        axes.plot(x, y, f"C{number % 10}o{style}", label=line.name)
        something = something or bool(points)
    if something:  # a logarithmic axis without a value has no ticks
        axes.set(xscale=panel.scale, yscale=panel.scale)
    axes.set_xlabel(axis)
    axes.set_title(panel.title, parse_math=False)
    axes.grid(alpha=0.3)


def _has_a_place(x: float, y: float, scale: str) -> bool:
    return math.isfinite(y) and (scale == "linear" or min(x, y) > 0)
