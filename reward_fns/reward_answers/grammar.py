r"""The grammar of answers: tokens to a tree, by recursive descent. Nothing is computed here.

    list     := relation ((',' | ';') relation)*
    relation := region (('=' | '<' | '\le' | '\in' | ...) region)*
    region   := sum (('\cup' | '\cap' | '\setminus') sum)*
    sum      := product (('+' | '-' | '\pm' | '\mp') product)*
    product  := sign* factor (('*' | '/' | nothing) sign* factor)*
    factor   := primary ('^' exponent | '!' | '%' | '^\circ')*

A whole number directly before a proper fraction of whole numbers makes a mixed number. What follows a
function without parentheses is its argument up to the next operator or function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from .numbers import Number, in_base
from .tokens import FUNCTIONS, Token, Unreadable

MAX_DEPTH = 60
_RELATIONS = {"=": "=", "==": "=", "<": "<", ">": ">"}
_RELATION_COMMANDS = {"le": "<=", "leq": "<=", "leqslant": "<=", "ge": ">=", "geq": ">=", "geqslant": ">="}
_RELATION_COMMANDS |= {"lt": "<", "gt": ">", "ne": "!=", "neq": "!=", "approx": "~", "in": "in", "equiv": "="}
_REGIONS = {"cup": "union", "cap": "intersection", "setminus": "without", "backslash": "without"}
_GREEK = frozenset(
    """alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta kappa lambda mu nu xi rho sigma tau
    phi varphi chi psi omega Gamma Delta Theta Lambda Sigma Phi Psi Omega ell hbar""".split()
)
_FRACTIONS = ("frac", "dfrac", "tfrac", "cfrac")
_DECORATIONS = ("overline", "vec", "hat", "bar", "overrightarrow", "angle", "triangle")
_CLOSES = {"(": ")", "[": "]", "\\{": "\\}", "{": "}"}


@dataclass(frozen=True)
class Node:
    """A part of an answer. Example: `Node("sum", (x, one))`."""

    kind: str
    parts: tuple[Node, ...] = ()
    name: str = ""
    """Of a letter or function; the brackets of a tuple; the signs of a relation, separated by spaces."""
    number: Number | None = None


def parse(tokens: list[Token]) -> Node:
    """The tree of a whole answer.

    Raises:
        Unreadable: it is no answer by this grammar.
    """
    parser = _Parser(tokens)
    node = parser.list_of(parser.relation, "list")
    if parser.token is not None:
        raise Unreadable(f"{parser.token.text!r} is not expected")
    return node


def number_node(number: Number) -> Node:
    """A number as a tree."""
    return Node("number", number=number)


class _Parser:
    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = list(tokens)
        self.position = 0
        self.depth = 0

    @property
    def token(self) -> Token | None:
        return self.tokens[self.position] if self.position < len(self.tokens) else None

    def peek(self, ahead: int = 0) -> Token:
        place = self.position + ahead
        return self.tokens[place] if place < len(self.tokens) else Token("symbol", "")

    def take(self) -> Token:
        token = self.token
        if token is None:
            raise Unreadable("it ends too early")
        self.position += 1
        return token

    def accept(self, *symbols: str) -> str | None:
        token = self.token
        if token is not None and token.kind in ("symbol", "command") and token.text in symbols:
            self.position += 1
            return token.text
        return None

    def expect(self, *symbols: str) -> str:
        found = self.accept(*symbols)
        if found is None:
            raise Unreadable(f"{symbols[0]!r} is missing")
        return found

    def nested(self, rule: Callable[[], Node]) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable("nested too deeply")
        node = rule()
        self.depth -= 1
        return node

    # --- From the whole to the parts. ---

    def list_of(self, rule: Callable[[], Node], kind: str) -> Node:
        items = [rule()]
        while self.accept(",", ";"):
            while self.accept(",", ";"):
                pass  # `1, 2, and 3`
            items.append(rule())
        return items[0] if len(items) == 1 else Node(kind, tuple(items))

    def relation(self) -> Node:
        parts, signs = [self.nested(self.region)], []
        while (sign := self.relation_sign()) is not None:
            signs.append(sign)
            parts.append(self.nested(self.region))
        return Node("relation", tuple(parts), " ".join(signs)) if signs else parts[0]

    def relation_sign(self) -> str | None:
        token = self.peek()
        known = (
            _RELATIONS if token.kind == "symbol" else _RELATION_COMMANDS if token.kind == "command" else {}
        )
        sign = known.get(token.text)
        self.position += sign is not None
        return sign

    def region(self) -> Node:
        node = self.sum()
        while (name := self.accept(*_REGIONS)) is not None:
            node = Node(_REGIONS[name], (node, self.sum()))
        return node

    def sum(self) -> Node:
        terms = [self.product()]
        while True:
            if self.accept("+"):
                terms.append(self.product())
            elif self.accept("-"):
                terms.append(Node("minus", (self.product(),)))
            elif (sign := self.accept("pm", "mp")) is not None:
                terms.append(Node(sign, (self.product(),)))
            else:
                return terms[0] if len(terms) == 1 else Node("sum", tuple(terms))

    def product(self) -> Node:
        node = self.signed()
        while True:
            if self.accept("*", "cdot", "times", "ast"):
                node = Node("times", (node, self.signed()))
            elif self.accept("/", "div"):
                node = Node("over", (node, self.signed()))
            elif self.starts_factor():
                call = "(" if self.peek().text == "(" else ""
                node = Node("beside", (node, self.factor()), call)
            else:
                return node

    def signed(self) -> Node:
        sign = self.accept("-", "+", "pm", "mp")
        if sign is None:
            return self.factor()
        inner = self.nested(self.signed)
        return inner if sign == "+" else Node("minus" if sign == "-" else sign, (inner,))

    def starts_factor(self) -> bool:
        """The next token may stand beside a factor without a sign of multiplication."""
        token = self.peek()
        if token.kind == "command":
            return token.text in FUNCTIONS | _GREEK or token.text in (
                *_FRACTIONS, "pi", "binom", "dbinom", "lfloor", "lceil", *_DECORATIONS,
            )  # fmt: skip
        return token.kind == "letter" or (token.kind == "symbol" and token.text == "(")

    def factor(self) -> Node:
        node = self.primary()
        while True:
            if self.accept("^", "**"):
                node = self.powered(node)
            elif self.accept("!"):
                if self.peek().text == "!":
                    raise Unreadable("a double factorial")
                node = Node("factorial", (node,))
            elif self.accept("%"):
                node = Node("percent", (node,))
            elif self.accept("degree"):
                node = Node("degrees", (node,))
            else:
                return node

    def powered(self, base: Node) -> Node:
        if self.accept("circ"):
            return Node("degrees", (base,))
        if self.peek().text == "{" and self.peek(1).text == "circ" and self.peek(2).text == "}":
            self.position += 3
            return Node("degrees", (base,))
        return Node("power", (base, self.nested(self.exponent)))

    def exponent(self) -> Node:
        sign = self.accept("-", "+")
        node = self.group() if self.peek().text == "{" else self.primary()
        if self.accept("^", "**"):
            node = self.powered(node)
        return Node("minus", (node,)) if sign == "-" else node

    # --- What stands alone. ---

    def primary(self) -> Node:
        token = self.take()
        if token.kind == "number" and token.number is not None:
            return self.mixed(token.number)
        if token.kind == "numeral":
            digits, _, base = token.text.partition("_")
            value = in_base(digits, int(base))
            if value is None:
                raise Unreadable(f"{token.text} is no numeral")
            return Node("numeral", name=token.text, number=Number(Fraction(value)))
        if token.kind == "letter":
            return self.letter(token.text)
        if token.kind == "command":
            return self.command(token.text)
        if token.kind == "symbol" and token.text in _CLOSES:
            return self.nested(lambda: self.bracket(token.text))
        if token.text == "|":
            inner = self.nested(self.sum)
            self.expect("|")
            return Node("function", (inner,), "abs")
        raise Unreadable(f"{token.text!r} begins no expression")

    def mixed(self, whole: Number) -> Node:
        """A number, with the proper fraction that follows it."""
        saved = self.position, list(self.tokens)
        if _whole(whole) or whole.value == 0:
            part = self.proper_fraction()
            if part is not None:
                return number_node(Number(whole.value + part))
            self.position, self.tokens = saved
        return number_node(whole)

    def proper_fraction(self) -> Fraction | None:
        """The fraction of whole numbers, smaller than one, that comes next; None where none does."""
        first = self.take() if self.token is not None else None
        if first is None:
            return None
        if first.kind == "command" and first.text in _FRACTIONS:
            top, bottom = (_whole(self.argument().number) for _ in range(2))
        elif first.kind == "number" and first.is_apart and self.accept("/"):
            top, bottom = _whole(first.number), _whole(self.peek().number)
            self.position += 1
        else:
            return None
        return Fraction(top, bottom) if 0 < top < bottom else None

    def letter(self, name: str) -> Node:
        if self.accept("_"):
            token = self.take()
            inner = token.text
            if token.text == "{":
                inner = ""
                while (token := self.take()).text != "}":
                    inner += token.text
            name = f"{name}_{inner}"
        while self.accept("'"):
            name += "'"
        return Node("letter", name=name)

    def command(self, name: str) -> Node:
        if name in _FRACTIONS:
            return Node("over", (self.argument(), self.argument()))
        if name in ("binom", "dbinom", "tbinom"):
            return Node("binomial", (self.argument(), self.argument()))
        if name == "sqrt":
            return self.root()
        if name in FUNCTIONS:
            return self.function(name)
        if name in ("lfloor", "lceil"):
            inner = self.nested(self.sum)
            self.expect("rfloor" if name == "lfloor" else "rceil")
            return Node("function", (inner,), "floor" if name == "lfloor" else "ceil")
        if name in ("langle", "lbrace"):
            return self.nested(lambda: self.bracket("(" if name == "langle" else "\\{"))
        if name.startswith("begin ") and "matrix" in name or name == "begin array":
            return self.matrix(name.removeprefix("begin "))
        return self.named(name)

    def named(self, name: str) -> Node:
        if name in ("pi", "infty"):
            return Node("constant", name=name)
        if name in ("emptyset", "varnothing"):
            return Node("set")
        if name == "mathbb":
            letter = self.argument()
            return Node("reals") if letter.name == "R" else Node("letter", name=f"mathbb {letter.name}")
        if name in _DECORATIONS:
            inner = self.argument() if self.peek().text == "{" else self.factor()
            return Node("decorated", (inner,), name)
        if name in _GREEK:
            return self.letter(name)
        raise Unreadable(f"the command {name} is not known")

    def root(self) -> Node:
        degree = number_node(Number(Fraction(2)))
        if self.accept("["):
            degree = self.nested(self.sum)
            self.expect("]")
        inner = self.group() if self.peek().text in ("{", "(") else self.primary()
        return Node("root", (degree, inner))

    def function(self, name: str) -> Node:
        base: tuple[Node, ...] = ()
        power: Node | None = None
        for _ in range(2):
            if self.accept("_"):
                base = (self.argument(),)
            elif self.accept("^"):
                power = self.nested(self.exponent)
        node = Node("function", (self.applied_to(), *base), name)
        if power is None:
            return node
        if power.kind == "minus":
            return Node("function", node.parts, f"arc{name}")
        return Node("power", (node, power))

    def applied_to(self) -> Node:
        """A function's argument: what stands in parentheses, else the factors up to an operator."""
        if self.peek().text in ("(", "{"):
            return self.nested(self.factor)
        if self.accept("-"):
            return Node("minus", (self.applied_to(),))
        node = self.nested(self.factor)
        while self.starts_factor() and self.peek().text not in FUNCTIONS | {"("}:
            node = Node("beside", (node, self.factor()))
        return node

    def argument(self) -> Node:
        r"""The argument of a command: a group, or the next single digit or letter, as in `\frac34`."""
        token = self.peek()
        if token.text == "{":
            return self.group()
        if token.kind == "number" and len(token.text) > 1 and token.text.isdigit():
            first, rest = token.text[0], token.text[1:]
            self.tokens[self.position] = Token("number", rest, Number(Fraction(rest)))
            return number_node(Number(Fraction(first)))
        if token.kind == "number" and token.number is not None:
            self.position += 1
            return number_node(token.number)
        return self.nested(self.primary)

    def group(self) -> Node:
        opening = self.expect("{", "(")
        return self.nested(lambda: self.bracket(opening))

    def bracket(self, opening: str) -> Node:
        if opening == "\\{" and self.accept("\\}"):
            return Node("set")
        node = self.list_of(self.relation, "items")
        items = node.parts if node.kind == "items" else (node,)
        if opening in ("{", "\\{"):
            self.expect(_CLOSES[opening])
            return (
                Node("set", items)
                if opening == "\\{"
                else node
                if node.kind != "items"
                else Node("list", items)
            )
        closing = self.expect(")", "]", "rangle")
        brackets = opening + closing.replace("rangle", ")")
        if len(items) == 1 and brackets in ("()", "[]"):
            return items[0]
        if len(items) == 1:
            raise Unreadable("brackets that do not fit")
        return Node("tuple", items, brackets)

    def matrix(self, environment: str) -> Node:
        rows: list[Node] = []
        while not self.accept(f"end {environment}"):
            cells = [self.nested(self.relation)]
            while self.accept("&"):
                cells.append(self.nested(self.relation))
            rows.append(Node("row", tuple(cells)))
            if not self.accept("\\\\") and self.peek().text != f"end {environment}":
                raise Unreadable("a matrix without an end")
        name = "determinant" if environment.startswith(("v", "V")) else "matrix"
        return Node(name, tuple(rows))


def _whole(number: Number | None) -> int:
    if number is None or number.places is not None or number.value.denominator > 1:
        return 0
    return int(number.value)
