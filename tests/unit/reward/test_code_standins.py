"""Tests of a completion's own classes, objects and functions say in the jail what they say in any interpreter."""

# ruff: noqa: E501  one test of a completion is one line, however long it is
from __future__ import annotations

import sys
from typing import Any

import pytest

from rl4dlm.reward import sandbox

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or sandbox.layers()["jail"] != "on", reason="no jail can be set up here"
)
jail = sandbox.jail()


def verdicts(source: str, tests: list[str]) -> dict[str, bool]:
    """Per test whether it passes; one jail for all of them."""
    found = jail.run_tests([source], jail.Tests(tuple(tests)), jail.Setup(), stop=False)
    return dict(zip(tests, found.passed, strict=True))


def in_one_interpreter(source: str, test: str) -> bool:
    """What an ordinary run of a completion with a test says."""
    namespace: dict[str, Any] = {"__name__": "solution"}
    try:
        for code in (source, test):
            exec(compile(code, "<code>", "exec", dont_inherit=True), namespace)
    except Exception:
        return False
    return True


MATRIX = """
class Matrix:
    size = 2
    def __init__(self, rows): self.rows = [list(row) for row in rows]
    def __add__(self, other):
        if isinstance(other, Matrix): other = sum(map(sum, other.rows))
        return Matrix([[x + other for x in row] for row in self.rows])
    __radd__ = __add__
    def __mul__(self, factor): return Matrix([[x * factor for x in row] for row in self.rows])
    def __imul__(self, factor): self.rows = (self * factor).rows; return self
    def __matmul__(self, other): return self.rows[0][0] * other.rows[0][0]
    def __eq__(self, other): return isinstance(other, Matrix) and self.rows == other.rows
    def __hash__(self): return hash(str(self.rows))
    def __neg__(self): return self * -1
    def __abs__(self): return max(abs(x) for row in self.rows for x in row)
    def __bool__(self): return any(map(any, self.rows))
    def __len__(self): return len(self.rows)
    def __iter__(self): return iter(self.rows)
    def __contains__(self, x): return any(x in row for row in self.rows)
    def __getitem__(self, at): return self.rows[at[0]][at[1]]
    def __setitem__(self, at, x): self.rows[at[0]][at[1]] = x
    def __delitem__(self, at): self.rows[at[0]][at[1]] = None
    def __round__(self, digits=0): return Matrix([[round(x, digits) for x in row] for row in self.rows])
    def __int__(self): return int(self.rows[0][0])
    def __index__(self): return int(self)
    def __str__(self): return "\\n".join(" ".join(map(str, row)) for row in self.rows)
    def __repr__(self): return f"Matrix({self.rows})"
    def __format__(self, spec): return format(self.rows[0][0], spec)
    def __lt__(self, other): return abs(self) < abs(other)
    def __call__(self, x): return self * x
    def __enter__(self): self.open = True; return self
    def __exit__(self, kind, error, trace): self.open = False; return kind is ZeroDivisionError
    @classmethod
    def unit(cls): return cls([[1, 0], [0, 1]])
    @staticmethod
    def product(a, b): return a * b
    @property
    def corner(self): return self.rows[0][0]
    @corner.setter
    def corner(self, x):
        if x is None: raise ValueError("no corner")
        self.rows[0][0] = x
def unit(): return Matrix.unit()
class Empty: pass
"""
MATRIX_TESTS = [
    "assert Matrix([[1]]) and not Matrix([[0]])",
    "assert Empty()",
    "assert len(Matrix([[1], [2]])) == 2 and bool(Matrix([[1]])) is True",
    "assert Matrix([[1]]) == Matrix([[1]]) and Matrix([[1]]) != Matrix([[2]])",
    "assert Matrix([[1]]) + Matrix([[2]]) == Matrix([[3]])",
    "assert Matrix([[1]]) * 3 == Matrix([[3]])",
    "m = Matrix([[1]]) + 4\nassert m.rows == [[5]]",
    "m = Matrix([[1]])\nn = m\nm *= 5\nassert n.rows == [[5]] and m is n",
    "assert sum([Matrix([[1]]), Matrix([[2]])]) == Matrix([[3]])",
    "assert Matrix([[3]]) @ Matrix([[4]]) == 12 and -Matrix([[1]]) == Matrix([[-1]])",
    "assert abs(Matrix([[-7]])) == 7 and int(Matrix([[4.5]])) == 4 and [5, 6, 7][Matrix([[1]])] == 6",
    "assert round(Matrix([[1.26]]), 1) == Matrix([[1.3]])",
    "assert str(Matrix([[1, 2], [3, 4]])) == '1 2\\n3 4' and repr(Matrix([[1]])) == 'Matrix([[1]])'",
    "assert f'{Matrix([[1]]):>3}' == '  1' and '%s' % Matrix([[8]]) == '8'",
    "assert hash(Matrix([[1]])) == hash(Matrix([[1]])) and len({Matrix([[1]]), Matrix([[1]])}) == 1",
    "assert {Matrix([[1]]): 'one'}[Matrix([[1]])] == 'one'",
    "assert [list(row) for row in Matrix([[1, 2]])] == [[1, 2]] and Matrix([[1]]) in [Matrix([[1]])]",
    "m = Matrix([[1, 2]])\nm[0, 1] = 9\nassert m[0, 1] == 9 and m[0, -1] == 9\ndel m[0, 0]\nassert m[0, 0] is None",
    "m = Matrix([[1, 2]])\nassert m.size == 2 and 2 in m and 7 not in m",
    "m = Matrix([[1]])\nm.rows.append([2])\nm.rows[0][0] = 8\nassert m.rows == [[8], [2]] and len(m) == 2",
    "assert Matrix([[1]]) < Matrix([[2]]) and sorted([Matrix([[5]]), Matrix([[1]])])[0] == Matrix([[1]])",
    "assert max([Matrix([[5]]), Matrix([[6]])], key=abs) == Matrix([[6]])",
    "assert callable(Matrix([[1]])) and not callable(Empty()) and Matrix([[2]])(3) == Matrix([[6]])",
    "with Matrix([[1]]) as m:\n    assert m.open\nassert not m.open",
    "with Matrix([[1]]) as m: 1 / 0\nassert not m.open",
    "assert isinstance(unit(), Matrix) and isinstance(unit(), (int, Matrix)) and not isinstance(unit(), Empty)",
    "assert type(unit()) is Matrix and type(unit()).__name__ == 'Matrix' and unit().__class__ is Matrix",
    "assert Matrix.unit() == unit() and Matrix.product(2, 3) == 6 and unit().product(2, 2) == 4",
    "assert Matrix.size == 2\nMatrix.size = 3\nassert unit().size == 3\nMatrix.size = 2",
    "m = unit()\nm.corner = 4\nassert m.corner == 4 and m[0, 0] == 4",
    "m = unit()\ntry: m.corner = None\nexcept ValueError as error: assert str(error) == 'no corner'\nelse: assert False",
    "m = unit()\nm.note = 'x'\nassert hasattr(m, 'note') and getattr(m, 'none', 5) == 5 and vars(m)['note'] == 'x'",
    "m = unit()\ndel m.rows\nassert not hasattr(m, 'rows')",
    "import copy\nm = unit()\nn = copy.deepcopy(m)\nn[0, 0] = 5\nassert m[0, 0] == 1 and n is not m",
    "try: len(Empty())\nexcept TypeError: pass\nelse: assert False",
    "try: Empty() + Empty()\nexcept TypeError: pass\nelse: assert False",
    "try: Empty().gone\nexcept AttributeError: pass\nelse: assert False",
    "from collections.abc import Iterable\nassert isinstance(unit(), Iterable) and not isinstance(Empty(), Iterable)",
    "e = Empty()\nassert e == e and e != Empty() and e in [e] and [e].index(e) == 0",
    # And what is wrong stays wrong.
    "assert Matrix([[0]])",
    "assert Matrix([[1]]) == Matrix([[2]])",
    "assert Matrix([[1]]) * 3 == Matrix([[1]])",
    "assert isinstance(Empty(), Matrix)",
    "m = unit()\nassert 7 in m.rows",
    "with unit(): raise KeyError",
]

