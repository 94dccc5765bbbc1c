"""What programs are given and print: the forms of a row, and when two outputs are the same."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?\Z")


def as_text(value: Any) -> str:
    """Standard input or output, which may come as a list of lines, and a line as a list of words."""
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence):
        lines = [
            line if isinstance(line, str) or not isinstance(line, Sequence) else _words(line)
            for line in value
        ]
        return "".join(f"{line}\n" if not str(line).endswith("\n") else str(line) for line in lines)
    return str(value)


def _words(line: Sequence[Any]) -> str:
    return " ".join(map(str, line))


def same_output(printed: str, wanted: str, tolerance: float | None) -> bool:
    found, expected = ([line.rstrip() for line in text.rstrip().splitlines()] for text in (printed, wanted))
    if found == expected or tolerance is None:
        return found == expected
    words = [[line.split() for line in lines] for lines in (found, expected)]
    return list(map(len, words[0])) == list(map(len, words[1])) and all(
        _same_word(*pair, tolerance)
        for lines in zip(*words, strict=True)
        for pair in zip(*lines, strict=True)
    )


def _same_word(found: str, wanted: str, tolerance: float) -> bool:
    """Equal texts, or numbers that are near; two integers have to be the same."""
    if found == wanted:
        return True
    if not (_NUMBER.match(found) and _NUMBER.match(wanted)) or all(
        w.lstrip("+-").isdigit() for w in (found, wanted)
    ):
        return False
    near = abs(float(found) - float(wanted))
    return near <= tolerance * max(1.0, abs(float(wanted)))
