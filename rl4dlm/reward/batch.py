"""What is scored at once: completions in groups, and the calls that a reward function gets of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

from rl4dlm.reward.calling import Call

FULL_CALL = 16
"""Completions that whole groups fill a call up to, where the recipe does not say how many groups."""
BEFORE_A_RUN: Mapping[str, int] = {"global_step": 0, "max_steps": 0}
"""TRL's `trainer_state` outside of a run."""


@dataclass(frozen=True)
class Scorable:
    """One completion, with everything that a reward function may ask about it.

    Example: `Scorable("2+2=", "4", {"answer": "4"})`.
    """

    prompt: Any
    """As the dataset gives it: text, or chat messages."""
    text: str
    columns: Mapping[str, Any] = field(default_factory=dict)
    """The row's other columns."""
    token_ids: Sequence[int] | None = None
    """Up to and including the first stop id, without padding; None: not known."""
    trajectory: Mapping[str, Any] | None = None
    """`completion_ids` (the whole canvas), `step_map`, `num_steps`; None: not known."""


Groups = Sequence[Sequence[Scorable]]
"""The completions of a prompt stand together."""


@dataclass(frozen=True)
class Batch:
    """Groups that are scored at once, in order; `rows` count their completions from 0."""

    groups: Groups
    trainer_state: Mapping[str, Any]
    column_names: tuple[str, ...]
    """Every function sees all of them in every call; a row that lacks one has None."""

    @classmethod
    def of(cls, groups: Groups, trainer_state: Mapping[str, Any] | None = None) -> Batch:
        """A batch with the columns that any of its rows has."""
        names = dict.fromkeys(name for group in groups for row in group for name in row.columns)
        return cls(groups, trainer_state or BEFORE_A_RUN, tuple(names))

    def __len__(self) -> int:
        return sum(map(len, self.groups))

    def part(self, start: int, stop: int) -> Batch:
        """The groups `start` to `stop`, with the columns of the whole."""
        return replace(self, groups=self.groups[start:stop])

    def group_rows(self) -> list[range]:
        """The rows of each group."""
        ends = list(accumulate(map(len, self.groups)))
        return [range(end - len(group), end) for end, group in zip(ends, self.groups, strict=True)]

    def calls(self, groups_per_call: int | None) -> list[range]:
        """Which groups are called together: `groups_per_call` of them, or as many as fill a call."""
        calls: list[range] = []
        start = rows = 0
        for index, group in enumerate(self.groups):
            full = index - start == groups_per_call if groups_per_call else rows + len(group) > FULL_CALL
            if full and index > start:
                calls.append(range(start, index))
                start, rows = index, 0
            rows += len(group)
        return [*calls, range(start, len(self.groups))] if rows else calls

    def call(self, rows: Sequence[int]) -> Call:
        """What a function is given for some of the rows."""
        return call_of([self._completions[row] for row in rows], self.column_names, self.trainer_state)

    @cached_property
    def _completions(self) -> list[Scorable]:
        return [completion for group in self.groups for completion in group]


def call_of(
    completions: Sequence[Scorable],
    column_names: Sequence[str] | None = None,
    trainer_state: Mapping[str, Any] = BEFORE_A_RUN,
) -> Call:
    """One call about some completions; `column_names` None: the columns that any of them has."""
    if column_names is None:
        column_names = list(dict.fromkeys(name for row in completions for name in row.columns))
    ids = [row.token_ids for row in completions if row.token_ids is not None]
    trajectories = [row.trajectory for row in completions if row.trajectory is not None]
    return Call(
        prompts=[row.prompt for row in completions],
        completions=[row.text for row in completions],
        columns={name: [row.columns.get(name) for row in completions] for name in column_names},
        completion_ids=[list(map(int, one)) for one in ids] if len(ids) == len(completions) else None,
        trajectories=trajectories if len(trajectories) == len(completions) else None,
        trainer_state=trainer_state,
    )
