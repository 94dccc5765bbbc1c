"""Try a reward function."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rl4dlm.commands.score import SavedRows
from rl4dlm.commands.score.columns import reference_columns
from rl4dlm.errors import DataError, RecipeError
from rl4dlm.reward.loading import built_in_file
from rl4dlm.reward.selftest import MAX_REFERENCES, PROMPT_COLUMNS, Check, selftest


@dataclass(frozen=True)
class RowColumns:
    """Which columns of the rows are meant, as a recipe says it."""

    prompt: str | None = None
    """Holds the prompt, as `data.prompt_column`; None: `prompt`, `question`, `problem` or `text`."""
    answer: str | None = None
    """The function gets it as `answer`, as `data.answer_column`."""
    target: str | None = None
    """The function gets it as `rl4dlm score` hands on its `--target-column`: as `answer` and `ground_truth`,
    unless the row has columns of these names, and for `countdown` and `sudoku` as what they read."""


def test_reward(
    name: str,
    data: Path | None,
    kwargs: Mapping[str, Any] | None = None,
    timeout_s: float = 5.0,
    console: Console | None = None,
    columns: RowColumns = RowColumns(),
) -> bool:
    """Try a reward function and print what was found; True when everything held.

    Args:
        data: rows instead of the function's own examples.
        kwargs: settings, as in a recipe.
        timeout_s: deadline per call, seconds.
        columns: of the rows.

    Raises:
        DataError: the rows cannot be read, or lack a column.
        PluginError: the function cannot be loaded.
        RecipeError: columns are named, and no rows.
    """
    if data is None and columns != RowColumns():
        raise RecipeError("columns are named, and there are no rows.\nFix: add --data FILE.")
    rows = None if data is None else _rows_to_try(data, name, columns)
    report = selftest(name, rows, kwargs=kwargs, timeout_s=timeout_s)
    table = Table(title=f"reward {name}", title_justify="left")
    for column in ("", "check", "found"):
        table.add_column(column)
    verdicts = {True: "[green]ok[/]", False: "[red]fails[/]", None: "[yellow]-[/]"}
    for passed, what, found in _lines(report.checks):
        table.add_row(verdicts[passed], what, Text(found))
    table.add_row("", "time per call", f"{report.seconds_per_call:.3g} s with one completion")
    (console or Console()).print(table)
    return bool(report.passed)


def _lines(checks: Sequence[Check]) -> Iterator[tuple[bool | None, str, str]]:
    """Verdict, name and finding of each check; those of one kind that found the same are one line."""
    alike: dict[tuple[str, bool | None, str], list[Check]] = {}
    for check in checks:
        kind = check.name.partition(": ")[0]
        alike.setdefault((kind, check.passed, check.detail), []).append(check)
    for (kind, passed, detail), same in alike.items():
        name = same[0].name if len(same) == 1 else f"{kind}: {len(same)} of {_count(checks, kind)}"
        seconds = max((check.seconds for check in same if check.seconds is not None), default=None)
        limit = "" if seconds is None else f", {'' if len(same) == 1 else 'at most '}{seconds:.3f} s"
        yield passed, name, detail + limit


def _count(checks: Sequence[Check], kind: str) -> int:
    return sum(check.name.partition(": ")[0] == kind for check in checks)


def _rows_to_try(data: Path, name: str, columns: RowColumns) -> list[dict[str, Any]]:
    """The first rows of a file; with a column `completion` in all of them or in none."""
    rows = list(islice(SavedRows(data), MAX_REFERENCES))
    lacking = [index for index, row in enumerate(rows) if "completion" not in row]
    if 0 < len(lacking) < len(rows):
        raise DataError(
            f"{data}, row {lacking[0]}: no column `completion`, which other rows have.\n"
            "Fix: give every row its gold completion, or none, where they have a reference."
        )
    return [_named(row, f"{data}, row {index}", name, columns) for index, row in enumerate(rows)]


def _named(row: Mapping[str, Any], where: str, reward: str, columns: RowColumns) -> dict[str, Any]:
    """A row whose prompt and reference stand where the function and the self-test look for them."""
    asked = {"--prompt-column": columns.prompt, "--answer-column": columns.answer}
    for option, name in (asked | {"--target-column": columns.target}).items():
        if name is not None and name not in row:
            known = ", ".join(f"`{column}`" for column in row)
            raise DataError(
                f"{where}: no column `{name}`. Columns there are: {known}.\n"
                f"Fix: name the right one with {option}."
            )
    prompt = next((row[name] for name in PROMPT_COLUMNS if row.get(name) is not None), "")
    if columns.prompt is not None:
        prompt = row[columns.prompt]
    given = dict(row)
    if columns.target is not None:
        given = reference_columns(row, columns.target, prompt, built_in_file(reward), where)
    if columns.answer is not None:
        given["answer"] = row[columns.answer]
    completion = {"completion": row["completion"]} if "completion" in row else {}
    return {"prompt": prompt, "columns": given, **completion}
