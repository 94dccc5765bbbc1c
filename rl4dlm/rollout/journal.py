"""Journals: what rows record beside their trace, step by step: predictions, and events of revisions.

Lists on the CPU, one copy from the device per step for all rows; only samplers that ask for it pay for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from rl4dlm.decoding import Decision, SamplerSpec, StepInput, proposals
from rl4dlm.decoding.step import Actions
from rl4dlm.rollout.slots import Window
from rl4dlm.types import EARLY_COMMIT, FILL, REMASK, REVEAL, Events, PolicyActions, Predictions

Columns = tuple[np.ndarray, ...]
"""Arrays of one step of one row, all of one length."""


@dataclass
class RowJournal:
    """What one row has recorded so far: an entry per step."""

    predictions: list[Columns] = field(default_factory=list)
    """Token, log-probability, confidence."""
    events: list[Columns] = field(default_factory=list)
    """Position, operation, token, log-probability."""
    actions: list[Columns] = field(default_factory=list)
    """Position, confidence, action; and the log-probability of all of them, once."""


class Journal:
    """The journals of the rows under way."""

    def __init__(self, spec: SamplerSpec, mask_id: int, num_slots: int) -> None:
        self._spec, self._mask_id = spec, mask_id
        self.rows = [RowJournal() for _ in range(num_slots)]

    def admit(self, slots: Sequence[int]) -> None:
        """New rows begin with nothing recorded."""
        for slot in slots:
            self.rows[slot] = RowJournal()

    def keep(self, slots: Sequence[int]) -> None:
        """Drop every other slot."""
        self.rows = [self.rows[slot] for slot in slots]

    def write(self, step: StepInput, decision: Decision, window: Window) -> None:
        """Record a step of all rows."""
        if self._spec.record_predictions:
            self._write_predictions(step, decision, window)
        if self._spec.facts.revises:
            self._write_events(decision, window)
        if decision.actions is not None:
            self._write_actions(decision.actions, window)

    def _write_predictions(self, step: StepInput, decision: Decision, window: Window) -> None:
        drawn = proposals(self._spec, step, decision)
        assert decision.confidence is not None
        masked = step.at_seen(window.masked)
        row, _ = window.where(window.index[masked])
        columns = [c[masked] for c in (drawn.token.int(), drawn.prob.log(), decision.confidence.float())]
        for journal, part in zip(self.rows, by_row(row, columns, len(self.rows)), strict=True):
            journal.predictions.append(part)

    def _write_events(self, decision: Decision, window: Window) -> None:
        row, position = window.where(window.index[decision.picked])
        reveals = by_row(row, (position, decision.token, decision.logp, *_kinds(decision)), len(self.rows))
        hidden = _remasked(decision, window, len(self.rows))
        for journal, shown, gone in zip(self.rows, reveals, hidden, strict=True):
            journal.events.append(_events_of_step(shown, gone, self._mask_id))

    def _write_actions(self, actions: Actions, window: Window) -> None:
        row, position = window.where(actions.index)
        parts = by_row(row, (position, actions.confidence, actions.action), len(self.rows))
        logp = actions.logp.cpu().numpy()
        for i, (journal, part) in enumerate(zip(self.rows, parts, strict=True)):
            journal.actions.append((*part, logp[i : i + 1]))


def by_row(row: Tensor, columns: Sequence[Tensor], num_rows: int) -> list[Columns]:
    """Columns in row-major order, `[entries]`, cut into the parts of each row, on the CPU.

    Args:
        row: int64 `[entries]`, ascending.
        columns: tensors `[entries]`.
        num_rows: rows, also those without entries.
    """
    ends = np.cumsum(np.bincount(row.cpu().numpy(), minlength=num_rows))[:-1]
    cut = [np.split(column.cpu().numpy(), ends) for column in columns]
    return list(zip(*cut, strict=True))


def _kinds(decision: Decision) -> tuple[Tensor, ...]:
    return () if decision.kind is None else (decision.kind,)


def _remasked(decision: Decision, window: Window, num_rows: int) -> list[Columns]:
    """Positions that each row remasks."""
    if decision.remask is None:
        return [(np.zeros(0, np.int64),)] * num_rows
    row, position = window.where(decision.remask.flatten().nonzero().squeeze(1))
    return by_row(row, (position,), num_rows)


def _events_of_step(shown: Columns, gone: Columns, mask_id: int) -> Columns:
    position, token, logp, *kind = shown
    early = kind[0] == EARLY_COMMIT if kind else np.zeros(len(position), bool)
    hidden = len(gone[0])
    return (
        np.concatenate([position, gone[0]]),
        np.concatenate([np.where(early, FILL, REVEAL), np.full(hidden, REMASK)]),
        np.concatenate([token, np.full(hidden, mask_id)]),
        np.concatenate([np.where(early, 0.0, logp), np.zeros(hidden)]),
    )


def pack_predictions(steps: Sequence[Columns]) -> Predictions:
    """The entries of a finished row as one record."""
    token, logp, confidence = _joined(steps, (np.int32, np.float32, np.float32))
    return Predictions(_pointers(steps), token, logp, confidence)


def pack_events(steps: Sequence[Columns]) -> Events:
    """The events of a finished row as one record; fillers are the last entry of `steps`."""
    pos, op, token, logp = _joined(steps, (np.int32, np.uint8, np.int32, np.float32))
    return Events(_pointers(steps), pos, op, token, logp)


def pack_actions(steps: Sequence[Columns]) -> PolicyActions:
    """A policy's actions of a finished row as one record."""
    dtypes = (np.int32, np.float32, np.uint8, np.float32)
    pos, confidence, action, logp = _joined(steps, dtypes)
    return PolicyActions(_pointers(steps), pos, confidence, action, logp)


def _pointers(steps: Sequence[Columns]) -> np.ndarray:
    return np.cumsum([0, *(len(step[0]) for step in steps)], dtype=np.int32)


def _joined(steps: Sequence[Columns], dtypes: Sequence[type]) -> list[np.ndarray]:
    columns = zip(*steps, strict=True)
    return [np.concatenate(column).astype(dtype) for column, dtype in zip(columns, dtypes, strict=True)]
