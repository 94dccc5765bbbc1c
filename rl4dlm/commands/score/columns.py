r"""From a row of saved completions to what a reward function is given: the one place where that is decided.

| reward | from the row | becomes |
| --- | --- | --- |
| every one | all columns | columns of the same names |
| every one | the completion column | the completion, without the end-of-text tokens that it ends on |
| every one | verl's `reward_model.ground_truth` | `ground_truth`, unless the row has this column |
| every one | the target column | `answer` and `ground_truth` too, unless the row has columns of these names |
| `countdown` | target `[[3, 5], 8]` or `{"numbers": [3, 5], "target": 8}`, or JSON text | `ground_truth` |
| `sudoku` | the last run of 16 or 81 digits in the prompt; the target | `puzzle`; `solution` |

A reward that finds its own columns in the row (`numbers` and `target`, `puzzle` and `solution`, ...) uses
those, and a row that has them needs no target column. A target of null or NaN means that the row has no
reference.

What the reported mean is over also depends on the reward. `accuracy` counts full marks, `mean` averages the
rewards. Countdown's partial credit teaches and is no score, so there it is accuracy; Sudoku's share of right
cells is the published score.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from rl4dlm.errors import DataError

Metric = Literal["accuracy", "mean"]
METRICS: tuple[str, ...] = get_args(Metric)
FULL_MARKS = 1.0 - 1e-6

_METRIC_OF: Mapping[str, Metric] = {"countdown": "accuracy"}
_OWN_COLUMNS: Mapping[str, tuple[frozenset[str], ...]] = {
    reward: tuple(frozenset(names.split()) for names in sets)
    for reward, sets in {
        "math": ("answer", "solution"),
        "gsm8k": ("answer",),
        "sort": ("answer",),
        "countdown": ("numbers target", "nums target", "input output", "reward_model"),
        "sudoku": ("puzzle solution", "Puzzle Solution"),
        "code": ("test_list", "test entry_point", "inputs outputs", "input_output"),
        "format": ("",),
        "length": ("",),
        "llm_judge": ("",),
        "reward_model": ("",),
    }.items()
}
"""Per built-in reward the sets of columns that take the place of the target; empty: it needs none."""
_END_OF_TEXT = ("<|eot_id|>", "<|endoftext|>", "<|im_end|>", "<|end_of_text|>", "<eos>", "</s>")
_GRID = re.compile(r"(?<![0-9.])(?:[0-9.]{81}|[0-9.]{16})(?![0-9.])")


def metric_of(reward: str) -> Metric:
    """What is reported for a reward where the user does not say."""
    return _METRIC_OF.get(reward, "mean")


@dataclass(frozen=True)
class SavedSample:
    """One completion as a reward function gets it."""

    prompt: Any
    completion: str
    """As the file holds it."""
    columns: Mapping[str, Any]

    @property
    def token_ids(self) -> list[int] | None:
        """The row's `completion_ids`, cut off at its `completion_len` where it has one; None without them."""
        ids, length = self.columns.get("completion_ids"), self.columns.get("completion_len")
        if not isinstance(ids, Sequence | np.ndarray) or isinstance(ids, str | bytes):
            return None
        return [int(token) for token in ids][: None if length is None else int(length)]

    @property
    def text(self) -> str:
        """The completion without the end-of-text tokens behind it, which a run's completions lack too."""
        end = len(self.completion)
        while mark := next((m for m in _END_OF_TEXT if self.completion.endswith(m, 0, end)), ""):
            end -= len(mark)
        return self.completion[:end]


