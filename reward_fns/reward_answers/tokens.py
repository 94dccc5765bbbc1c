r"""The tokens of an answer: LaTeX or plain text, cut up from left to right without changing a character."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from .numbers import LITERAL, LITERAL_IN_LIST, RECURRING, Number, literal, recurring, spelled

MAX_CHARS = 400
Kind = Literal["number", "letter", "command", "text", "numeral", "symbol"]


class Unreadable(Exception):
    """The text is no mathematics that is understood here; it can only be compared as text."""


@dataclass(frozen=True)
class Token:
    """A piece of an answer."""

    kind: Kind
    text: str
    """A command without its backslash; what stands inside the braces of a text."""
    number: Number | None = None
    is_apart: bool = False
    """White space stands before it."""


_SPACE = re.compile(
    r"""\s+ | \\[!,;:>\x20] | ~ | \\[()\[\]] | (?<!\\)\$
    | \\(?:quad|qquad|displaystyle|textstyle|limits|left|right|[bB]igg?[lrm]?|middle)(?![A-Za-z])\.?
    | \\[hv]space\*?\{[^{}]{0,20}\} | \\phantom\{[^{}]{0,20}\}""",
    re.VERBOSE,
)
_ROW = re.compile(r"\\\\(?:\s?\[[0-9.]{1,5}\s?[a-z]{2}\])?")
_TEXT = re.compile(
    r"\\(text[a-z]{0,6}|[mhf]box|math(?:rm|bf|it|sf|tt|cal)|boldsymbol|operatorname)\*?\s?\{([^{}]*)\}"
)
_ENVIRONMENT = re.compile(
    r"\\(begin|end)\s?\{([a-z]{0,10}matrix|array|cases|aligned|align)\*?\}(?:\s?\{[lcr|\s]*\})?"
)
_NUMERAL = re.compile(
    r"(?=[A-F]{0,39}[0-9])([0-9A-F]{1,40})_(?:\{\s?(?:\\text\{)?([0-9]{1,2})\}?\s?\}|([0-9]{1,2}))(?![0-9A-Za-z])"
)
_COMMAND = re.compile(r"\\([A-Za-z]+)|\\([{}|%$#&_])")
_WORD = re.compile(r"[A-Za-z]+")
_SYMBOLS = ("**", "<=", ">=", "!=", "==", "//", *"+-*/^_!=<>(){}[]|,;:&'.%")
_SAME_SYMBOL = {"<=": "le", ">=": "ge", "!=": "ne", "%": "%"}
FUNCTIONS = frozenset(
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp sqrt".split()
)
_WORDS = {"pi": "pi", "infinity": "infty", "inf": "infty", "oo": "infty", "theta": "theta"}
_ENGLISH = frozenset(
    """is are was be the of per by to at no not yes in on all any none so we get has it its his her for from
    with most than one two six ten day men way pm am""".split()
)
"""Short words that are no products of letters where they stand apart."""
UNITS = {
    name: names[0]
    for names in (
        line.split()
        for line in """mm millimeter millimetre|cm centimeter centimetre|m meter metre|km kilometer kilometre
        in inch inches|ft foot feet|yd yard|mi mile|g gram|kg kilogram|mg milligram|lb lbs pound|oz ounce
        s sec second|min minute|h hr hour|day|week|month|year yr|l liter litre|ml milliliter millilitre
        degree deg|percent|dollar usd $|cent|unit|mph|radian rad|apple""".replace("\n", "|").split("|")
    )
    for name in names
}
"""Spellings of units, to one of each."""


def tokens_of(text: str) -> list[Token]:
    """Cut an answer up.

    Raises:
        Unreadable: it is too long, or holds a character that no rule takes.
    """
    text = spelled(text)
    if len(text) > MAX_CHARS or not text.isascii():
        raise Unreadable("too long, or a letter of another script")
    return list(_tokens(text, 0))


def _tokens(text: str, nested: int) -> Iterator[Token]:
    position, depth, is_apart = 0, 0, True
    while position < len(text):
        if space := _match_space(text, position):
            position, is_apart = space, True
            continue
        found, position = _next(text, position, depth)
        for token in found:
            depth += {"(": 1, "[": 1, "\\{": 1, ")": -1, "]": -1, "\\}": -1}.get(token.text, 0)
            if token.kind == "text" and re.search("[0-9]", token.text) and not nested:
                yield from _tokens(token.text, nested + 1)
                continue
            yield Token(token.kind, token.text, token.number, is_apart)
            is_apart = False


def _match_space(text: str, position: int) -> int | None:
    if _ROW.match(text, position):
        return None
    space = _SPACE.match(text, position)
    return space.end() if space else None


def _next(text: str, position: int, depth: int) -> tuple[list[Token], int]:
    """The token, or letters, at a position, and where the rest begins."""
    if match := _ROW.match(text, position):
        return [Token("symbol", "\\\\")], match.end()
    if match := _TEXT.match(text, position):
        return _text_tokens(match[1], match[2]), match.end()
    if match := _ENVIRONMENT.match(text, position):
        return [Token("command", f"{match[1]} {match[2]}")], match.end()
    if match := _NUMERAL.match(text, position):
        return [Token("numeral", f"{match[1]}_{match[2] or match[3]}")], match.end()
    if match := RECURRING.match(text, position):
        return [Token("number", match[0], recurring(match))], match.end()
    if match := (LITERAL_IN_LIST if depth else LITERAL).match(text, position):
        number = literal(match[0])
        if number is None:
            raise Unreadable("a number of too many digits")
        return [Token("number", match[0], number)], match.end()
    if match := _COMMAND.match(text, position):
        return [_command(match)], match.end()
    if match := _WORD.match(text, position):
        return _word(match[0], text, position), match.end()
    for symbol in _SYMBOLS:
        if text.startswith(symbol, position):
            known = _SAME_SYMBOL.get(symbol)
            return [Token("command", known) if known else Token("symbol", symbol)], position + len(symbol)
    raise Unreadable(f"{text[position]!r} is no part of an expression")


def _command(match: re.Match[str]) -> Token:
    name = match[1] or match[2]
    if name in ("{", "}"):
        return Token("symbol", "\\" + name)
    if name == "$":
        return Token("text", "$")
    return Token("symbol", name) if name in "|&_" else Token("command", name)


def _text_tokens(command: str, content: str) -> list[Token]:
    r"""`\mathbf{v}` is the letter v, `\text{(C)}` the letter C, `\text{or}` the word between two answers."""
    inner = content.strip()
    letter = re.fullmatch(r"\(?([A-Za-z])\)?\.?", inner)
    if letter and not (inner in UNITS and command.startswith(("text", "mbox", "mathrm"))):
        return [Token("letter", letter[1])]
    if inner in ("or", "and", ",", ", and", ", or"):
        return [Token("symbol", ",")]
    return [Token("text", inner)] if inner else []


def _word(word: str, text: str, position: int) -> list[Token]:
    """Letters without a backslash: a function, a unit, a word, or a product of letters."""
    if word in FUNCTIONS or word in _WORDS:
        return [Token("command", _WORDS.get(word, word))]
    if word in ("or", "and"):
        return [Token("symbol", ",")]
    follows_digit = text[position - 1 : position].isdigit()
    is_word = len(word) > 1 and not follows_digit and word.casefold() in _ENGLISH
    is_unit = len(word) > 1 and unit_name(word) in UNITS.values()
    if is_unit or is_word or (len(word) > 3 and not follows_digit):
        return [Token("text", word)]
    return [Token("letter", letter) for letter in word]


def unit_name(word: str) -> str:
    """A unit's one spelling: `hours` and `hr` as `h`; another word in small letters, in the singular."""
    word = word.strip(" .").casefold()
    singular = word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
    return UNITS.get(word) or UNITS.get(singular) or singular
