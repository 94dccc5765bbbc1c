r"""The one reader of numbers: literals for the grammar of expressions, and the numbers of prose.

A number is read as a whole, by its grammar, never by deleting or replacing characters: `2 1/2` and
`2\frac{1}{2}` are 5/2, `6.63 \times 10^{-34}` is that, `1,234.50` and `1{,}234.5` are equal, and `1,8`,
`12/25/2024`, `3:30`, `x4` and `2x` are no numbers. Values are exact fractions.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

MAX_DIGITS = 200
MAX_EXPONENT = 5000
SIGNIFICANT_DIGITS = 6
"""So many digits a decimal must give to stand for a value that it does not write exactly."""

_SPELLINGS = {"−": "-", "–": "-", "﹣": "-", "×": "\\times ", "⋅": "\\cdot ", "·": "\\cdot ", "∙": "\\cdot "}
_SPELLINGS |= {"÷": "\\div ", "π": "\\pi ", "∞": "\\infty ", "°": "^\\circ ", "√": "\\sqrt ", "≤": "\\le "}
_SPELLINGS |= {"≥": "\\ge ", "≠": "\\ne ", "≈": "\\approx ", "±": "\\pm ", "∓": "\\mp ", "∪": "\\cup "}
_SPELLINGS |= {"∩": "\\cap ", "∈": "\\in ", "∅": "\\emptyset ", "ℝ": "\\mathbb{R}", "⁄": "/", "′": "'"}
_SPELLINGS |= {"θ": "\\theta ", "α": "\\alpha ", "β": "\\beta ", "γ": "\\gamma ", "λ": "\\lambda "}
_SPELLINGS |= {
    "μ": "\\mu ",
    "σ": "\\sigma ",
    "ω": "\\omega ",
    "φ": "\\phi ",
    "Δ": "\\Delta ",
    "∖": "\\setminus ",
}
_SPELLINGS |= {
    "“": '"',
    "”": '"',
    "’": "'",
    "⌊": "\\lfloor ",
    "⌋": "\\rfloor ",
    "⌈": "\\lceil ",
    "⌉": "\\rceil ",
}
_RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n", strict=True))
_LOWERED = dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True))

_GROUPED = r"[0-9]{1,3}(?:(?:,\\!\s{0,2}|\{,\}(?:\\!)?\s?|\\,|[\u2009\u202f\xa0]%s)[0-9]{3})+(?![0-9])"
_SCALED = r"(?:\.[0-9]+)?(?:[eE][-+]?[0-9]{1,9}(?![0-9A-Za-z]|\.[0-9]))?"
_LITERAL = rf"(?:(?:{_GROUPED}|[0-9]+){_SCALED}|(?<![0-9A-Za-z.])\.[0-9]+)"
LITERAL = re.compile(_LITERAL % "|,|(?<=[0-9])\\x20(?=[0-9]{3}(?![0-9/]))")
"""A number as it is written, with marks between thousands."""
LITERAL_IN_LIST = re.compile(_LITERAL % "")
"""The same where a plain comma separates items."""

RECURRING = re.compile(
    r"(?P<before>[0-9]{1,40}\.[0-9]{0,40})\s?\\(?:overline|bar|dot)\s?\{\s?(?P<period>[0-9]{1,40})\s?\}"
    r"|(?P<first>[0-9]{1,40}\.[0-9]{0,20}?)(?P<block>[0-9]{1,10}?)(?P=block){2,9}\s?(?:\.\.\.|…|\\[lc]?dots)"
)
r"""A recurring decimal: `0.1\overline{6}`, or `0.333...` a block of digits three times or more."""

_PLAIN = _LITERAL % "|,"
_GROUP = r"\{\s?[0-9]{1,40}\s?\}|[0-9]"
_POWER = r"\{\s?-?[0-9]{1,5}\s?\}|-?[0-9]{1,5}"
_SIGNED_GROUP = rf"\{{\s?-?(?:{_PLAIN})\s?\}}|[0-9]"
_TOKEN = re.compile(
    rf"""
    (?<![0-9A-Za-z_^\\])(?<![0-9][.,:])(?<![_^]\{{)
    (?:
      (?P<sign>[-+])?\s?(?:\\?\$|[£€₹¥]|(?:USD|US\$|Rs\.?|EUR|GBP)\s?)?\s?(?P<inner_sign>-)?
      (?:
        (?P<recurring>{RECURRING.pattern})
      | (?P<whole>{_PLAIN})
        (?:
          (?:\s{{1,3}}|\s?-(?=[0-9])|\s{{1,2}}and\s{{1,2}})(?P<top>[0-9]{{1,20}})\s?/\s?(?P<bottom>[0-9]{{1,20}})(?![0-9])
        | \s{{0,3}}\\[dtc]?frac\s?(?P<frac_top>{_GROUP})\s?(?P<frac_bottom>{_GROUP})
        | \s?/\s?(?P<divisor>{_PLAIN})
        | \s{{0,2}}(?:\\times|\\cdot|[x*])\s{{0,2}}10\s?\^\s?(?P<power>{_POWER})
        | \s?\^\s?(?P<exponent>{_POWER})
        | _(?P<base>\{{[0-9]{{1,2}}\}}|[0-9]{{1,2}})
        )?
      | \\[dtc]?frac\s?(?P<only_top>{_SIGNED_GROUP})\s?(?P<only_bottom>{_SIGNED_GROUP})
      )
      (?P<scale>\s?(?:hundred|thousand|million|billion|trillion)\b|[kK](?![A-Za-z0-9]))?
      (?P<percent>\s?\\?%|\s?percent\b)?
      (?![0-9]|[eE][-+]?[0-9]|[.,:][0-9]|\s:\s[0-9]|\s?/\s?[0-9]|[xyzn](?![A-Za-z])|_|\.?\\(?:overline|bar|dot)\s?\{{|\s?\^(?!\s?\{{?\s?\\circ))
    | (?P<none>[0-9]+(?:(?:[.,:]|\s:\s|\s?/\s?)[0-9]+)*)
    )
    """,
    re.VERBOSE,
)
SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12, "k": 3}


@dataclass(frozen=True)
class Number:
    """One number of a text."""

    value: Fraction
    places: int | None = None
    """Digits behind the decimal point, so that its last digit is worth 10^-places; None: no decimal."""
    is_percent: bool = False
    text: str = ""
    """As it is written."""

    def same(self, other: Number) -> bool:
        """Both are the same number; of a percentage its figure counts, or its value."""
        pairs = [(self, other)]
        if self.is_percent != other.is_percent:
            pairs.append((self.as_share(), other.as_share()))
        return any(same_value(a.value, a.places, b.value, b.places) for a, b in pairs)

    def as_share(self) -> Number:
        """50 % as 0.5; anything else as it is."""
        if not self.is_percent:
            return self
        return Number(self.value / 100, None if self.places is None else self.places + 2)


def same_value(a: Fraction, a_places: int | None, b: Fraction, b_places: int | None) -> bool:
    """Equal exactly; or one is a decimal that writes the other, a fraction, rounded or cut to its digits.

    Two decimals, or a decimal and an integer, are the same only where they are equal: both are exact.
    """
    if a == b:
        return True
    if (a_places is None) == (b_places is None):
        return False
    decimal, places, exact = (a, a_places, b) if a_places is not None else (b, b_places, a)
    return exact.denominator > 1 and writes(decimal, places or 0, exact)


def writes(decimal: Fraction, places: int, exact: Fraction) -> bool:
    """A decimal is a value rounded or cut to its last digit, and gives enough digits to stand for it."""
    unit = Fraction(10) ** -places
    if abs(decimal) < unit * 10 ** (SIGNIFICANT_DIGITS - 1) or (decimal < 0) != (exact < 0):
        return False
    excess = abs(exact) - abs(decimal)
    return -unit / 2 <= excess < unit


def literal(text: str) -> Number | None:
    """The value of a literal that `LITERAL` matched; None where it is too long."""
    mantissa, _, exponent = text.lower().partition("e")
    digits = re.sub(r"[^0-9.]", "", mantissa)
    power = int(exponent or 0)
    if len(digits) > MAX_DIGITS or abs(power) > MAX_EXPONENT:
        return None
    places = len(digits.partition(".")[2]) - power if "." in digits or power < 0 else None
    return Number(Fraction(digits) * Fraction(10) ** power, places, text=text)


def recurring(match: re.Match[str]) -> Number:
    """The exact value of a decimal that `RECURRING` matched."""
    before, period = match["before"] or match["first"], match["period"] or match["block"]
    shift = len(before.partition(".")[2])
    share = Fraction(int(period), 10 ** len(period) - 1)
    return Number(Fraction(before.rstrip(".")) + share / 10**shift, text=match[0])


def spelled(text: str) -> str:
    """Symbols that have a usual command in LaTeX as this command: `2½` as `2\\frac{1}{2}`, `x²` as `x^{2}`.

    Digits of other scripts stay what they are, and are no digits to any reader here.
    """
    if text.isascii():
        return text
    text = re.sub(f"[{''.join(_RAISED)}]+", lambda run: f"^{{{_spelled(run[0], _RAISED)}}}", text)
    text = re.sub(f"[{''.join(_LOWERED)}]+", lambda run: f"_{{{_spelled(run[0], _LOWERED)}}}", text)
    return "".join(_SPELLINGS.get(sign) or _vulgar(sign) for sign in text)


def _spelled(run: str, digits: dict[str, str]) -> str:
    return "".join(digits[sign] for sign in run)


def _vulgar(sign: str) -> str:
    """½ as a fraction; other signs as they are."""
    if sign.isascii() or "VULGAR FRACTION" not in unicodedata.name(sign, ""):
        return sign
    top, _, bottom = unicodedata.normalize("NFKC", sign).partition("⁄")
    return f"\\frac{{{top}}}{{{bottom}}}" if bottom else sign


def numbers_in(text: str) -> list[Number]:
    """The numbers of a text from left to right."""
    return list(_scan(re.sub(r"(\\[A-Za-z]+)(?=[0-9])", r"\1 ", spelled(text))))


def _scan(text: str) -> Iterator[Number]:
    position = 0
    while match := _TOKEN.search(text, position):
        position = max(match.end(), position + 1)
        if match["none"] is not None:
            continue
        if match["top"] and not int(match["top"]) < int(match["bottom"]):
            # Two numbers side by side, and no mixed number.
            position = match.end("whole")
            number = literal(match["whole"])
        else:
            number = _value(match)
        if number is not None:
            is_negative = bool(match["inner_sign"]) != (
                match["sign"] == "-" and _is_sign(text, match.start())
            )
            value = -number.value if is_negative else number.value
            yield Number(value, number.places, bool(match["percent"]), match[0].strip())


def _value(match: re.Match[str]) -> Number | None:
    """The number of a match, but for its sign."""
    if match["recurring"]:
        number: Number | None = recurring(match)
    elif match["only_top"]:
        number = _ratio(_stripped(match["only_top"]), _stripped(match["only_bottom"]))
    else:
        number = _composed(match)
    scale = (match["scale"] or "").strip().lower()
    if number is None or not scale:
        return number
    return Number(number.value * 10 ** SCALES[scale])


def _composed(match: re.Match[str]) -> Number | None:
    whole = literal(match["whole"])
    top, bottom = match["top"] or match["frac_top"], match["bottom"] or match["frac_bottom"]
    power, exponent, base = (_stripped(match[name] or "") for name in ("power", "exponent", "base"))
    if whole is None:
        return None
    if top:
        part = _ratio(_stripped(top), _stripped(bottom))
        return part and Number(whole.value + part.value)
    if match["divisor"]:
        return _ratio(match["whole"], match["divisor"])
    if power:
        return shifted(whole, int(power))
    if exponent:
        return _raised(whole, int(exponent))
    if base:
        value = in_base(match["whole"], int(base))
        return None if value is None else Number(Fraction(value))
    return whole


def shifted(number: Number, power: int) -> Number | None:
    """A number times ten to a power."""
    if abs(power) > MAX_EXPONENT:
        return None
    places = number.places
    if places is None and power < 0:
        places = 0
    return Number(number.value * Fraction(10) ** power, None if places is None else places - power)


def in_base(digits: str, base: int) -> int | None:
    """A numeral's value; None where it is no numeral of this base."""
    try:
        return int(digits, base) if 2 <= base <= 36 and len(digits) <= MAX_DIGITS else None
    except ValueError:
        return None


def _raised(number: Number, exponent: int) -> Number | None:
    if abs(exponent) > MAX_DIGITS or (exponent < 0 and number.value == 0):
        return None
    return Number(number.value**exponent)


def _ratio(top: str, bottom: str) -> Number | None:
    sign = -1 if top.startswith("-") != bottom.startswith("-") else 1
    upper, lower = literal(top.lstrip("-")), literal(bottom.lstrip("-"))
    if upper is None or lower is None or lower.value == 0:
        return None
    return Number(sign * upper.value / lower.value)


def _stripped(text: str) -> str:
    return text.strip("{} \n\t")


def _is_sign(text: str, start: int) -> bool:
    """The minus at `start` is a sign: no number or letter stands before it; it marks no item of a list."""
    before = text[max(0, start - 40) : start]
    last = before.rstrip()
    is_apart = len(last) < len(before)
    if not last or before.rstrip(" ").endswith("\n"):
        return not text[start + 1 : start + 2].isspace()
    if last[-1] in "0123456789)]}%" and last[-2:] != "\\{":
        return False
    ends_in_name = re.search(r"(?:^|[^A-Za-z\\])[A-Za-z]\Z", last) is not None
    return not (last[-1].isalpha() and (not is_apart or ends_in_name))