@dataclass(frozen=True)
class Columns:
    """Names of the columns that hold prompt, completion and target."""

    prompt: str = "question"
    completion: str = "generation"
    target: str = "ground_truth"

    def sample(self, row: Mapping[str, Any], reward: str, where: str) -> SavedSample:
        """A row as the reward gets it.

        Args:
            reward: the built-in reward's file, `sort` for `sort:sort_exact`; other names need no conversion.
            where: file and row index, for messages.

        Raises:
            DataError: a column is missing or holds what cannot be scored.
        """
        row = with_verls_reference(row)
        self._require(row, reward, where)
        prompt, completion = row[self.prompt], row[self.completion]
        if not isinstance(completion, str):
            what = "is empty" if completion is None else f"holds a {type(completion).__name__}, not text"
            raise DataError(
                f"{where}: `{self.completion}` {what}.\nFix: fill or remove the row, or name another "
                "column with --completion-column."
            )
        if prompt is None:
            raise DataError(
                f"{where}: `{self.prompt}` is empty.\nFix: fill or remove the row, or name another column "
                "with --prompt-column."
            )
        return SavedSample(prompt, completion, reference_columns(row, self.target, prompt, reward, where))

    def _require(self, row: Mapping[str, Any], reward: str, where: str) -> None:
        options = {
            self.prompt: "--prompt-column",
            self.completion: "--completion-column",
            self.target: "--target-column",
        }
        if any(names <= row.keys() for names in _OWN_COLUMNS.get(reward, ())):
            options.pop(self.target, None)
        for name, option in options.items():
            if name not in row:
                raise DataError(
                    f"{where}: no column `{name}`. Columns there are: {_listed(list(row))}.\n"
                    f"Fix: name the right one with {option}."
                )


def with_verls_reference(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row whose reference lies in `reward_model` (verl), with the column `ground_truth`; others as is."""
    held = row.get("reward_model")
    if "ground_truth" in row or not isinstance(held, Mapping) or "ground_truth" not in held:
        return row
    return {**row, "ground_truth": held["ground_truth"]}


def reference_columns(
    row: Mapping[str, Any], target_column: str, prompt: Any, reward: str, where: str
) -> dict[str, Any]:
    """The columns that a reward gets of a row: its own, and its reference under the names that rewards know.

    Args:
        target_column: holds the reference; a row may lack it.
        prompt: of the row.
        reward: the built-in reward's file; empty for others.
        where: file and row index, for messages.

    Raises:
        DataError: the reference or the prompt is not what a built-in reward reads.
    """
    target, columns = _reference(row.get(target_column)), dict(row)
    if target_column in row:
        columns = {"answer": target, "ground_truth": target, **row, target_column: target}
    return columns | _for_reward(reward, prompt, target, row, where)


def _reference(target: Any) -> Any:
    """A target; None for NaN, which is how tables write that there is none."""
    return None if isinstance(target, float) and math.isnan(target) else target


def _for_reward(reward: str, prompt: Any, target: Any, row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The columns that a built-in reward wants under names of its own."""
    if reward == "countdown" and target is not None and not {"numbers", "nums", "input"} & row.keys():
        return {"ground_truth": _numbers_and_target(target, where)}
    if reward == "sudoku" and not {"puzzle", "Puzzle"} & row.keys():
        if target is None:
            return {"puzzle": None, "solution": None}
        grids = _GRID.findall(prompt if isinstance(prompt, str) else json.dumps(prompt))
        if not grids:
            raise DataError(
                f"{where}: the prompt holds no grid of 16 or 81 digits.\n"
                "Fix: give rows with columns puzzle and solution, or another --prompt-column."
            )
        return {"puzzle": grids[-1], "solution": target}
    return {}


def _numbers_and_target(target: Any, where: str) -> Any:
    """A task in any of its forms, as a list of the numbers and the target."""
    try:
        task = json.loads(target) if isinstance(target, str) else target
        if isinstance(task, Mapping):
            task = [task["numbers"] if "numbers" in task else task["nums"], task["target"]]
        numbers, goal = task
        return [numbers, goal]
    except (KeyError, TypeError, ValueError, RecursionError):
        raise DataError(
            f"{where}: the target {str(target)[:80]!r} is not [numbers, target].\n"
            'Fix: write [[3, 5, 8], 21] or {"numbers": [3, 5, 8], "target": 21}.'
        ) from None


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"
