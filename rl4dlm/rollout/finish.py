"""From what the loop wrote down about a finished row to a `Rollout`: fillers, length, stop reason, text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rl4dlm.decoding import SamplerSpec, completion_length
from rl4dlm.rollout.journal import RowJournal, pack_actions, pack_events, pack_predictions
from rl4dlm.rollout.request import Request
from rl4dlm.rollout.slots import RawRow
from rl4dlm.types import (
    EARLY_COMMIT,
    EOS_FILLER,
    FILL,
    STOP_EARLY_COMMIT,
    STOP_EOS,
    STOP_LENGTH,
    DenoiserSpec,
    Events,
    Rollout,
    Trace,
)

Decode = Callable[[Sequence[int]], str]
"""Token ids -> text without special tokens."""


@dataclass(frozen=True)
class Finisher:
    """What all rollouts of one call have in common."""

    model: DenoiserSpec
    policy_version: int
    decode: Decode | None

    def finish(self, request: Request, sampler: SamplerSpec, row: RawRow, journal: RowJournal) -> Rollout:
        """The rollout of a finished row; positions that were never reached become end-of-text fillers."""
        filler = row.canvas == self.model.mask_id
        tokens = np.where(filler, self.model.eos_id, row.canvas).astype(np.int32)
        length, stopped = completion_length(tokens, self.model.stop_ids)
        return Rollout(
            prompt_uid=request.prompt_uid,
            sample=request.sample,
            seed=request.seed,
            prompt_ids=np.asarray(request.prompt_ids, dtype=np.int32),
            completion_ids=tokens,
            completion_len=length,
            stop_reason=_stop_reason(row, stopped),
            num_steps=row.num_steps,
            num_forwards=row.forwards,
            token_forwards=row.tokens,
            policy_version=self.policy_version,
            spec_hash=sampler.hash(),
            trace=self._trace(row, filler, sampler, journal),
            text="" if self.decode is None else self.decode(tokens[: length - stopped].tolist()),
        )

    def _trace(self, row: RawRow, filler: np.ndarray, sampler: SamplerSpec, journal: RowJournal) -> Trace:
        """The trace of a finished row; fillers appear after the last step and have neither score nor logp."""
        return Trace(
            step_map=np.where(filler, row.num_steps, row.step_map).astype(np.int32),
            rank=np.where(filler, 0, row.rank).astype(np.int16),
            kind=np.where(filler, EOS_FILLER, row.kind).astype(np.uint8),
            rollout_logp=np.where(filler, 0.0, row.logp).astype(np.float32),
            score=np.where(filler, 0.0, row.score).astype(np.float32),
            step_block=row.step_block[: row.num_steps].astype(np.int16),
            step_masked=row.step_masked[: row.num_steps].astype(np.int32),
            predictions=pack_predictions(journal.predictions) if sampler.record_predictions else None,
            events=self._events(journal, filler) if sampler.facts.revises else None,
            actions=pack_actions(journal.actions) if journal.actions else None,
        )

    def _events(self, journal: RowJournal, filler: np.ndarray) -> Events:
        where = np.flatnonzero(filler)
        fills = (
            where,
            np.full(len(where), FILL),
            np.full(len(where), self.model.eos_id),
            np.zeros(len(where)),
        )
        return pack_events([*journal.events, fills])


def _stop_reason(row: RawRow, stopped: bool) -> int:
    if (row.kind == EARLY_COMMIT).any():
        return STOP_EARLY_COMMIT
    return STOP_EOS if stopped else STOP_LENGTH
