"""Try a reward function."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rl4dlm.errors import DataError


def test_reward(
    name: str,
    data: Path | None,
    kwargs: Mapping[str, Any] | None = None,
    timeout_s: float = 5.0,
    console: Console | None = None,
) -> bool:
    """Try a reward function and print what was found; True when everything held.

    Args:
        data: rows instead of the function's own examples.
        kwargs: settings, as in a recipe.
        timeout_s: deadline per call, seconds.

    Raises:
        DataError: the rows cannot be read.
        PluginError: the function cannot be loaded.
    """
    from rl4dlm.reward.selftest import selftest

    rows = None if data is None else _rows_to_try(data)
    report = selftest(name, rows, kwargs=kwargs, timeout_s=timeout_s)
    table = Table(title=f"reward {name}", title_justify="left")
    for column in ("", "check", "found"):
        table.add_column(column)
    verdicts = {True: "[green]ok[/]", False: "[red]fails[/]", None: "[yellow]-[/]"}
    for check in report.checks:
        table.add_row(verdicts[check.passed], check.name, Text(check.detail))
    table.add_row("", "time per call", f"{report.seconds_per_call:.3g} s with one completion")
    (console or Console()).print(table)
    return bool(report.passed)


def _rows_to_try(data: Path) -> list[dict[str, Any]]:
    """The first rows of a file; with a column `completion` in all of them or in none."""
    from rl4dlm.commands.score import SavedRows
    from rl4dlm.reward.selftest import MAX_REFERENCES

    rows = list(islice(SavedRows(data), MAX_REFERENCES))
    lacking = [index for index, row in enumerate(rows) if "completion" not in row]
    if 0 < len(lacking) < len(rows):
        raise DataError(
            f"{data}, row {lacking[0]}: no column `completion`, which other rows have.\n"
            "Fix: give every row its gold completion, or none, where they have a reference."
        )
    return rows