ERRORS = """
class TooMuch(Exception):
    def __init__(self, asked, left):
        super().__init__(f"{asked} of {left}")
        self.asked, self.left = asked, left
class Closed(ValueError): pass
class Tank:
    def __init__(self, litres): self.litres = litres
    def take(self, litres):
        if litres > self.litres: raise TooMuch(litres, self.litres)
        self.litres -= litres
        return self
    def close(self): raise Closed("closed") from OSError("valve")
    def label(self): return f"{self.name()} of {self.litres}"
    def name(self): return "tank"
def look(table, key): return table[key]
def leave(): raise SystemExit(2)
def read():
    import json
    return json.loads("[")
def run(task, times=1):
    for _ in range(times):
        try: return task()
        except LookupError: continue
    raise RuntimeError("gave up")
"""
ERROR_TESTS = [
    "try: Tank(1).take(2)\nexcept TooMuch as e: assert (e.asked, e.left, str(e)) == (2, 1, '2 of 1')\nelse: assert False",
    "try: Tank(1).take(2)\nexcept Exception as e: assert type(e) is TooMuch and e.args == ('2 of 1',)\nelse: assert False",
    "try: Tank(1).close()\nexcept ValueError as e: assert isinstance(e.__cause__, OSError)\nelse: assert False",
    "assert issubclass(Closed, ValueError) and not issubclass(TooMuch, ValueError)",
    "import contextlib\nwith contextlib.suppress(TooMuch): Tank(1).take(2)",
    "try: raise TooMuch(3, 4)\nexcept TooMuch as e: assert e.left == 4",
    "try: look({}, 'k')\nexcept KeyError as e: assert e.args == ('k',)\nelse: assert False",
    "try: look([], 0)\nexcept (KeyError, IndexError): pass\nelse: assert False",
    "try: leave()\nexcept SystemExit as e: assert e.code == 2\nelse: assert False",
    "import json\ntry: read()\nexcept json.JSONDecodeError: pass\nelse: assert False",
    "left = [1, 2]\ndef task():\n    if left: raise KeyError(left.pop())\n    return 'done'\nassert run(task, 3) == 'done' and not left",
    "class Odd(Exception): pass\ndef task(): raise Odd('o')\ntry: run(task)\nexcept Odd as e: assert str(e) == 'o'\nelse: assert False",
    "class Barrel(Tank):\n    def name(self): return 'barrel'\nb = Barrel(5)\nassert b.label() == 'barrel of 5' and isinstance(b, Tank)",
    "class Named(Tank):\n    def __init__(self, litres, to):\n        super().__init__(litres)\n        self.to = to\n"
    "    def take(self, litres):\n        super().take(litres)\n        return self.to\nn = Named(9, 'me')\nassert n.take(4) == 'me' and n.litres == 5",
    "assert Tank(9).take(1).take(2).litres == 6",
    "try: Tank(1).take(2)\nexcept KeyError: pass",
    "class Quiet(Tank): pass\nassert Quiet(1).label() == 'barrel of 1'",
]

