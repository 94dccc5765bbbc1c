"""`data.prompt_template`: a text with the names of columns in braces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any

from rl4dlm.errors import DataError


@dataclass(frozen=True)
class PromptTemplate:
    """`data.prompt_template`, parsed once: literal text and the names of columns in between.

    Values are inserted as they are and never parsed, so braces in them are text.
    """

    parts: tuple[tuple[str, str | None], ...]
    """Literal text, then the column whose value follows it."""

    @classmethod
    def parse(cls, text: str) -> PromptTemplate:
        """Raises DataError for unbalanced braces, fields that are not plain names, and a text without any."""
        remedy = "write {prompt} or another column's name in braces; a literal brace is doubled: {{ or }}"
        parts: list[tuple[str, str | None]] = []
        try:
            for literal, field, spec, conversion in Formatter().parse(text):
                if field is not None and (not field or spec or conversion):
                    raise ValueError(
                        f"{{{field}{f'!{conversion}' if conversion else ''}{f':{spec}' if spec else ''}}}"
                    )
                parts.append((literal, field))
        except ValueError as error:
            raise DataError(f"data.prompt_template = {text!r}: {error}.\nFix: {remedy}.") from None
        if all(field is None for _, field in parts):
            raise DataError(
                f"data.prompt_template = {text!r}: every prompt would be the same.\nFix: {remedy}."
            )
        return cls(tuple(parts))

    @property
    def fields(self) -> tuple[str, ...]:
        """Columns that the template names, `prompt` among them where it does."""
        return tuple(dict.fromkeys(field for _, field in self.parts if field is not None))

    def fill(self, values: Mapping[str, Any], where: str) -> str:
        """The text for one row.

        Raises:
            DataError: a column is unknown or empty.
        """
        pieces = []
        for literal, field in self.parts:
            pieces.append(literal)
            if field is None:
                continue
            if field not in values:
                raise unknown_field(field, list(values), where)
            if values[field] is None:
                raise DataError(
                    f"{where}: column `{field}`, which data.prompt_template names, is empty.\n"
                    "Fix: fill or remove the row."
                )
            pieces.append(str(values[field]))
        return "".join(pieces)


def unknown_field(field: str, names: Sequence[str], where: str) -> DataError:
    """A template names a column that is not there."""
    listed = ", ".join(names)
    return DataError(
        f"{where}: data.prompt_template names {field!r}, and there is no such column. There are: {listed}.\n"
        "Fix: use one of these; a literal brace is doubled: {{ or }}."
    )
