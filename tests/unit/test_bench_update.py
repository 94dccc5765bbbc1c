"""The bench of updates: that what it compares is the same work, and what its counts say."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    scripts = str(Path(__file__).resolve().parents[2] / "scripts")
    sys.path.insert(0, scripts)
    try:
        return importlib.import_module("bench_update")
    finally:
        sys.path.remove(scripts)


def test_every_method_s_passes_are_run_again(bench: ModuleType) -> None:
    rows = {row["method"]: row for row in bench.bench_overhead(1, "llada_tiny")}
    assert rows.keys() == bench.METHODS.keys()
    assert rows["gdpo"]["passes"] == 4  # two passes, and the old estimates of each
    assert rows["spg"]["passes"] == 1
    for row in rows.values():
        assert row["share"] == pytest.approx((row["passes_alone_s"] + row["optimizer_s"]) / row["update_s"])


def test_the_obvious_path_has_the_same_gradient(bench: ModuleType) -> None:
    (row,) = bench.bench_head(1, "llada_tiny")
    assert row["gradient norms differ by"] < 1e-5


def test_micro_batches_by_length_pad_less_than_the_order_of_the_data(bench: ModuleType) -> None:
    (row,) = bench.bench_padding()
    assert row["padding"] < 0.05 < row["in the order of the data"]