DATA = """
import datetime, enum, itertools
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple
@dataclass(order=True)
class Card:
    rank: int
    suit: str = "s"
    notes: list = field(default_factory=list, compare=False)
@dataclass(frozen=True)
class Key:
    code: int
class Side(enum.Enum):
    LEFT = "l"
    RIGHT = "r"
class Size(enum.IntEnum):
    SMALL = 1
    LARGE = 2
Pair = namedtuple("Pair", "a b")
class Row(NamedTuple):
    name: str
    age: int = 3
    def greet(self): return "hi " + self.name
class Queue(list):
    def first(self): return self[0]
class Default(dict):
    def __missing__(self, key): return key + key
class Metres(float):
    def feet(self): return round(self * 3.28084, 2)
    def __str__(self): return f"{float(self)} m"
def made(kind):
    return {
        "counter": Counter("aab"), "ordered": OrderedDict([("b", 1), ("a", 2)]), "deque": deque([1, 2], 3),
        "default": defaultdict(list, {"a": [1]}), "decimal": Decimal("1.10"), "fraction": Fraction(1, 3),
        "day": datetime.date(2024, 2, 3), "time": datetime.datetime(2024, 2, 3, 4, tzinfo=datetime.timezone.utc),
        "slice": slice(1, 2), "array": bytearray(b"ab"),
    }[kind]
"""
DATA_TESTS = [
    "assert Card(1) == Card(1) and Card(1) != Card(2) and Card(1) < Card(2) and repr(Key(1)) == 'Key(code=1)'",
    "c = Card(1)\nc.notes.append('x')\nc.rank += 4\nassert c.notes == ['x'] and c.rank == 5 and 'x' in c.notes",
    "from dataclasses import FrozenInstanceError\ntry: Key(1).code = 2\nexcept FrozenInstanceError: pass\nelse: assert False",
    "from dataclasses import asdict, is_dataclass, replace\nassert asdict(Key(3)) == {'code': 3} and is_dataclass(Key) and replace(Key(1), code=2).code == 2",
    "assert len({Key(1), Key(1)}) == 1\ntry: hash(Card(1))\nexcept TypeError: pass\nelse: assert False",
    "assert Side.LEFT is Side('l') and Side['RIGHT'].value == 'r' and [s.name for s in Side] == ['LEFT', 'RIGHT']",
    "assert Size.LARGE == 2 and Size.SMALL < Size.LARGE and Size.SMALL + 1 == 2 and Size.LARGE.name == 'LARGE'",
    "p = Pair(1, 2)\nx, y = p\nassert p.a == 1 and p == (1, 2) and y == 2 and p._asdict() == {'a': 1, 'b': 2}",
    "r = Row('bo')\nassert r.greet() == 'hi bo' and r == ('bo', 3) and isinstance(r, tuple) and r[1] == 3",
    "q = Queue([3])\nq.append(1)\nassert q.first() == 3 and q == [3, 1] and sorted(q) == [1, 3] and isinstance(q, list)",
    "q = Queue()\nassert not q\nq += [4]\nassert q == [4] and len(q) == 1 and q[-1] == 4 and 4 in q",
    "d = Default(a=1)\nassert d['a'] == 1 and d['b'] == 'bb' and 'b' not in d and d == {'a': 1}\nd['c'] = 2\nassert list(d) == ['a', 'c']",
    "m = Metres(2)\nassert m.feet() == 6.56 and str(m) == '2.0 m' and m == 2 and m + 1 == 3 and isinstance(m, float)",
    "assert made('counter')['a'] == 2 and made('counter')['z'] == 0 and made('counter').most_common(1) == [('a', 2)]",
    "from collections import OrderedDict, deque\nassert made('ordered') == OrderedDict([('b', 1), ('a', 2)])\nassert made('deque') == deque([1, 2])",
    "assert made('default')['new'] == [] and made('default') == {'a': [1]}",
    "from decimal import Decimal\nfrom fractions import Fraction\nassert made('decimal') == Decimal('1.1') and made('fraction') * 3 == Fraction(1)",
    "import datetime\nassert made('day') == datetime.date(2024, 2, 3) and made('time').tzinfo == datetime.timezone.utc",
    "assert made('slice') == slice(1, 2) and made('array') == b'ab' and isinstance(made('array'), bytearray)",
    "q = Queue([3])\nassert q == [4]",
    "assert Size.SMALL == 2",
]

