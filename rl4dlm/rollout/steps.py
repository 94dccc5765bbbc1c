"""What an iteration of the engine does to all rows: one denoising step, or a round of guessed ones."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from rl4dlm.decoding import SamplerSpec, decide, ends_row
from rl4dlm.rollout.drafts import Drafts, narrowed
from rl4dlm.rollout.forwards import Forward, make_forward
from rl4dlm.rollout.graphs import Graphs
from rl4dlm.rollout.journal import Journal
from rl4dlm.rollout.slots import Slots
from rl4dlm.types import Denoiser


class Stepper(Protocol):
    """Takes the rows under way further."""

    def take(self, slots: Slots, journal: Journal) -> Tensor:
        """One iteration; bool `[slots]`: the rows that are finished."""
        ...

    def keep(self, rows: list[int]) -> None:
        """Drop every other row."""
        ...

    def admit(self, rows: list[int]) -> None:
        """Forget what was known of rows that have a new tenant."""
        ...


def make_stepper(
    denoiser: Denoiser, spec: SamplerSpec, slots: Slots, graphs: Graphs | None = None
) -> Stepper:
    """The stepper that a sampler asks for."""
    stop_ids = torch.tensor(denoiser.spec.stop_ids, dtype=torch.int64, device=denoiser.device)
    if spec.draft_steps:
        return DraftRound(denoiser, spec, stop_ids)
    return SingleStep(make_forward(denoiser, spec, slots, graphs), spec, stop_ids)


class SingleStep:
    """One forward and one state change of every row."""

    def __init__(self, forward: Forward, spec: SamplerSpec, stop_ids: Tensor) -> None:
        self._forward, self._spec, self._stop_ids = forward, spec, stop_ids

    def take(self, slots: Slots, journal: Journal) -> Tensor:
        """See `Stepper`."""
        window = self._forward.window(slots)
        step = slots.step_input(window, self._forward(slots, window))
        decision = decide(self._spec, step)
        journal.write(step, decision, window)
        slots.commit(decision, window)
        finished = is_finished(slots, self._spec, self._stop_ids)
        slots.advance(slots.block_is_done())
        return finished

    def keep(self, rows: list[int]) -> None:
        """See `Stepper`."""
        self._forward.keep(rows)

    def admit(self, rows: list[int]) -> None:
        """A new row's first step computes all that it needs."""


class DraftRound:
    """One forward of the true states and of guessed ones; as many state changes as the guesses were right."""

    def __init__(self, denoiser: Denoiser, spec: SamplerSpec, stop_ids: Tensor) -> None:
        self._spec, self._stop_ids = spec, stop_ids
        self._drafts = Drafts(denoiser, spec)

    def take(self, slots: Slots, journal: Journal) -> Tensor:
        """See `Stepper`."""
        states = self._drafts.guesses(slots)
        logits = self._drafts.logits(states)
        active = states[0].valid
        finished, last = ~active, torch.zeros_like(slots.step)
        for number, (state, values) in enumerate(zip(states, logits, strict=True)):
            active = active & ~finished & state.valid & (state.slots.canvas == slots.canvas).all(dim=1)
            window, part = narrowed(state.window, state.valid, values, active)
            slots.commit(decide(self._spec, slots.step_input(window, part)), window)
            finished = finished | (active & is_finished(slots, self._spec, self._stop_ids))
            slots.advance(slots.block_is_done() & active, active)
            last = torch.where(active, number, last)
        self._drafts.remember(slots, states, logits, last)
        return finished

    def keep(self, rows: list[int]) -> None:
        """See `Stepper`."""
        self._drafts.keep(rows)

    def admit(self, rows: list[int]) -> None:
        """See `Stepper`."""
        self._drafts.admit(rows)


def is_finished(slots: Slots, spec: SamplerSpec, stop_ids: Tensor) -> Tensor:
    """Rows that need no further step: bool `[slots]`, asked after a commit and before the rows move on."""
    masked = slots.canvas == slots.mask_id
    stop = torch.isin(slots.canvas, stop_ids)
    ended = ends_row(stop, masked, slots.active(), slots.block == slots.last_block, spec.eos_policy)
    return ended | ~masked.any(dim=1)
