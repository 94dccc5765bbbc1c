r"""Sets of real numbers: intervals, their unions, what inequalities describe, what is left out of them."""

from __future__ import annotations

from dataclasses import dataclass

from . import values
from .grammar import Node
from .tokens import Unreadable

_PLUS = Node("constant", name="infty")
_MINUS = Node("minus", (_PLUS,))
_TURNED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}


@dataclass(frozen=True)
class Interval:
    """From `low` to `high`; a point where both are one."""

    low: Node
    high: Node
    has_low: bool
    has_high: bool


def region_of(node: Node) -> list[Interval] | None:
    """The intervals of a set of real numbers, apart and in order; None where the tree describes none."""
    try:
        found = _region(node)
        return None if found is None else _joined(found)
    except Unreadable:
        return None


def same_region(some: list[Interval], others: list[Interval]) -> bool:
    """Two sets have the same intervals."""
    return len(some) == len(others) and all(
        (a.has_low, a.has_high) == (b.has_low, b.has_high)
        and _same_end(a.low, b.low)
        and _same_end(a.high, b.high)
        for a, b in zip(some, others, strict=True)
    )


def _region(node: Node) -> list[Interval] | None:
    if node.kind == "tuple" and len(node.parts) == 2:
        return [Interval(node.parts[0], node.parts[1], node.name[0] == "[", node.name[1] == "]")]
    if node.kind == "reals":
        return [Interval(_MINUS, _PLUS, False, False)]
    if node.kind == "union":
        parts = [_region(part) or _points(part) for part in node.parts]
        return None if None in parts else [item for part in parts for item in part or []]
    if node.kind == "without":
        whole, out = _region(node.parts[0]), _points(node.parts[1])
        return None if whole is None or out is None else _without(_joined(whole), out)
    if node.kind == "relation":
        return _of_relation(node)
    if node.kind == "list" and all(part.kind == "relation" and "=" != part.name for part in node.parts):
        letters = {letter for part in node.parts for letter in values.names_in(part)}
        parts = [_of_relation(part) for part in node.parts]
        return None if None in parts or len(letters) > 1 else [item for part in parts for item in part or []]
    return None


def _points(node: Node) -> list[Interval] | None:
    return [Interval(part, part, True, True) for part in node.parts] if node.kind == "set" else None


def _of_relation(node: Node) -> list[Interval] | None:
    r"""`x > 5`, `-1 \le x < 2`, `x \in (1, 2)`, `x \ne 3`: one letter, alone on a side of each sign."""
    signs = node.name.split()
    if signs == ["in"] and node.parts[0].kind == "letter":
        return _region(node.parts[1])
    letter = next((place for place, part in enumerate(node.parts) if part.kind == "letter"), None)
    rest = [part for place, part in enumerate(node.parts) if place != letter]
    if letter is None or len(signs) > 2 or any(any(values.names_in(part)) for part in rest):
        return None
    if len(signs) == 2 and letter != 1:
        return None
    bounds = [(_TURNED.get(signs[0], ""), rest[0])] if letter else []
    bounds += [(signs[letter], rest[-1])] if letter < len(signs) else []
    if [sign for sign, _ in bounds] == ["!="]:
        end = bounds[0][1]
        return [Interval(_MINUS, end, False, False), Interval(end, _PLUS, False, False)]
    return _bounded(bounds)


def _bounded(bounds: list[tuple[str, Node]]) -> list[Interval] | None:
    low, high, has_low, has_high = _MINUS, _PLUS, False, False
    for sign, end in bounds:
        if sign in (">", ">="):
            low, has_low = end, sign == ">="
        elif sign in ("<", "<="):
            high, has_high = end, sign == "<="
        else:
            return None
    return [Interval(low, high, has_low, has_high)]


def _without(whole: list[Interval], points: list[Interval]) -> list[Interval]:
    """Intervals without some points of their insides."""
    for point in points:
        at = _size(point.low)
        rest = []
        for item in whole:
            if _size(item.low) < at < _size(item.high):
                rest += [Interval(item.low, point.low, item.has_low, False)]
                rest += [Interval(point.low, item.high, False, item.has_high)]
            else:
                has_low = item.has_low and not _same_end(item.low, point.low)
                rest.append(
                    Interval(
                        item.low, item.high, has_low, item.has_high and not _same_end(item.high, point.low)
                    )
                )
        whole = rest
    return whole


def _joined(items: list[Interval]) -> list[Interval]:
    """The same set with its intervals in order, those that touch made one."""
    ordered = sorted(items, key=lambda item: (_size(item.low), not item.has_low))
    joined: list[Interval] = []
    for item in ordered:
        if _size(item.low) > _size(item.high):
            raise Unreadable("an interval from its larger end")
        last = joined[-1] if joined else None
        if last is None or not _touch(last, item):
            joined.append(item)
        elif _size(item.high) > _size(last.high):
            joined[-1] = Interval(last.low, item.high, last.has_low, item.has_high)
        elif _same_end(item.high, last.high):
            joined[-1] = Interval(last.low, last.high, last.has_low, last.has_high or item.has_high)
    return joined


def _touch(first: Interval, second: Interval) -> bool:
    if _same_end(second.low, first.high):
        return first.has_high or second.has_low
    return _size(second.low) < _size(first.high)


def _same_end(a: Node, b: Node) -> bool:
    sizes = [_size(node) for node in (a, b)]
    if any(abs(size) == float("inf") for size in sizes):
        return sizes[0] == sizes[1]
    return values.equal(a, b)


def _size(node: Node) -> float:
    """A real end as a float, which orders ends; whether two are equal is decided exactly elsewhere."""
    if node.kind == "constant" and node.name == "infty":
        return float("inf")
    if node == _MINUS:
        return float("-inf")
    value = values.numeric(node, {}, 30)
    if value.imag != 0:
        raise Unreadable("an end that is not real")
    return float(value.real)