FUNCTIONS = """
import asyncio, contextlib, functools, inspect
def apply(function, *args): return function(*args)
def remember(function):
    known = {}
    @functools.wraps(function)
    def inner(*args):
        if args not in known: known[args] = function(*args)
        return known[args]
    return inner
def curry(function):
    count = len(inspect.signature(function).parameters)
    def inner(*args):
        return function(*args) if len(args) >= count else lambda *more: inner(*args, *more)
    return inner
@functools.lru_cache
def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
def steps(n):
    total = 0
    for i in range(n):
        total += (yield total + i) or 0
    return "end"
def counter():
    count = 0
    def up():
        nonlocal count
        count += 1
        return count
    return up
async def double(x):
    await asyncio.sleep(0)
    return 2 * x
async def up_to(n):
    for i in range(n): yield i
class Door:
    async def __aenter__(self): self.open = True; return self
    async def __aexit__(self, *error): self.open = False
@contextlib.contextmanager
def shout(word):
    yield word.upper()
class Countdown:
    def __init__(self, n): self.n = n
    def __iter__(self): return self
    def __next__(self):
        if self.n == 0: raise StopIteration
        self.n -= 1
        return self.n
class Only:
    one = None
    def __new__(cls):
        cls.one = cls.one or super().__new__(cls)
        return cls.one
class Span:
    def __init__(self, low, high): self.low, self.high = low, high
    def __contains__(self, x): return self.low <= x < self.high
    def __gt__(self, x): return self.high > x
class Node:
    def __init__(self, value, after=None): self.value, self.after, self.kids = value, after, []
class Bus:
    def __init__(self): self.listeners = []
    def on(self, listener): self.listeners.append(listener)
    def tell(self, what): return [listener(what) for listener in self.listeners]
def depth(tree): return 1 + max((depth(kid) for kid in tree.kids), default=0)
def rename(thing, name): thing.name = name; return thing
def total(numbers): return sum(numbers)
"""
FUNCTION_TESTS = [
    "assert apply(lambda x: x + 1, 3) == 4 and apply(max, [1, 5]) == 5 and apply(str.upper, 'a') == 'A'",
    "import math, io\nassert apply(math.sqrt, 4) == 2 and apply(lambda f: f.read(), io.StringIO('ab')) == 'ab'",
    "seen = []\ndef square(x):\n    seen.append(x)\n    return x * x\nm = remember(square)\nassert m(3) == m(3) == 9 and seen == [3] and m.__name__ == 'square'",
    "assert curry(lambda a, b, c: a + b * c)(1)(2)(3) == 7",
    "assert fib(40) == 102334155 and fib.cache_info().hits > 0 and fib.__name__ == 'fib'",
    "g = steps(3)\nassert next(g) == 0 and g.send(5) == 6 and list(g) == [7] and next(g, None) is None",
    "g = steps(0)\ntry: next(g)\nexcept StopIteration as e: assert e.value == 'end'\nelse: assert False",
    "up = counter()\nassert up() == 1 and up() == 2 and counter()() == 1",
    "import asyncio\nassert asyncio.run(double(4)) == 8",
    "import asyncio\nasync def main():\n    async with Door() as door: assert door.open\n"
    "    return await asyncio.gather(double(1), double(2)), [i async for i in up_to(2)], door.open\n"
    "assert asyncio.run(main()) == ([2, 4], [0, 1], False)",
    "with shout('a') as word: assert word == 'A'",
    "assert list(Countdown(3)) == [2, 1, 0] and sum(Countdown(3)) == 3 and 1 in Countdown(3)",
    "assert Only() is Only() and Node(1) is not Node(1)",
    "assert 3 in Span(1, 5) and 7 not in Span(1, 5) and Span(1, 5) > 4",
    "n = Node(2, Node(1))\nm = Node(3)\nm.after = n\nassert m.after is n and m.after.after.value == 1 and n.after.after is None",
    "n = Node(1)\nn.kids.append(Node(2))\nassert depth(n) == 2 and n.kids[0].value == 2",
    "got = []\nbus = Bus()\nbus.on(got.append)\nbus.on(lambda what: what * 2)\nassert bus.tell(4) == [None, 8] and got == [4]",
    "class Leaf:\n    def __init__(self, *kids): self.kids = list(kids)\nassert depth(Leaf(Leaf(), Leaf(Leaf()))) == 3",
    "class Thing: pass\nthing = Thing()\nassert rename(thing, 'n') is thing and thing.name == 'n'",
    "assert total(x for x in [1, 2]) == 3 and total(iter([4])) == 4 and total(range(3)) == 3",
    "assert list(map(fib, [1, 2, 10])) == [1, 1, 55] and sorted([3, 1], key=fib) == [1, 3]",
    "assert apply(lambda x: x + 1, 3) == 5",
    "g = steps(1)\nassert next(g) == 1",
]


