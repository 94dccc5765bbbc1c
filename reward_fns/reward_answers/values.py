"""What a tree is worth: exact where it is rational, else to hundreds of digits.

Exact values are fractions, so that no two numbers become equal by rounding. Where roots, functions or
constants occur, a value is computed twice, to 300 and to 600 digits: a difference that is zero vanishes
with the precision, one that is not stays. Letters are given rational values, at several points.

Bounds: exponents, factorials and the bits of exact numbers; beyond them a tree has no value.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

from .grammar import Node
from .numbers import Number, shifted, writes
from .tokens import Unreadable

MAX_BITS = 40_000
"""Of an exact number."""
MAX_FACTORIAL = 2000
MAX_PLACES = 150
"""Decimals that can stand for a value that is not rational have at most so many places."""
MAX_WORK = 4_000_000
"""Bits that may be computed to compare two answers, which bounds the time."""
MAX_POWER_VALUE = 10**6
"""Largest exponent of a value that is not exact."""
DIGITS = (300, 600)
_POINTS = 4
_LOCAL = threading.local()
Values = Mapping[str, Fraction]


class NotRational(Exception):
    """A tree has no rational value, for it holds a root, a function or a constant."""


def prepare() -> None:
    """Import mpmath and make the contexts that comparisons use."""
    for digits in DIGITS:
        _context(digits)


def allow_work() -> None:
    """Begin a comparison: it may compute `MAX_WORK` bits, in this thread."""
    _LOCAL.work = MAX_WORK


def spend(bits: int) -> None:
    """Count work.

    Raises:
        Unreadable: the comparison has used up what it may.
    """
    _LOCAL.work = getattr(_LOCAL, "work", MAX_WORK) - bits
    if _LOCAL.work < 0:
        raise Unreadable("too much to compute")


def equal(a: Node, b: Node) -> bool:
    """Two expressions, without lists and relations in them, have one value wherever both have one.

    Raises:
        Unreadable: one of them has no value, or none within the bounds.
    """
    names = sorted({*names_in(a), *names_in(b)})
    if not names:
        return _equal_constants(a, b)
    if len(names) > 12:
        raise Unreadable("too many letters")
    return all(_difference_vanishes(a, b, values) for values in points(names))


def points(names: list[str]) -> Iterator[Values]:
    """Values for letters: positive, then with one letter negative at a time."""
    for point in range(_POINTS):
        values = {}
        for index, name in enumerate(names):
            sign = -1 if point >= 2 and index == (point - 2) % len(names) else 1
            values[name] = sign * Fraction(
                17 + 13 * index + 29 * point + index * index, 11 + 2 * index + 3 * point
            )
        yield values
    if len(names) > 2:
        for index, name in enumerate(names):
            yield {
                other: Fraction(3 + i, 2 + i) * (-1 if other == name else 1) for i, other in enumerate(names)
            }
            if index > 5:
                return


def names_in(node: Node) -> Iterator[str]:
    """The letters of a tree that stand for something unknown: all but i and e."""
    if node.kind == "letter" and node.name not in ("i", "e"):
        yield node.name
    if node.kind == "decorated":
        yield _decorated(node)
        return
    for part in node.parts:
        yield from names_in(part)


def _equal_constants(a: Node, b: Node) -> bool:
    numbers = [rational(node) for node in (a, b)]
    if numbers[0] is not None and numbers[1] is not None:
        return numbers[0].same(numbers[1])
    for number, other in zip(numbers, (b, a), strict=True):
        if number is not None and number.places is not None:
            return _writes(number, other)
    return _difference_vanishes(a, b, {})


def _writes(number: Number, other: Node) -> bool:
    """A decimal writes the value of an expression that is not rational."""
    places = number.places or 0
    if places > MAX_PLACES:
        return False
    context = _context(DIGITS[1])
    value = numeric(other, {}, DIGITS[1])
    if abs(value.imag) > context.mpf(10) ** -MAX_PLACES or abs(value) > context.mpf(10) ** MAX_PLACES:
        return False
    unit = 10 ** (places + 20)
    return writes(number.value, places, Fraction(int(context.nint(value.real * unit)), unit))


def rational(node: Node) -> Number | None:
    """The exact value of a constant, with its decimal places where it is a decimal; None: not rational."""
    try:
        if node.kind == "percent":
            inner = rational(node.parts[0])
            return inner and Number(inner.value, inner.places, True)
        return Number(exact(node, {}), _places(node))
    except NotRational:
        return None
    except (ZeroDivisionError, ValueError) as error:
        raise Unreadable(str(error)) from None


def _places(node: Node) -> int | None:
    """Decimal places of what is a decimal with a sign, or times a power of ten; None for anything else."""
    if node.kind == "number" and node.number is not None:
        return node.number.places
    if node.kind == "minus":
        return _places(node.parts[0])
    if node.kind == "times" and node.parts[1].kind == "power":
        base, exponent = node.parts[1].parts
        places, power = _places(node.parts[0]), _small_whole(exact(exponent, {}))
        if base.number is not None and base.number.value == 10 and power is not None:
            moved = shifted(Number(Fraction(1), places), power)
            return None if moved is None else moved.places
    return None


def exact(node: Node, values: Values) -> Fraction:
    """The value of a tree in fractions.

    Raises:
        NotRational: it has none.
        Unreadable: it is too large, or no expression.
        ZeroDivisionError: it divides by zero.
    """
    result = _exact(node, values)
    spend(result.numerator.bit_length() + result.denominator.bit_length() + 100)
    if result.numerator.bit_length() + result.denominator.bit_length() > MAX_BITS:
        raise Unreadable("a number too large")
    return result


def _exact(node: Node, values: Values) -> Fraction:
    kind = node.kind
    if kind in ("number", "numeral") and node.number is not None:
        return node.number.value
    if kind in ("letter", "decorated"):
        name = node.name if kind == "letter" else _decorated(node)
        if name in values:
            return values[name]
        raise NotRational
    if kind in ("power", "factorial", "binomial", "root"):
        return _EXACT[kind](*(exact(part, values) for part in node.parts))
    if kind == "function":
        return _exact_function(node, values)
    if kind not in _ARITHMETIC:
        raise (
            NotRational if kind in ("constant", "pm", "mp") else Unreadable(f"a {kind} inside an expression")
        )
    parts = [exact(part, values) for part in node.parts]
    return _arithmetic(kind, parts)


_ARITHMETIC = ("sum", "minus", "times", "beside", "over", "percent", "degrees")


def _arithmetic(kind: str, parts: list[Any]) -> Any:
    if kind == "sum":
        return sum(parts[1:], parts[0])
    if kind in ("times", "beside"):
        return parts[0] * parts[1]
    if kind == "over":
        return parts[0] / parts[1]
    if kind == "percent":
        return parts[0] / 100
    return -parts[0] if kind == "minus" else parts[0]


def _exact_power(base: Fraction, exponent: Fraction) -> Fraction:
    power = _small_whole(exponent)
    if power is None:
        if exponent.denominator == 1:
            raise Unreadable("an exponent too large")
        return _exact_root(Fraction(exponent.denominator), _exact_power(base, Fraction(exponent.numerator)))
    size = max(base.numerator.bit_length(), base.denominator.bit_length())
    if size * abs(power) > MAX_BITS:
        raise Unreadable("a power too large")
    return base**power


def _exact_root(degree: Fraction, value: Fraction) -> Fraction:
    order = _small_whole(degree)
    if order is None or order < 1 or (value < 0 and order % 2 == 0):
        raise NotRational
    if value < 0:
        return -_exact_root(degree, -value)
    roots = [_whole_root(part, order) for part in (value.numerator, value.denominator)]
    if roots[0] is None or roots[1] is None:
        raise NotRational
    return Fraction(roots[0], roots[1])


def _whole_root(value: int, order: int) -> int | None:
    """The root of a whole number where it is one."""
    if order == 2:
        root = math.isqrt(value)
    elif value.bit_length() > 2000 or order > 100:
        return value if value in (0, 1) else None
    else:
        low, high = 0, 1 << (value.bit_length() // order + 1)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if middle**order <= value else (low, middle - 1)
        root = low
    return root if root**order == value else None


def _exact_factorial(value: Fraction) -> Fraction:
    number = _small_whole(value)
    if number is None or not 0 <= number <= MAX_FACTORIAL:
        raise Unreadable("a factorial of no small whole number")
    return Fraction(math.factorial(number))


def _exact_binomial(upper: Fraction, lower: Fraction) -> Fraction:
    top, bottom = _small_whole(upper), _small_whole(lower)
    if top is None or bottom is None or not 0 <= bottom <= MAX_FACTORIAL or not 0 <= top <= MAX_FACTORIAL:
        raise Unreadable("a binomial of no small whole numbers")
    return Fraction(math.comb(top, bottom))


_EXACT: Mapping[str, Any] = {
    "power": _exact_power,
    "root": _exact_root,
    "factorial": _exact_factorial,
    "binomial": _exact_binomial,
}


def _exact_function(node: Node, values: Values) -> Fraction:
    if node.name not in ("abs", "floor", "ceil"):
        raise NotRational
    value = exact(node.parts[0], values)
    if node.name == "abs":
        return abs(value)
    return Fraction(math.floor(value) if node.name == "floor" else math.ceil(value))


def _small_whole(value: Fraction) -> int | None:
    return int(value) if value.denominator == 1 and abs(value) <= MAX_BITS else None


# --- Values that are not rational. ---


def _difference_vanishes(a: Node, b: Node, values: Values) -> bool:
    try:
        return exact(a, values) == exact(b, values)
    except NotRational:
        pass
    except ZeroDivisionError:
        raise Unreadable("a division by zero") from None
    coarse, fine = ((numeric(a, values, digits), numeric(b, values, digits)) for digits in DIGITS)
    apart = [abs(pair[0] - pair[1]) for pair in (coarse, fine)]
    if apart[1] == 0:
        return True
    size = max(abs(fine[0]), abs(fine[1]))
    tiny = _context(DIGITS[1]).mpf(10) ** (-DIGITS[1] + 150)
    shrinks = apart[1] <= apart[0] * _context(DIGITS[1]).mpf(10) ** -(DIGITS[0] // 2)
    return bool(shrinks or apart[1] <= size * tiny)


def _context(digits: int) -> Any:
    """mpmath at a precision, of this thread alone: its contexts are not safe to share."""
    contexts = _LOCAL.__dict__.setdefault("contexts", {})
    if digits not in contexts:
        import mpmath

        context = contexts[digits] = mpmath.ctx_mp.MPContext()
        context.dps = digits
    return contexts[digits]


def numeric(node: Node, values: Values, digits: int) -> Any:
    """The complex value of a tree to so many digits.

    Raises:
        Unreadable: it has none, or none within the bounds.
    """
    context = _context(digits)
    try:
        result = context.convert(_numeric(node, values, context))
    except (ZeroDivisionError, ValueError, OverflowError, TypeError) as error:
        raise Unreadable(f"no value: {error}") from None
    if not context.isfinite(result):
        raise Unreadable("no finite value")
    return result


def _numeric(node: Node, values: Values, context: Any) -> Any:
    spend(context.dps * 2)
    try:
        fraction = exact(node, values)
        return context.mpf(fraction.numerator) / fraction.denominator
    except NotRational:
        pass
    if node.kind == "constant" and node.name == "pi":
        return +context.pi
    if node.kind == "letter" and node.name in ("i", "e"):
        return context.mpc(0, 1) if node.name == "i" else +context.e
    if node.kind == "function":
        return _numeric_function(node, values, context)
    parts = [_numeric(part, values, context) for part in node.parts]
    if node.kind == "power":
        return _numeric_power(parts[0], parts[1], context)
    if node.kind == "root":
        return _numeric_root(parts[0], parts[1], context)
    if node.kind in _ARITHMETIC:
        return _arithmetic(node.kind, parts)
    raise Unreadable(f"a {node.kind} {node.name} has no value")


def _numeric_power(base: Any, exponent: Any, context: Any) -> Any:
    if abs(exponent) > MAX_POWER_VALUE or (base and abs(context.mag(base)) > 10**9):
        raise Unreadable("a power too large")
    return context.power(base, exponent)


def _numeric_root(degree: Any, value: Any, context: Any) -> Any:
    """The root, the real one where the degree is odd and the value negative."""
    if value.imag == 0 and value.real < 0 and degree.imag == 0 and degree.real % 2 == 1:
        return -_numeric_power(-value.real, 1 / degree, context)
    return _numeric_power(value, 1 / degree, context)


def _numeric_function(node: Node, values: Values, context: Any) -> Any:
    arguments = [_numeric(part, values, context) for part in node.parts]
    spend(context.dps * 20)
    if any(abs(argument) > MAX_POWER_VALUE for argument in arguments) and node.name not in (
        "ln",
        "log",
        "abs",
    ):
        raise Unreadable("an argument too large")
    if node.name in ("log", "lg", "ln") and len(arguments) == 1:
        return context.log10(arguments[0]) if node.name == "lg" else context.ln(arguments[0])
    if node.name == "log":
        return context.ln(arguments[0]) / context.ln(arguments[1])
    argument = arguments[0]
    if node.name in ("sin", "cos", "tan", "cot", "sec", "csc") and _has_degrees(node.parts[0]):
        argument = argument * context.pi / 180
    name = {"abs": "fabs"}.get(node.name, node.name.replace("arc", "a"))
    return getattr(context, name)(argument)


def _has_degrees(node: Node) -> bool:
    return node.kind == "degrees" or any(_has_degrees(part) for part in node.parts)


def _decorated(node: Node) -> str:
    inner = node.parts[0]
    return f"{node.name} {_written(inner)}"


def _written(node: Node) -> str:
    number = "" if node.number is None else str(node.number.value)
    return f"{node.kind}{node.name}{number}({','.join(_written(part) for part in node.parts)})"
