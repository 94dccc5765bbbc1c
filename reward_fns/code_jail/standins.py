"""The tester's side: stand-ins for what the completion defines, and the channel on which they ask.

Each class of the completion gets a class here, with the same name, the same parents and the same special
methods, so that `isinstance`, `except`, `callable`, `len` and a class statement find what they expect; each
of its objects gets one instance, the same for the same object. What is done to a stand-in is done to the
object.

One thing is never asked of the completion: whether an object of its own is equal to, less than, or in any
other relation with a value of the tests, since that value may be what is expected. Between two objects of the
completion it is asked. Where the tests' own text says that an object is under test, `questions` asks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import wire
from objects import FORWARDED

if TYPE_CHECKING:
    from remote import Remote

_ABOUT_FUNCTIONS = frozenset(
    f"__{name}__"
    for name in ("name", "qualname", "doc", "wrapped", "annotations", "defaults", "kwdefaults", "match_args")
)
_OPERATORS = (
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "matmul",
    "lshift",
    "rshift",
    "divmod",
)
_OPERATORS += ("and", "or", "xor")
_RELATIONS = frozenset(f"__{name}__" for name in ("lt", "le", "eq", "ne", "gt", "ge", "contains"))
_BINARY = frozenset(f"__{sign}{name}__" for name in _OPERATORS for sign in ("", "r", "i")) | _RELATIONS
# What only changes an object, or looks up a key of it, may be asked of a list of the completion's.
_BY_OBJECT = frozenset(
    f"__{name}__" for name in ("getitem", "setitem", "delitem", *(f"i{o}" for o in _OPERATORS))
)
_BY_CONTENT = ("keys", "values", "items", "copy", "index", "count", "union", "intersection", "difference")
_NUMBER, _REMOTE = "_rl_number", "_rl_remote"


class Reference:
    """Names an object of the candidate for which there is no stand-in yet."""

    def __init__(self, number: int) -> None:
        self.number = number


def number_of(value: Any) -> int | None:
    """The number of what a value stands for; None: it stands for nothing."""
    if type(value) is Reference:
        return value.number
    if isinstance(type(value), StandInClass):
        return object.__getattribute__(value, _NUMBER)
    return vars(value).get(_NUMBER) if isinstance(value, StandInClass) else None


def remote_of(value: Any) -> Remote:
    """Whom a stand-in asks."""
    if isinstance(value, StandInClass):
        return next(vars(kind)[_REMOTE] for kind in value.__mro__ if _REMOTE in vars(kind))
    return object.__getattribute__(value, _REMOTE)


class StandInClass(type):
    """Class of the stand-ins for classes: what is done to one is done to the class of the completion."""

    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **keywords: Any) -> Any:
        """A class statement of the tests: the candidate derives it too, with functions that call back."""
        made = type.__new__(mcs, name, bases, namespace, **keywords)
        parents = [base for base in bases if number_of(base) is not None]
        if parents:
            remote = remote_of(parents[0])
            members = {key: member(value) for key, value in namespace.items() if _is_member(key)}
            request = {"op": "subclass", "args": remote.encoded([name, list(bases), members])}
            answer = remote.ask(request)["value"]
            settle(made, remote, int(answer["class"]))
            remote.adopt(made, int(answer["class"]))
        return made

    def __init__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **keywords: Any) -> None:
        type.__init__(cls, name, bases, namespace)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return remote_of(cls).do("call", cls, args, kwargs)

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__") and name not in _ABOUT_FUNCTIONS or number_of(cls) is None:
            raise AttributeError(name)
        return remote_of(cls).do("get", cls, name)

    def __setattr__(cls, name: str, value: Any) -> None:
        if name.startswith("__") or number_of(cls) is None:
            type.__setattr__(cls, name, value)
        else:
            remote_of(cls).do("set", cls, name, value)

    def __delattr__(cls, name: str) -> None:
        remote_of(cls).do("delete", cls, name)

    def __iter__(cls) -> Iterator[Any]:
        return iter(remote_of(cls).do("special", "__iter__", cls))

    def __len__(cls) -> int:
        return remote_of(cls).do("special", "__len__", cls)

    def __bool__(cls) -> bool:
        return True

    def __getitem__(cls, key: Any) -> Any:
        return remote_of(cls).do("special", "__getitem__", cls, key)

    def __contains__(cls, item: Any) -> bool:
        return any(item is one or item == one for one in cls)


class StandIn(metaclass=StandInClass):
    """Stands for an object of the candidate."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in _ABOUT_FUNCTIONS:
            raise AttributeError(name)
        found = remote_of(self).do("get", self, name)
        if name in ("send", "throw") and number_of(found) is not None:
            return lambda *args: remote_of(self).do("call", found, args, {}, ends=True)
        return found

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("__"):
            object.__setattr__(self, name, value)
        else:
            remote_of(self).do("set", self, name, value)

    def __delattr__(self, name: str) -> None:
        remote_of(self).do("delete", self, name)

    def __copy__(self) -> Any:
        return remote_of(self).do("copy", self)

    def __deepcopy__(self, memo: Any) -> Any:
        return remote_of(self).do("deepcopy", self)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("a stand-in for an object of the completion cannot be pickled")