@pytest.mark.parametrize(
    ("source", "tests"),
    [
        (MATRIX, MATRIX_TESTS),
        (ERRORS, ERROR_TESTS),
        (DATA, DATA_TESTS),
        (FUNCTIONS, FUNCTION_TESTS),
    ],
    ids=["operators", "exceptions", "data", "functions"],
)
def test_tests_say_what_they_say_in_one_interpreter(source, tests):
    expected = {test: in_one_interpreter(source, test) for test in tests}
    assert sum(expected.values()) < len(tests)  # some have to fail
    assert verdicts(source, tests) == expected


WISH = """
class Wish:
    asked = []
    def __init__(self, *args): pass
    def yes(self, other): Wish.asked.append(other); return True
    __eq__ = __lt__ = __gt__ = __le__ = __ge__ = __contains__ = yes
    def zero(self, other): Wish.asked.append(other); return 0
    __sub__ = __rsub__ = __add__ = zero
    def pop(self): return self
    def itself(self): return self
    def __exit__(self, *error): return True
    def __enter__(self): return self
def f(*args): return Wish()
Extract = f
def asked(): return Wish.asked
"""


@pytest.mark.parametrize(
    "test",
    [
        "assert f(1) == 5",
        "assert 5 == f(1)",
        "assert not f(1) != 5",
        "assert abs(f(1) - 5) < 1e-9",
        "assert 4 < f(1) and f(1) < 6",
        "assert 5 in f(1)",
        "assert f(1) in (5, 6)",
        "assert [f(1)] == [5] and {'a': f(1)} == {'a': 5}",
        "assert Extract([1]) == [1]",
        "result = Extract([1])\nassert result == [1]",
        "stack = Wish()\nstack.push_back = 1\nassert stack.pop() == 5",
        "stack = Wish()\nassert stack.itself().itself() == 5",
        "with f(1): raise AssertionError",
        "assert f(1) + 0 == 5",
    ],
)
def test_what_a_completion_returns_is_not_asked_whether_it_is_what_is_expected(test):
    found = verdicts(WISH, [test, "assert [x for x in asked() if x != 0] == []"])
    assert list(found.values()) == [False, True]


