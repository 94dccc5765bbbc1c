"""Which column is the prompt and which the reference answer: conventions of the field, detected or forced."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rl4dlm.errors import DataError
from rl4dlm.recipe.bounded import Unreadable, parse_json
from rl4dlm.recipe.sections import DataConfig

NOT_HANDED_ON = ("prompt", "prompts", "completion", "completions", "completion_ids")
"""Column names that reward functions receive from the rollout and never from the row."""


@dataclass(frozen=True)
class Convention:
    """Where a family of datasets keeps its prompt and its reference answer."""

    prompt: str
    answers: tuple[str, ...]
    """First that is there; `a.b` is field b of column a."""
    needs_answer: bool = True

    def fits(self, names: Sequence[str]) -> bool:
        return self.prompt in names and (not self.needs_answer or self.answer_in(names) is not None)

    def answer_in(self, names: Sequence[str]) -> str | None:
        return next((name for name in self.answers if _has(names, name)), None)


# In the order of detection: verl's `prompt` would pass for TRL's.
CONVENTIONS = {
    "verl": Convention("prompt", ("reward_model.ground_truth",)),
    "trl": Convention("prompt", ("answer", "solution", "ground_truth", "label"), needs_answer=False),
    "open-r1": Convention("problem", ("answer", "solution")),
    "gsm8k": Convention("question", ("answer",)),
}


@dataclass(frozen=True)
class ColumnMap:
    """How rows become prompts. `read` takes a row apart; `sentence` says it to people."""

    convention: str | None
    """None where `data.prompt_column` alone says it."""
    prompt: str
    answer: str | None
    names: tuple[str, ...]
    """All columns of the dataset."""

    @property
    def sentence(self) -> str:
        """What was detected and what maps where."""
        style = f"{self.convention} columns" if self.convention else "columns as named in the recipe"
        answer = f"`answer` from `{self.answer}`" if self.answer else "no reference answer"
        hidden = (*NOT_HANDED_ON, "answer" if self.answer else None)
        others = ", ".join(f"`{name}`" for name in self.names if name not in hidden) or "none"
        return f"{style}: prompt from `{self.prompt}`, {answer}; other columns for reward functions: {others}"

    def read(self, row: Mapping[str, Any], where: str) -> tuple[Any, dict[str, Any]]:
        """The prompt's value, and the columns for reward functions with `answer` among them.

        Every column is handed on under its own name, the prompt's too unless it is called `prompt`. Under
        the verl convention `ground_truth`, `data_source` and `extra_info` are always there.

        Raises:
            DataError: the row lacks the prompt or the field that holds its answer.
        """
        columns = {name: value for name, value in row.items() if name not in NOT_HANDED_ON}
        if self.answer is not None:
            columns["answer"] = _look_up(row, self.answer, where)
        if self.convention == "verl":
            columns["ground_truth"] = _look_up(row, CONVENTIONS["verl"].answers[0], where)
            columns = {"data_source": None, "extra_info": None, **columns}
        return self.prompt_of(row, where), columns

    def prompt_of(self, row: Mapping[str, Any], where: str) -> Any:
        """The value of the prompt's column.

        Raises:
            DataError: it is empty.
        """
        value = _look_up(row, self.prompt, where)
        if value is None or value == "" or value == []:
            raise DataError(
                f"{where}: the prompt in column `{self.prompt}` is empty.\nFix: fill or remove the row."
            )
        return value


def map_columns(names: Sequence[str], data: DataConfig, where: str) -> ColumnMap:
    """Which columns are meant: `prompt_column` and `answer_column` first, then `columns`, then detection.

    Args:
        names: columns of the dataset.
        data: the recipe's section.
        where: file or hub name, for messages.

    Raises:
        DataError: a column that is needed is not there.
    """
    name = _detect(names, data) if data.columns == "auto" else data.columns
    if name is None and data.prompt_column is None:
        known = ", ".join(f"{key} ({c.prompt}, {' or '.join(c.answers)})" for key, c in CONVENTIONS.items())
        raise DataError(
            f"{where}: no column convention fits ({known}). Columns there are: {_listed(names)}.\n"
            "Fix: set data.prompt_column and data.answer_column."
        )
    convention = CONVENTIONS[name] if name else Convention("", ("answer",), needs_answer=False)
    prompt = data.prompt_column or convention.prompt
    answer = data.answer_column or convention.answer_in(names)
    if convention.needs_answer and answer is None:
        answer = convention.answers[0]
    _require(names, prompt, "prompt", "data.prompt_column", where)
    if answer is not None:
        _require(names, answer, "reference answer", "data.answer_column", where)
    overridden = data.prompt_column is not None and data.columns == "auto"
    return ColumnMap(None if overridden else name, prompt, answer, tuple(names))


def _detect(names: Sequence[str], data: DataConfig) -> str | None:
    """The first convention that fits; one that lacks only what the recipe names itself fits too."""
    assumed = list(names)
    for name, convention in CONVENTIONS.items():
        if data.answer_column is not None and name != "verl":
            assumed = [*names, *convention.answers]
        if convention.fits(assumed):
            return name
    return None


def _require(names: Sequence[str], wanted: str, role: str, key: str, where: str) -> None:
    if _has(names, wanted):
        return
    near = difflib.get_close_matches(wanted, names, n=1, cutoff=0.6)
    hint = f" Did you mean `{near[0]}`?" if near else ""
    raise DataError(
        f"{where}: no column `{wanted}` for the {role}. Columns there are: {_listed(names)}.{hint}\n"
        f"Fix: set {key} to the column that holds the {role}, or data.columns to the dataset's convention."
    )


def _has(names: Sequence[str], wanted: str) -> bool:
    return wanted in names or ("." in wanted and wanted.partition(".")[0] in names)


def _look_up(row: Mapping[str, Any], name: str, where: str) -> Any:
    """A column by name, or `a.b`: field b of column a."""
    if name in row:
        return row[name]
    column, _, field = name.partition(".")
    value = _decoded(row[column])
    if not isinstance(value, Mapping) or field not in value:
        shown = (
            f"fields {_listed(list(value))}" if isinstance(value, Mapping) else f"a {type(value).__name__}"
        )
        raise DataError(f"{where}: `{name}` is missing: column `{column}` holds {shown}.\nFix: mend the row.")
    return value[field]


def _decoded(value: Any) -> Any:
    """An object that a column of text (CSV) holds as JSON; other values as they are."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        with contextlib.suppress(Unreadable):
            return parse_json(value)
    return value


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