class _Attribute:
    """An attribute of a class of the completion, found through an instance, the class or `super()`."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __set_name__(self, owner: type, name: str) -> None:
        self._owner = owner

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            if owner is None or number_of(owner) is None:
                raise AttributeError(self._name)
            return remote_of(owner).do("get", owner, self._name)
        kinds = type(instance).__mro__
        first = next(kind for kind in kinds if self._name in vars(kind))
        if first is self._owner and self._name != "__init__":
            return StandIn.__getattr__(instance, self._name)
        return remote_of(instance).do("inherited", self._owner, self._name, instance)


class _Own:
    """What an instance says of itself where every class says something too: its text, its attributes."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type) -> Any:
        about = owner if instance is None else instance
        return None if number_of(about) is None else remote_of(about).do("get", about, self._name)


def member(value: Any) -> tuple[str, Any]:
    """A member of a class that the tests derive, in a form that crosses."""
    if isinstance(value, staticmethod | classmethod):
        return type(value).__name__, value.__func__
    if isinstance(value, property):
        return "property", [value.fget, value.fset, value.fdel]
    return "value", value


def _is_member(name: str) -> bool:
    return not (name.startswith("__") and name.endswith("__")) or name in FORWARDED | {"__init__", "__hash__"}


def settle(kind: Any, remote: Remote, number: int) -> None:
    """Have a class or an instance stand for what the candidate calls by a number."""
    put = type.__setattr__ if isinstance(kind, type) else object.__setattr__
    put(kind, _NUMBER, number)
    put(kind, _REMOTE, remote)


def class_like(remote: Remote, number: int, about: Mapping[str, Any], parents: Sequence[Any]) -> type:
    """A class that has the parents and special methods of one of the candidate."""
    own = [kind for kind in parents if isinstance(kind, StandInClass)]
    plain = [kind for kind in parents if isinstance(kind, type) and (kind in wire.BASES or raisable(kind))]
    bases = (*(own or [StandIn]), *plain)
    namespace: dict[str, Any] = {
        "__module__": "solution",
        "__doc__": _Own("__doc__"),
        "__dict__": _Own("__dict__"),
    }
    base = next((found for kind in bases if (found := wire.base_of(kind)) is not None), None)
    if base in wire.MUTABLE and not any(wire.base_of(kind) for kind in own):
        namespace |= _contents(base)
    namespace |= {name: _Attribute(name) for name in about["attributes"] if not name.startswith("_rl_")}
    if about.get("creates"):
        namespace["__init__"] = _Attribute("__init__")
    namespace |= {name: _special(name, base) for name in about["special"] if name in FORWARDED}
    hashing = {"own": _special("__hash__", None), "none": None}
    namespace["__hash__"] = hashing.get(str(about.get("hash")), (base or object).__hash__)
    name = str(about.get("name"))
    try:
        made = type.__new__(StandInClass, name, bases, namespace)
    except (TypeError, ValueError):
        made = type.__new__(StandInClass, "object", (StandIn, *plain[:1]), namespace)
    settle(made, remote, number)
    return made


