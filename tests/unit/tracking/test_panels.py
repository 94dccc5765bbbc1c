"""Pictures for documents: what is drawn, what is left out, and that the same numbers give the same file."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from xml.etree import ElementTree

import pytest

from rl4dlm.errors import RecipeError
from rl4dlm.tracking.panels import Line, Panel, panels_svg, require_matplotlib

pytest.importorskip("matplotlib", reason="the extra `plots` is not installed")

SVG = "{http://www.w3.org/2000/svg}"
TWO = (Line("a", (1, 2), (1.0, 2.0)), Line("b", (1, 2), (3.0, 2.0)))


def curves(document: str) -> list[list[tuple[float, float]]]:
    """The points of every curve, in the file's coordinates."""
    found = []
    for group in ElementTree.fromstring(document).iter(f"{SVG}g"):
        if group.get("id", "").startswith("line2d"):
            for path in group.findall(f"{SVG}path"):
                words = path.get("d", "").replace("M", " ").replace("L", " ").split()
                if "stroke-linejoin" not in path.get("style", "") and "fill: none" in path.get("style", ""):
                    found.append([(float(x), float(y)) for x, y in zip(words[::2], words[1::2], strict=True)])
    return found


def three(scale: str, y: tuple[float, float, float]) -> list[tuple[float, float]]:
    """A curve over x = 1, 2, 4 as it is drawn."""
    document = panels_svg([Panel("std", (Line("a", (1, 2, 4), y),), scale=scale)], axis="forwards")
    return next(points for points in curves(document) if len(points) == 3)


def test_equal_ratios_are_equal_distances_on_logarithmic_axes() -> None:
    (x0, y0), (x1, y1), (x2, y2) = three("log", (8.0, 4.0, 2.0))
    assert x1 - x0 == pytest.approx(x2 - x1) and x1 > x0
    assert y1 - y0 == pytest.approx(y2 - y1) and y1 > y0  # downwards is less


def test_equal_differences_are_equal_distances_on_linear_axes() -> None:
    (x0, y0), (x1, y1), (x2, y2) = three("linear", (8.0, 6.0, 4.0))
    assert x2 - x1 == pytest.approx(2 * (x1 - x0)) and y1 - y0 == pytest.approx(y2 - y1)


def test_points_without_a_place_on_a_logarithmic_axis_are_left_out() -> None:
    lines = (Line("a", (1, 2, 4, 8), (1.0, 0.0, math.nan, 2.0)), Line("nothing", (1,), (0.0,)))
    document = panels_svg([Panel("std", lines)], axis="forwards")
    assert [len(points) for points in curves(document) if len(points) > 1].count(4) == 0
    assert "nothing" in document
    empty = panels_svg([Panel("std", lines[1:])], axis="forwards")  # a panel with nothing to show
    assert "nothing" in empty


def test_a_name_has_one_entry_in_the_legend_of_all_panels() -> None:
    document = panels_svg([Panel("one", TWO), Panel("two", TWO[1:])], axis="x")
    assert document.count(">a</text>") == document.count(">b</text>") == 1


def test_names_and_titles_are_text() -> None:
    document = panels_svg([Panel("<script> $x$", (Line("a&b", (1,), (1.0,)),))], axis='"x"')
    assert "<script>" not in document
    assert "<script> $x$" in "".join(ElementTree.fromstring(document).itertext())


def test_the_same_numbers_give_the_same_file() -> None:
    assert panels_svg([Panel("one", TWO)], axis="x") == panels_svg([Panel("one", TWO)], axis="x")


def test_without_matplotlib_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"needs the package matplotlib(.|\n)*rl4dlm\[plots\]"):
        require_matplotlib()
