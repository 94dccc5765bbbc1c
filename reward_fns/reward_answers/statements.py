r"""What a text states as its answer, in words: `The answer is 73.`, `It takes 2 hours`, a worked solution.

A statement is read by what is written, never by what would be right: a sentence of two numbers states
neither, and `at least 5` is not 5.
"""

from __future__ import annotations

import re

from . import places
from .numbers import numbers_in
from .same import read

_BLANK = " .\n\t$*`"
_HEDGES = re.compile(
    r"\b(?:or|least|most|more|less|fewer|not|no|cannot|between|under|over|except|than|either|neither|if|every|any|such|above|below)\b",
    re.IGNORECASE,
)
_INLINE = re.compile(r"(?<!\\)\$([^$\n]{1,400})\$|\\\(([^\n]{1,400}?)\\\)")
MAX_ANSWER = 400
"""Characters of a reference that may be an answer as a whole."""
MAX_ANSWER_WORDS = 25
_SENTENCES = re.compile(r"[.!?;]\s+[A-Z$\\(]|\n\s*\S")
_ASSERTS = re.compile(
    r"[.!?]\Z|[.!?;]\s+[A-Z$\\(]|\n\s*\S|=|\b(?:is|are|was|equals?|gives?|gets?|takes?|has|have|makes?|needs?)\b"
)
"""Marks of a text that says something, and is not itself what is asked for."""
_CHOICE = re.compile(
    r"\A\W{0,3}\(?([A-Z])[.):]\s|\b(?:option|choice)\s+(?:is\s+)?\(?([A-Z])\b", re.IGNORECASE
)


def is_blank(text: str | None) -> bool:
    """There is nothing in it but marks."""
    return text is None or not text.strip(_BLANK)


def stated(text: str) -> list[str]:
    """What a sentence states: behind "the answer is", a choice by its letter, its only formula or number."""
    phrase = places.behind_phrase(text)
    if phrase is not None and not is_blank(phrase):
        return [phrase, *_choice(phrase), *_only(phrase)]
    return [*_choice(text), *_only(text)]


def _choice(text: str) -> list[str]:
    """The letter of `B. 12`, `(B) 12` or `option B`."""
    found = _CHOICE.search(text.strip())
    letter = (found[1] or found[2]) if found else ""
    return [letter] if letter.isupper() else []


def _only(text: str) -> list[str]:
    """The one formula, else the one number, of a sentence that is no mathematics and does not hedge."""
    answer = read(text)
    if (answer is not None and not answer.before) or _HEDGES.search(text):
        return []
    formulas = {match[1] or match[2] for match in _INLINE.finditer(text)}
    if len(formulas) == 1:
        return [formulas.pop()]
    numbers = {number.text for number in numbers_in(text)}
    return [numbers.pop()] if len(numbers) == 1 and not formulas else []


def reference_of(text: str) -> str | None:
    """The answer that a reference states: a box, what follows `####`, a tag, a phrase, the text where it is
    short, the last number of a worked solution; None where none can be read."""
    for place in (places.boxed(text), _marked(text), places.between(text, "<answer>", "</answer>")):
        if place is not None:
            return None if is_blank(place) else place.strip()
    if places.opens_a_place(text) or is_blank(text):
        return None
    phrase = places.behind_phrase(text)
    if phrase is not None and not is_blank(phrase):
        only = _only(phrase) if read(phrase) is None else []
        return only[0] if only else phrase.strip().rstrip(".,;:")
    answer = read(text)
    if answer is not None and not answer.before and len(text) <= MAX_ANSWER:
        return text.strip()
    chosen = _choice(text) if re.search(r"\b(?:option|choice)\b", text, re.IGNORECASE) else []
    found = chosen or (_only(text) if _ASSERTS.search(text.strip()) else [])
    if found:
        return found[0]
    is_description = is_short(text) and (_HEDGES.search(text) or not _ASSERTS.search(text.strip()))
    concluded = None if is_description else _conclusion(text)
    return concluded or (text.strip() if is_short(text) else None)


def is_short(text: str) -> bool:
    """The text is a few words or one sentence, and may be an answer as a whole."""
    words = re.findall(r"[A-Za-z]{2,}", re.sub(r"\\[A-Za-z]+", " ", text))
    return len(text) <= MAX_ANSWER and len(words) <= MAX_ANSWER_WORDS and not _SENTENCES.search(text.strip())


def _marked(text: str) -> str | None:
    marked = places.after(text, "####")
    return None if marked is None else marked.strip().partition("\n")[0]


def _conclusion(text: str) -> str | None:
    """What a worked solution ends on: the value behind the last sign of equality of its last line where a
    formula or number stands, else the last number there."""
    for line in reversed(text.strip().splitlines()):
        formulas = [match[1] or match[2] for match in _INLINE.finditer(line)]
        numbers = numbers_in(line)
        if formulas and (not numbers or numbers[-1].text in formulas[-1]):
            value = formulas[-1].rpartition("=")[2].strip()
            if read(value) is not None:
                return value
        if numbers:
            return numbers[-1].text
    return None
