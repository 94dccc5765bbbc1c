from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from rl4dlm.tracking.svg import Line, Panel, draw, round_values

SVG = "{http://www.w3.org/2000/svg}"


def curve(document: str) -> list[tuple[float, float]]:
    """The points of the first curve."""
    path = next(p for p in ElementTree.fromstring(document).iter(f"{SVG}path") if p.get("fill") == "none")
    return [tuple(map(float, pair.split())) for pair in path.get("d", "")[1:].split("L")]


def test_equal_ratios_are_equal_distances():
    document = draw([Panel("std", (Line("a", (1, 2, 4), (8.0, 4.0, 2.0)),))], axis="forwards")
    (x0, y0), (x1, y1), (x2, y2) = curve(document)
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2) and x1 > x0
    assert y1 - y0 == pytest.approx(y2 - y1, abs=0.2) and y1 > y0  # downwards is less


def test_points_without_a_place_on_a_logarithmic_axis_are_left_out():
    lines = (Line("a", (1, 2, 4, 8), (1.0, 0.0, math.nan, 2.0)), Line("nothing", (1,), (0.0,)))
    document = draw([Panel("std", lines)], axis="forwards")
    assert len(curve(document)) == 2
    assert "nothing" in document


def test_a_name_has_one_colour_in_all_panels_and_one_entry_in_the_legend():
    a, b = Line("a", (1, 2), (1.0, 2.0)), Line("b", (1, 2), (3.0, 2.0))
    document = draw([Panel("one", (a, b)), Panel("two", (b,))], axis="x")
    groups = re.findall(r'<g stroke="(#\w+)"[^>]*><path (fill|d)', document)
    first, second = groups[0][0], groups[1][0]
    assert [colour for colour, _ in groups] == [first, second, second, first, second]
    assert document.count(">a</text>") == document.count(">b</text>") == 1


def test_names_and_titles_are_text():
    document = draw([Panel("<script>", (Line("a&b", (1,), (1.0,)),))], axis='"x"')
    assert ElementTree.fromstring(document) is not None
    assert "<script>" not in document


def test_round_values_are_1_2_5_or_powers_of_ten_alone():
    assert round_values(0.3, 6) == pytest.approx([0.5, 1, 2, 5])
    assert round_values(1e-4, 1e4) == pytest.approx([10.0**k for k in range(-4, 5)])
