r"""When two answers are the same: as text, as a time or ratio, or as what their trees mean.

Text that is no mathematics is compared as text, in its order: `abc` is not `cab`. Where both are
mathematics, what surrounds it must not contradict: `5 \text{ cm}` is 5 and not `5 \text{ m}`.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from fractions import Fraction

from . import values
from .grammar import Node, number_node, parse
from .numbers import RECURRING, SCALES, Number, in_base
from .places import without_markdown
from .regions import region_of, same_region
from .tokens import Token, Unreadable, tokens_of, unit_name

_MAX_TEXT = 5000
_MAX_ITEMS = 40
_MAX_UNIT_WORDS = 6
_TIME = re.compile(r"([0-9]{1,2})(?::([0-9]{2}))?(?::([0-9]{2}))?\s*(?:([ap])\.?\s?m\.?)?", re.IGNORECASE)
_CHOICE = re.compile(
    r"(?:\\(?:text|textbf|textrm|mathrm|mathbf)\s?\{\s?)?\(([A-Z])\)\s?\}?"
    r"(?:\\[ ,;:!]|\\q?quad|[\s~:.])*([^\s}].*)",
    re.DOTALL,
)
_RATIO = re.compile(r"[0-9]+(?:\.[0-9]+)?(?:\s*:\s*[0-9]+(?:\.[0-9]+)?)+")
_MARKS = re.compile(r"(?<!\\)\$|\\[()](?![a-z])|(?<!\\)\\[\[\]](?![a-z])|<\|[a-z_]{1,20}\|>|\\boxed(?![a-z])")
_SIZES = re.compile(r"\\(?:left|right|[bB]igg?[lr]?|displaystyle)(?![A-Za-z])|\\!")
_SPACES = re.compile(r"(?:\\[,;:> ]|\\q?quad(?![A-Za-z])|~|\s)+")
_TEXT_COMMAND = re.compile(r"\\(?:text[a-z]{0,6}|mbox|mathrm|mathbf|mathit|operatorname)\s?(?=\{)")
_ONE_SIDED = frozenset("or and to more less not at most least than between about over under".split())
_LEADS_IN = frozenset("is are was be equals =".split())


@dataclass(frozen=True)
class Answer:
    """An answer that was read as mathematics, and the words around it."""

    before: str
    node: Node
    unit: str
    """Words behind it in one spelling; empty where there are none."""


def same(answer: str, reference: str) -> bool:
    """Two answers are the same text up to spacing, or mean the same."""
    plain = plain_text(answer), plain_text(reference)
    if plain[0] == plain[1]:
        return bool(plain[0])
    if not (0 < len(answer) <= _MAX_TEXT and 0 < len(reference) <= _MAX_TEXT):
        return False
    words = words_of(answer), words_of(reference)
    if words[0] == words[1] and len(words[0]) > 1:
        return True
    if all(re.fullmatch("[a-z ]+", text) for text in words) and min(map(len, words)) > 1:
        return False
    values.allow_work()
    clock = _same_clock(words[0], words[1])
    if clock is not None:
        return clock
    found, right = read(answer), read(reference)
    if found is None or right is None or not _words_agree(found, right):
        return False
    try:
        return same_node(found.node, right.node)
    except (Unreadable, RecursionError):
        return False


def same_choice(answer: str, reference: str) -> bool:
    r"""Of `\textbf{(B)}\ 12` the letter is the answer, and so is the value; of two such, both count."""
    labelled = [_CHOICE.fullmatch(text.strip()) for text in (answer, reference)]
    if labelled[0] is not None and labelled[1] is not None:
        return labelled[0][1] == labelled[1][1] and same(labelled[0][2], labelled[1][2])
    given = labelled[0] or labelled[1]
    if given is None:
        return False
    other = reference if labelled[0] is not None else answer
    return any(same(part, other) for part in given.groups())


def plain_text(text: str) -> str:
    """A text for comparison letter by letter: without spaces, but for those between digits."""
    text = _MARKS.sub(" ", re.sub(r"\\[dt]frac(?![a-z])", r"\\frac", text))
    text = _SPACES.sub(" ", _SIZES.sub("", text).replace("{,}", ",")).strip()
    return re.sub(r"(?<![0-9]) | (?![0-9])", "", text).removesuffix(".")


def words_of(text: str) -> str:
    """Text in small letters, without the commands and braces that set it as text."""
    text = _TEXT_COMMAND.sub("", _MARKS.sub(" ", without_markdown(text)))
    text = _SPACES.sub(" ", _SIZES.sub("", text)).replace("{", "").replace("}", "")
    text = text.strip(" .,;:!\"'")
    if "\\" in text or len(text) < 2:
        return text
    return text.casefold() if re.search("[A-Za-z]{2}", text) else text


def read(text: str) -> Answer | None:
    """An answer as mathematics with the words around it; None where it is none."""
    try:
        return _read(_without_stop(_MARKS.sub(" ", without_markdown(text)).strip()))
    except (Unreadable, RecursionError):
        return None


def _without_stop(text: str) -> str:
    """Without the punctuation of a sentence; the dots of `0.333...` stay."""
    is_recurring = any(match.end() == len(text) for match in RECURRING.finditer(text))
    return text if is_recurring else text.rstrip(".,;:").strip()


def gives_several(text: str) -> bool:
    """An answer is a list, a pair or a set: it gives no single value."""
    answer = read(text)
    return answer is not None and answer.node.kind in ("list", "tuple", "set")


def constant_in(text: str) -> Number | None:
    """The rational number that an answer as a whole is worth, a unit aside; None where it is worth none."""
    answer = read(text)
    if answer is None:
        return None
    values.allow_work()
    try:
        return values.rational(value_of(answer.node))
    except (Unreadable, RecursionError):
        return None


@functools.lru_cache(maxsize=512)
def _read(text: str) -> Answer:
    tokens = tokens_of(text)
    start = 0
    while start < len(tokens) and tokens[start].kind == "text":
        start += 1
    before, rest = tokens[:start], tokens[start:]
    if rest and before and rest[0].text in ("=", ":"):
        rest, before = rest[1:], []  # `Area = 5`
    end = _end_of_mathematics(rest)
    words = [*(token.text for token in before if token.text == "$"), *(token.text for token in rest[end:])]
    lead = " ".join(token.text for token in before if token.text != "$")
    if len(words) > _MAX_UNIT_WORDS:
        raise Unreadable("a sentence")
    node = parse(rest[:end])
    if node.kind == "percent":
        words.append("percent")
    if words and words[0].strip() in SCALES:
        node = Node("times", (node, number_node(Number(Fraction(10 ** SCALES[words.pop(0).strip()])))))
    while node.kind == "degrees":
        node = node.parts[0]
        words.append("degree")
    return Answer(lead.casefold(), node, _unit(words))


def _end_of_mathematics(tokens: list[Token]) -> int:
    """Where the unit behind an expression begins: words, their powers, and what joins them."""
    end = len(tokens)
    for place in range(len(tokens) - 1, -1, -1):
        is_power = tokens[place].kind == "number" and place and tokens[place - 1].text in ("^", "{")
        if tokens[place].kind == "text":
            end = place
        elif not is_power and tokens[place].text not in ("^", "{", "}", "/", ".", "cdot"):
            break
    if end < len(tokens) and end and tokens[end - 1].text == "{":
        raise Unreadable("text within braces")
    return end


def _unit(words: list[str]) -> str:
    text = " ".join(words).replace("{", "").replace("}", "")
    names = [unit_name(word) for word in re.findall(r"\$|[A-Za-z]+|[0-9]+", text)]
    squared = {"sq": "2", "square": "2", "cubic": "3", "cu": "3", "squared": "2", "cubed": "3"}
    powers = [squared[name] for name in names if name in squared]
    return " ".join([*(name for name in names if name not in squared and name != "unit"), *powers])


def _words_agree(a: Answer, b: Answer) -> bool:
    """The units are the same or one side has none; words in front lead in, or are the same."""
    for some, other in ((a, b), (b, a)):
        lead = some.before.strip(" :=,").rpartition(" ")[2]
        if some.before and some.before != other.before and lead not in _LEADS_IN:
            return False
        if some.unit and not other.unit and (_ONE_SIDED & set(some.unit.split())):
            return False
    return not a.unit or not b.unit or a.unit == b.unit


def _same_clock(a: str, b: str) -> bool | None:
    """Whether two times of day, or two ratios, are the same; None where they are neither."""
    times = [_minutes(text) for text in (a, b)]
    if times[0] is not None and times[1] is not None and any(":" in text or "m" in text for text in (a, b)):
        (first, is_told), (second, also_told) = times[0], times[1]
        half_day = 12 * 3600
        return first == second or (is_told != also_told and first % half_day == second % half_day)
    if not (_RATIO.fullmatch(a) or _RATIO.fullmatch(b)):
        return None
    parts = [
        [Fraction(part.strip()) for part in text.split(":")] for text in (a, b) if _RATIO.fullmatch(text)
    ]
    if len(parts) < 2 or len(parts[0]) != len(parts[1]):
        return False
    return all(x * parts[1][0] == y * parts[0][0] for x, y in zip(parts[0], parts[1], strict=True))


def _minutes(text: str) -> tuple[int, bool] | None:
    """Seconds since midnight, and whether morning or afternoon is told, of a time of day."""
    match = _TIME.fullmatch(text)
    if match is None or (match[2] is None and match[4] is None):
        return None
    hours, minutes, seconds = (int(part or 0) for part in match.groups()[:3])
    if hours > 24 or minutes > 59 or seconds > 59 or (match[4] and not 1 <= hours <= 12):
        return None
    if match[4]:
        hours = hours % 12 + (12 if match[4].lower() == "p" else 0)
    return hours * 3600 + minutes * 60 + seconds, bool(match[4]) or hours > 12 or hours == 0


# --- Trees. ---


def same_node(a: Node, b: Node) -> bool:
    """Two trees mean the same.

    Raises:
        Unreadable: one of them has no meaning here.
    """
    if a.kind == "relation" or b.kind == "relation":
        return _same_relation(a, b)
    regions = [region_of(node) for node in (a, b)]
    if regions[0] is not None and regions[1] is not None and {a.kind, b.kind} != {"tuple"}:
        return same_region(regions[0], regions[1])
    if {a.kind, b.kind} & {"list", "set"} or _has_both_signs(a) or _has_both_signs(b):
        return _same_items(a, b)
    if a.kind == "tuple" and b.kind == "tuple":
        return a.name == b.name and _same_in_order(a.parts, b.parts)
    if "matrix" in (a.kind, b.kind):
        return a.kind == b.kind and _same_in_order(a.parts, b.parts)
    if a.kind == "row" and b.kind == "row":
        return _same_in_order(a.parts, b.parts)
    ends = [_infinite(node) for node in (a, b)]
    if ends != [0, 0]:
        return ends[0] == ends[1]
    return _same_numeral(a, b) if "numeral" in (a.kind, b.kind) else values.equal(a, b)


def _same_in_order(some: tuple[Node, ...], others: tuple[Node, ...]) -> bool:
    return len(some) == len(others) and all(same_node(*pair) for pair in zip(some, others, strict=True))


def _same_items(a: Node, b: Node) -> bool:
    """Items in any order; of a set each counts once. A bare list is also the tuple of its items in order."""
    if {a.kind, b.kind} == {"list", "tuple"}:
        return "()" in (a.name, b.name) and _same_in_order(a.parts, b.parts)
    some, others = _items(a), _items(b)
    if len(some) > _MAX_ITEMS or len(others) > _MAX_ITEMS:
        raise Unreadable("too many items")
    if "set" in (a.kind, b.kind):
        some, others = _distinct(some), _distinct(others)
    if len(some) != len(others):
        return False
    left = list(others)
    for item in some:
        match = next((place for place, other in enumerate(left) if _same_item(item, other)), None)
        if match is None:
            return False
        del left[match]
    return True


def _same_item(a: Node, b: Node) -> bool:
    try:
        return same_node(a, b)
    except Unreadable:
        return a == b


def _distinct(items: list[Node]) -> list[Node]:
    kept: list[Node] = []
    for item in items:
        if not any(_same_item(item, other) for other in kept):
            kept.append(item)
    return kept


def _items(node: Node) -> list[Node]:
    r"""The items of a list or set; both values of `\pm`; else the node alone."""
    if node.kind in ("list", "set"):
        named = _shared_name(node.parts)
        return [item for part in node.parts for item in _items(value_of(part) if named else part)]
    if _has_both_signs(node):
        return [_with_sign(node, +1), _with_sign(node, -1)]
    return [node]


def _shared_name(parts: tuple[Node, ...]) -> bool:
    """The items are `x = 1, x = 2`, or `x = 1, 2`: values of one letter."""
    names = {part.parts[0] for part in parts if _is_named(part)}
    return len(names) == 1 and _is_named(parts[0])


def _has_both_signs(node: Node) -> bool:
    if node.kind in ("list", "set", "tuple", "relation"):
        return False
    return node.kind in ("pm", "mp") or any(_has_both_signs(part) for part in node.parts)


def _with_sign(node: Node, sign: int) -> Node:
    parts = tuple(_with_sign(part, sign) for part in node.parts)
    if node.kind in ("pm", "mp"):
        return parts[0] if (sign > 0) == (node.kind == "pm") else Node("minus", parts)
    return Node(node.kind, parts, node.name, node.number)


def _infinite(node: Node) -> int:
    """1 or -1 for an infinity, else 0."""
    if node.kind == "minus":
        return -_infinite(node.parts[0])
    return int(node.kind == "constant" and node.name == "infty")


def _same_numeral(a: Node, b: Node) -> bool:
    """Numerals with bases by their values; digits without a base are taken in the base of the other side."""
    if a.kind == b.kind:
        return a.number is not None and b.number is not None and a.number.value == b.number.value
    numeral, other = (a, b) if a.kind == "numeral" else (b, a)
    digits = numeral.name.partition("_")[0]
    number = other.number if other.kind == "number" else None
    if number is None or number.value.denominator != 1:
        return values.equal(number_node(numeral.number or Number(Fraction(0))), other)
    return digits.lstrip("0") == str(number.value) or (
        other is b and in_base(str(number.value), 10) == (numeral.number and numeral.number.value)
    )


# --- Equations and inequalities. ---


def _same_relation(a: Node, b: Node) -> bool:
    both = a.kind == b.kind == "relation"
    if both and _same_chain(a, b):
        return True
    regions = [region_of(node) for node in (a, b)]
    if regions[0] is not None and regions[1] is not None:
        return same_region(regions[0], regions[1])
    if both:
        named = _is_named(a) and _is_named(b) and a.parts[0] == b.parts[0]
        return named and same_node(value_of(a), value_of(b))
    value_a, value_b = value_of(a), value_of(b)
    if "relation" in (value_a.kind, value_b.kind):
        return False
    return same_node(value_a, value_b)


def _is_named(node: Node) -> bool:
    """It is `x = ...` or `f(x) = ...`."""
    if node.kind != "relation" or node.name.split()[0] not in ("=", "in", "~"):
        return False
    return _is_name(node.parts[0])


def _is_name(node: Node) -> bool:
    if node.kind in ("letter", "decorated"):
        return True
    return node.kind == "beside" and all(_is_name(part) for part in node.parts)


def value_of(node: Node) -> Node:
    r"""What `x = ...`, `2 + 3 = 5`, `x \in A` or `9\pi \approx 28.27` states; another relation as it is."""
    if node.kind != "relation" or set(node.name.split()) - {"=", "in", "~"}:
        return node
    parts = [part for part in node.parts if not _is_name(part)]
    if not parts:
        return node.parts[-1]
    if "~" in node.name.split():
        return parts[0]
    if all(not list(values.names_in(part)) for part in parts[:-1]):
        return parts[-1]
    return node


def _same_chain(a: Node, b: Node) -> bool:
    """Two relations with as many parts say the same, read from either end; of one sign, up to a factor."""
    signs_a, signs_b = a.name.split(), b.name.split()
    turned = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!=", "~": "~", "in": "ni"}
    if len(signs_a) != len(signs_b):
        return False
    if len(signs_a) == 1 and "in" not in (signs_a[0], signs_b[0]):
        factors = [1, -1] if signs_a[0] in ("=", "!=") else [1] if signs_a == signs_b else [-1]
        fits = signs_a == signs_b or turned[signs_a[0]] == signs_b[0]
        return fits and _proportional(_moved(a), _moved(b), factors)
    if signs_a == signs_b and _same_in_order(a.parts, b.parts):
        return True
    return [turned[sign] for sign in reversed(signs_a)] == signs_b and _same_in_order(a.parts[::-1], b.parts)


def _moved(node: Node) -> Node:
    """The left side of a relation minus its right side."""
    return Node("sum", (node.parts[0], Node("minus", (node.parts[1],))))


def _proportional(a: Node, b: Node, signs: list[int]) -> bool:
    """One expression is the other times a constant with one of the signs."""
    names = sorted({*values.names_in(a), *values.names_in(b)})
    if not names:
        return values.equal(a, b)
    first = next(iter(values.points(names)))
    at = [_at(node, first) for node in (a, b)]
    crossed = [Node("times", (a, at[1])), Node("times", (b, at[0]))]
    size = [values.numeric(node, first, values.DIGITS[0]) for node in (a, b)]
    if 0 in size or abs((size[0] / size[1]).imag) > 1e-50:
        return False
    sign = 1 if (size[0] / size[1]).real > 0 else -1
    return sign in signs and values.equal(crossed[0], crossed[1])


def _at(node: Node, point: values.Values) -> Node:
    """A tree with numbers for its letters."""
    if node.kind == "letter" and node.name in point:
        return number_node(Number(point[node.name]))
    return Node(node.kind, tuple(_at(part, point) for part in node.parts), node.name, node.number)
