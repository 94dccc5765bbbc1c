"""Sudoku, 4x4 or 9x9: the share of the originally empty cells that the completion fills correctly.

Full marks, 1.0: the completion is one complete, valid grid that keeps the givens. Otherwise the share of
empty cells that agree with the solution, below 1.0 (d1, arXiv:2504.12216: cells are compared with the one
solution of the row). It departs from d1 in two ways: a quarter of d1's puzzles have several solutions, and
any valid grid gets full marks; and a grid that changes a given or has too many digits cannot.

The grid is read from the digits inside the last `<answer>...</answer>`, `Row 1:` and the like aside;
without it from the whole completion where that is nothing but digits and separators; else from the last
run of exactly 16 (81) digits. Missing digits count as wrong.

Columns `puzzle` and `solution` (or `Puzzle` and `Solution`): 16 or 81 digits row by row, 0 or . for an
empty cell.

What the prompt opened for the completion (`<answer>`) is read with it, by `reward_answers` beside this file,
which has to lie there.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

if str(Path(__file__).parent) not in sys.path:
    sys.path.append(
        str(Path(__file__).parent)
    )  # where a path names this file, its folder is on no search path

from reward_answers import places  # noqa: E402

RANGE = (0.0, 1.0)
EXAMPLES = [
    {
        "prompt": "3102200002100320",
        "completion": "3142243142131324",
        "columns": {"puzzle": "3102200002100320", "solution": "3142243142131324"},
    },
    {
        "prompt": "Solve the following Sudoku puzzle: 4320004330100004\n",
        "completion": "<reasoning>Row by row.</reasoning>\n<answer>\n4321\n1243\n3412\n2134\n</answer>",
        "columns": {"Puzzle": "4320004330100004", "Solution": "4321124334122134"},
    },
    {
        "prompt": "530070000600195000098000060800060003400803001700020006060000280000419005000080079",
        "completion": "534678912672195348198342567859761423426853791713924856961537284287419635345286179",
        "columns": {
            "puzzle": "530070000600195000098000060800060003400803001700020006060000280000419005000080079",
            "solution": "534678912672195348198342567859761423426853791713924856961537284287419635345286179",
        },
    },
]
GOLD = ("solution", "Solution")

_WIDTHS = {16: 4, 81: 9}
_NO_DIGIT = re.compile(r"[^0-9]+")
_LABEL = re.compile(r"^\W*(?:row|r|line)\s*[1-9]\s*[:.)|-]", re.IGNORECASE | re.MULTILINE)
"""A row's name before its cells, whose digit is no cell."""
_ONLY_DIGITS = re.compile(r"[0-9\s|,;+_-]*")
_MAX_CHARS = 20_000


def sudoku(
    prompts: list[Any],
    completions: list[Any],
    puzzle: list[Any] | None = None,
    solution: list[Any] | None = None,
    Puzzle: list[Any] | None = None,
    Solution: list[Any] | None = None,
    **columns: Any,
) -> list[float | None]:
    """Share of empty cells filled correctly, 1.0 for a valid grid; None for a row without a puzzle."""
    pairs = [(p, s) for p, s in ((puzzle, solution), (Puzzle, Solution)) if p is not None and s is not None]
    if not pairs:
        raise ValueError("needs the columns puzzle and solution, or Puzzle and Solution")
    scores: list[float | None] = []
    for row, text in enumerate(places.turns(prompts, completions)):
        tasks = [(givens[row], rights[row]) for givens, rights in pairs if givens[row] is not None]
        scores.append(_score(text, *_task(*tasks[0], row)) if tasks else None)
    return scores


def _task(given: Any, right: Any, row: int) -> tuple[str, str]:
    """Puzzle and solution as digits, 0 for an empty cell."""
    puzzle, solution = str(given).strip().replace(".", "0"), str(right).strip()
    if len(puzzle) not in _WIDTHS or _NO_DIGIT.search(puzzle) or "0" not in puzzle:
        raise ValueError(f"row {row}: puzzle {given!r} is not 16 or 81 digits with an empty cell")
    if len(solution) != len(puzzle) or _NO_DIGIT.search(solution):
        raise ValueError(f"row {row}: solution {right!r} does not fit the puzzle {given!r}")
    return puzzle, solution


def _score(completion: str, puzzle: str, solution: str) -> float:
    grid = _grid(completion, len(puzzle))
    if len(grid) == len(puzzle) and _solves(grid, puzzle):
        return 1.0
    empty = [cell for cell, digit in enumerate(puzzle) if digit == "0"]
    right = sum(grid[cell : cell + 1] == solution[cell] for cell in empty)
    # All empty cells right without a solved grid: a given was changed, or digits follow the grid.
    return min(right, len(empty) - 1) / len(empty)


def _grid(completion: str, cells: int) -> str:
    """The digits that claim to be the grid; more or fewer than `cells` where the completion has so."""
    text = completion[-_MAX_CHARS:]
    tagged = places.between(text, "<answer>", "</answer>")
    if tagged is not None:
        digits = [_NO_DIGIT.sub("", part) for part in (tagged, _LABEL.sub("", tagged))]
        return digits[1] if len(digits[1]) == cells else digits[0]
    if _ONLY_DIGITS.fullmatch(text):
        return _NO_DIGIT.sub("", text)
    runs = [run for run in _NO_DIGIT.split(text) if len(run) == cells]
    return runs[-1] if runs else ""


def _solves(grid: str, puzzle: str) -> bool:
    """The grid keeps the givens and has each digit once in every row, column and box."""
    width = _WIDTHS[len(puzzle)]
    box = 2 if width == 4 else 3
    if any(given not in ("0", digit) for given, digit in zip(puzzle, grid, strict=True)):
        return False
    want = set("123456789"[:width])
    cells = [(row, column) for row in range(width) for column in range(width)]
    units: dict[tuple[str, int], set[str]] = {}
    for (row, column), digit in zip(cells, grid, strict=True):
        for unit in (("row", row), ("column", column), ("box", row // box * box + column // box)):
            units.setdefault(unit, set()).add(digit)
    return all(digits == want for digits in units.values())
