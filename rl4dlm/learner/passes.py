"""Passes of several ranks in step: no rank waits alone in a collective."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Pass = TypeVar("Pass")


def in_step(
    plans: Sequence[Sequence[Pass]], rank: int, filler: Callable[[], Pass]
) -> Iterator[tuple[Pass, bool]]:
    """A rank's passes, filled up so that every rank runs as many: each forward and backward pass may be a
    collective.

    Args:
        plans: the passes of every rank, computed alike on all of them.
        rank: this one.
        filler: a cheap pass, made where one is needed; what it yields counts nothing.

    Yields:
        A pass, and whether it is real.
    """
    yield from ((one, True) for one in plans[rank])
    missing = max(map(len, plans)) - len(plans[rank])
    if missing:
        spare = filler()
        yield from ((spare, False) for _ in range(missing))