def _contents(base: type) -> dict[str, Any]:
    """Methods of a list, dict, set or bytearray that the candidate holds.

    What reads it reads a fresh copy, here; what changes it changes the candidate's.
    """
    methods: dict[str, Any] = {}
    for name in dir(base):
        if name in _BY_OBJECT:
            methods[name] = _special(name, None, asks=True)
        elif name in FORWARDED or name in _BY_CONTENT:
            methods[name] = _fresh(name, base)
        elif not name.startswith("__"):
            methods[name] = _Attribute(name)
    return methods


def _fresh(name: str, base: type) -> Any:
    method = getattr(base, name)

    def read(self: Any, *args: Any, **kwargs: Any) -> Any:
        _refresh(self, base)
        for other in args:
            if isinstance(other, StandIn) and wire.base_of(type(other)) in wire.MUTABLE:
                _refresh(other, wire.base_of(type(other)))
        return method(self, *args, **kwargs)

    return read


def _refresh(value: Any, base: Any) -> None:
    held = remote_of(value).do("plain", value)
    if not isinstance(held, base):
        raise TypeError(f"an object that was a {base.__name__} no longer is one")
    fill(value, base, held)


def fill(value: Any, base: type, held: Any) -> None:
    base.__init__(value)  # type: ignore[misc]
    if base is dict:
        dict.clear(value)
        dict.update(value, held)
    elif base is set:
        set.clear(value)
        set.update(value, held)
    else:
        base.__init__(value, held)  # type: ignore[misc]


def overwrite(value: Any, held: Any) -> None:
    """Make plain data equal to other data of its type, in place; lists inside lists that stay keep who they
    are."""
    if type(value) is list and len(value) == len(held):
        for index, (old, new) in enumerate(zip(list(value), held, strict=True)):
            if type(old) is type(new) and type(old) in wire.MUTABLE:
                overwrite(old, new)
            else:
                value[index] = new
    else:
        fill(value, type(value), held)


def _special(name: str, base: type | None, asks: bool = False) -> Any:
    """A special method that has the candidate do what Python does for it."""
    if name in _BINARY and not asks:
        return _relation(name, base)
    if name in ("__exit__", "__aexit__"):
        return _leaving(name)

    def special(self: Any, *args: Any, **kwargs: Any) -> Any:
        if name == "__call__":
            return remote_of(self).do("call", self, args, kwargs)
        found = remote_of(self).do("special", name, self, *args, ends=name in ("__next__", "__anext__"))
        return _waited(found) if name == "__await__" else found

    return special


def _relation(name: str, base: type | None) -> Any:
    """An operator: asked between objects of the completion, and otherwise what plain data answers."""

    def relation(self: Any, *others: Any) -> Any:
        # 0 + x: how `sum` begins.
        begins_a_sum = name == "__radd__" and type(others[0]) is int and others[0] == 0
        if begins_a_sum or all(isinstance(other, StandIn) for other in others):
            return remote_of(self).do("special", name, self, *others)
        if base in wire.MUTABLE:
            _refresh(self, base)
        if base is not None and hasattr(base, name):
            return getattr(base, name)(self, *others)
        if name == "__contains__":
            return any(others[0] is one or others[0] == one for one in self)
        return NotImplemented

    return relation


def _leaving(name: str) -> Any:
    """The end of a `with` block. What fails in the tests themselves no object of the completion forgives."""

    def leave(self: Any, kind: Any, error: Any, trace: Any) -> Any:
        forgives = remote_of(self).do("special", name, self, kind, error, None)
        if error is None or isinstance(error, Exception) and not isinstance(error, AssertionError):
            return forgives
        return _never(forgives) if name == "__aexit__" else False

    return leave


async def _never(result: Any) -> bool:
    await result
    return False


def _waited(iterator: Any) -> Iterator[Any]:
    """`__await__` of an object whose own gives an iterator."""
    result = yield from iterator
    return result


def raisable(kind: type) -> bool:
    return issubclass(kind, BaseException) and kind.__module__ != "remote"