def test_an_object_that_the_tests_put_under_test_answers_for_itself():
    source = """
class Money:
    def __init__(self, cents): self.cents = cents
    def __eq__(self, other): return self.cents == getattr(other, "cents", other)
    def __lt__(self, other): return self.cents < getattr(other, "cents", other)
    def __contains__(self, coin): return coin <= self.cents
    def __add__(self, other): return Money(self.cents + getattr(other, "cents", other))
    def spend(self, cents): self.cents -= cents
"""
    tests = [
        "purse = Money(9)\npurse.spend(4)\nassert purse == 5 and purse < 6 and 2 in purse and not 8 in purse",
        "purse = Money(9)\npurse += 1\nassert purse + 5 == 15",
        "purse = Money(9)\nassert purse == 8",
    ]
    assert list(verdicts(source, tests).values()) == [True, True, False]


def test_the_completion_reaches_nothing_through_a_function_that_it_is_given():
    source = """
def names(thing):
    found = []
    for name in ('__globals__', '__closure__', '__self__', '__func__', '__code__', '__dict__', '_secret'):
        value = getattr(thing, name, None)
        if 'expected' in str(value) or value == 7: found.append(name)
    return found
"""
    holder = "class Holder:\n    _secret = 7\n    def method(self): return expected\n"
    tests = [
        f"expected = 7\n{holder}assert names(lambda: expected) == []",
        f"expected = 7\n{holder}assert names(Holder()) == [] and names(Holder().method) == []",
    ]
    assert list(verdicts(source, tests).values()) == [True, True]


IN_PLACE = """
def tidy(items): items.sort()
def double(grid):
    for row in grid: row[:] = [2 * x for x in row]
def count(words, seen):
    for word in words: seen[word] = seen.get(word, 0) + 1
def empty(items): items.clear()
def emptied(items): items.clear(); return 0
def grow(items, extra): items.extend(extra); items.append(items[0])
class Solution:
    def rotate(self, nums, k): nums[:] = nums[-k:] + nums[:-k]
"""


@pytest.mark.parametrize(
    "test",
    [
        "x = [3, 1, 2]; assert tidy(x) is None and x == [1, 2, 3]",
        "g = [[1], [2, 3]]; row = g[1]; double(g); assert g == [[2], [4, 6]] and row == [4, 6]",
        "seen = {'a': 1}; count(['a', 'b'], seen); assert seen == {'a': 2, 'b': 1}",
        "s = {1, 2}; empty(s); assert s == set()",
        "b = bytearray(b'ab'); empty(b); assert not b",
        "x = [1]; grow(x, (2,)); assert x == [1, 2, 1]",
        "x = [1, 2, 3]; Solution().rotate(x, 1); assert x == [3, 1, 2]",
    ],
)
def test_a_function_that_works_in_place_is_seen_to(test: str) -> None:
    assert in_one_interpreter(IN_PLACE, test)
    assert verdicts(IN_PLACE, [test]) == {test: True}


def test_a_function_that_returns_something_leaves_what_the_tests_compare_with() -> None:
    expected = "want = [1]; assert emptied(want) == len(want)"
    assert in_one_interpreter(IN_PLACE, expected) and not verdicts(IN_PLACE, [expected])[expected]
