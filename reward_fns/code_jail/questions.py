"""Which objects of the completion may answer questions about values of the tests: the tests' text says.

`f(1) == 5` must not be decided by what `f` returns. `Money(5) == 5` can be decided by nobody else. The
difference stands in the tests, which are trusted: an object is under test where they make it themselves, by a
direct call of a name, and treat what that name makes as an object somewhere:

    stack.push(1)                           an attribute that no plain data has
    isinstance(x, Stack), except TooFull    a class
    Bag().add(1), Bag.size, bag[1] = 2      any attribute, item or context, of a name written like a class
    Money(1) + 2 == Money(3)                the name on both sides, written like a class

A name that is written like a class, and that no test compares with plain data for equality, is believed to be
one as far as order (`Money(5) > 3`) and what its objects contain (`3 in Range(1, 5)`) go.

What else the completion hands out, as by a method, a function or an attribute, is not under test.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import standins

ASK = "__ask__"
_CLASS_NAME = re.compile(r"[A-Z][A-Za-z0-9]*\Z")
_PLAIN_ATTRIBUTES = frozenset(
    name
    for kind in (str, list, dict, set, tuple, int, float, complex, bytes, bytearray, frozenset, range)
    for name in dir(kind)
)
_SIGNS: Mapping[type[ast.AST], str] = {
    ast.Eq: "eq",
    ast.NotEq: "ne",
    ast.Lt: "lt",
    ast.LtE: "le",
    ast.Gt: "gt",
    ast.GtE: "ge",
    ast.In: "contains",
    ast.NotIn: "not_contains",
    ast.Add: "add",
    ast.Sub: "sub",
    ast.Mult: "mul",
    ast.Div: "truediv",
    ast.FloorDiv: "floordiv",
    ast.Mod: "mod",
    ast.Pow: "pow",
    ast.MatMult: "matmul",
    ast.LShift: "lshift",
    ast.RShift: "rshift",
    ast.BitAnd: "and",
    ast.BitOr: "or",
    ast.BitXor: "xor",
}
_EQUALITY = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot)
Makers = frozenset[str]


def ask(sign: str, left: Any, right: Any) -> Any:
    """Do what an operator does; where an object of the completion takes part, the completion does it."""
    if sign == "not_contains":
        return not ask("contains", left, right)
    if sign == "contains":
        left, right = right, left
    asked = next((side for side in (left, right) if isinstance(side, standins.StandIn)), None)
    if asked is None:
        return _function(sign)(left, right)
    return standins.remote_of(asked).do("apply", "operator", f"__{sign}__", (left, right), {})


def _function(sign: str) -> Callable[[Any, Any], Any]:
    return getattr(operator, f"__{sign}__")


def under_test(trees: Sequence[ast.Module], names: frozenset[str]) -> list[ast.Module]:
    """The tests, with `ask` in place of operators on objects that are under test.

    Args:
        trees: all that is run for a row, in any order.
        names: what the completion is asked for.
    """
    text = _Text(trees, names)
    makers = text.makers()
    rewriter = _Rewriter(text, makers, makers | text.named_like_classes())
    return [ast.fix_missing_locations(rewriter.visit(tree)) for tree in trees]


class _Text:
    """What the tests say about objects: which names made them."""

    def __init__(self, trees: Sequence[ast.Module], names: frozenset[str]) -> None:
        self._names = names
        self._nodes = [node for tree in trees for node in ast.walk(tree)]
        self._bound: dict[str, list[ast.expr | None]] = {}
        for name, value in _bindings(self._nodes):
            self._bound.setdefault(name, []).append(value)

    def made_by(self, node: ast.AST | None, seen: Makers = frozenset()) -> Makers:
        """Names by whose direct call an expression is made; none where that is not certain."""
        if isinstance(node, ast.Await):
            return self.made_by(node.value, seen)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            return frozenset({node.func.id}) & self._names
        if isinstance(node, ast.Name) and node.id in self._bound and node.id not in seen:
            found = [self.made_by(value, seen | {node.id}) for value in self._bound[node.id]]
            return frozenset().union(*found) if all(found) else frozenset()
        if isinstance(node, ast.BinOp):
            return self.made_by(node.left, seen) | self.made_by(node.right, seen)
        if isinstance(node, ast.UnaryOp) and not isinstance(node.op, ast.Not):
            return self.made_by(node.operand, seen)
        return self.made_by(node.value, seen) if isinstance(node, ast.NamedExpr) else frozenset()

    def makers(self) -> Makers:
        """Names whose calls make objects, as the tests treat them."""
        return frozenset(name for node in self._nodes for name in self._treated_as_object(node)) & self._names

    def named_like_classes(self) -> Makers:
        """Names that are written like classes, and whose calls are nowhere treated as plain data."""
        plain: set[str] = set()
        for node in (node for node in self._nodes if isinstance(node, ast.Compare)):
            sides = [self.made_by(side) for side in (node.left, *node.comparators)]
            if isinstance(node.ops[0], _EQUALITY) and not all(sides):
                plain |= frozenset().union(*sides)
            elif isinstance(node.ops[0], ast.In | ast.NotIn):
                plain |= sides[0]
        return frozenset(name for name in self._names - plain if _CLASS_NAME.match(name))

    def _treated_as_object(self, node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Attribute):
            made = self.made_by(node.value)
            yield from made if node.attr not in _PLAIN_ATTRIBUTES else filter(_CLASS_NAME.match, made)
            if isinstance(node.value, ast.Name) and _CLASS_NAME.match(node.value.id):
                yield node.value.id
        elif isinstance(node, ast.With | ast.AsyncWith):
            for item in node.items:
                yield from filter(_CLASS_NAME.match, self.made_by(item.context_expr))
        elif isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
            yield from filter(_CLASS_NAME.match, self.made_by(node.value))
        elif isinstance(node, ast.Compare) and len(node.comparators) == 1:
            sides = (node.left, node.comparators[0])
            if any(isinstance(side, ast.BinOp | ast.UnaryOp) for side in sides):
                yield from filter(_CLASS_NAME.match, self.made_by(sides[0]) & self.made_by(sides[1]))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield from _named_as_class(node)
        elif isinstance(node, ast.ExceptHandler | ast.ClassDef):
            roots = node.bases if isinstance(node, ast.ClassDef) else [node.type]
            yield from _names_in(roots)


def _named_as_class(call: ast.Call) -> Iterator[str]:
    assert isinstance(call.func, ast.Name)
    if call.func.id in ("isinstance", "issubclass") and len(call.args) == 2:
        yield from _names_in([call.args[1]])
    elif _CLASS_NAME.match(call.func.id) and not call.args and not call.keywords:
        yield call.func.id


def _names_in(roots: Sequence[ast.expr | None]) -> Iterator[str]:
    for root in roots:
        for node in ast.walk(root) if root is not None else ():
            if isinstance(node, ast.Name):
                yield node.id


def _bindings(nodes: Sequence[ast.AST]) -> Iterator[tuple[str, ast.expr | None]]:
    """Every name that is bound, with what it is bound to where that is plain to see."""
    plain: set[int] = set()
    for node in nodes:
        pairs: list[tuple[ast.expr | None, ast.expr | None]] = []
        if isinstance(node, ast.Assign):
            pairs = [(target, node.value) for target in node.targets]
        elif isinstance(node, ast.AnnAssign | ast.NamedExpr):
            pairs = [(node.target, node.value)]
        elif isinstance(node, ast.With | ast.AsyncWith):
            pairs = [(item.optional_vars, item.context_expr) for item in node.items]
        elif isinstance(node, ast.AugAssign):
            pairs = [(node.target, node.target)]
        for target, value in pairs:
            if isinstance(target, ast.Name):
                plain.add(id(target))
                # `x += y` leaves what x is made by as it was.
                if value is not target:
                    yield target.id, value
    for node in nodes:
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and id(node) not in plain:
            yield node.id, None
        elif isinstance(node, ast.arg):
            yield node.arg, None


class _Rewriter(ast.NodeTransformer):
    """Puts `ask` in place of operators where an operand is under test."""

    def __init__(self, text: _Text, makers: Makers, named: Makers) -> None:
        self._text, self._makers, self._named = text, makers, named

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        asks = len(node.ops) == 1 and self._asks(node.ops[0], node.left, node.comparators[0])
        self.generic_visit(node)
        if not asks:
            return node
        return _asking(_SIGNS[type(node.ops[0])], node.left, node.comparators[0])

    def _asks(self, operation: ast.cmpop, left: ast.expr, right: ast.expr) -> bool:
        if isinstance(operation, ast.Is | ast.IsNot):
            return False
        if isinstance(operation, ast.In | ast.NotIn) and self._is_object(right, self._named):
            return True
        ordered = not isinstance(operation, (*_EQUALITY, ast.In, ast.NotIn))
        makers = self._named if ordered else self._makers
        return self._is_object(left, makers) or self._is_object(right, makers)

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        asks = self._is_object(node, self._makers)
        self.generic_visit(node)
        return _asking(_SIGNS[type(node.op)], node.left, node.right) if asks else node

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        asks = isinstance(node.target, ast.Name) and self._is_object(node.target, self._makers)
        self.generic_visit(node)
        if not asks or not isinstance(node.target, ast.Name):
            return node
        value = _asking(f"i{_SIGNS[type(node.op)]}", ast.Name(node.target.id, ast.Load()), node.value)
        return ast.Assign([node.target], value)

    def _is_object(self, node: ast.expr, makers: Makers) -> bool:
        made = self._text.made_by(node)
        return bool(made) and made <= makers


def _asking(sign: str, left: ast.expr, right: ast.expr) -> ast.Call:
    return ast.Call(ast.Name(ASK, ast.Load()), [ast.Constant(sign), left, right], [])
