"""Draft and verify: several denoising steps in one forward, with the samples of one step per forward.

Source: FreeDave, arXiv:2510.00294. The logits of a state say what the next steps will
probably commit. A round runs the true state together with the states guessed to follow it, and goes along
them for as long as each step commits exactly what was guessed. Since a step's draws are a function of (seed,
step, position), the proof holds for sampling as for greedy decoding. Departs from the paper: guesses end with
the active block.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from rl4dlm.decoding import SamplerSpec, decide
from rl4dlm.rollout.forwards import canvas_logits, enlarged_blocks
from rl4dlm.rollout.slots import Slots, Window
from rl4dlm.types import Denoiser


class Known(NamedTuple):
    """Logits of an earlier state that the next guesses are made from, in row-major order."""

    row: Tensor
    """int64 `[entries]`."""
    position: Tensor
    """int64 `[entries]`: canvas position, masked still."""
    logits: Tensor
    """`[entries, vocab]`."""

    def where(self, kept: Tensor) -> Known:
        """The entries that a bool `[entries]` keeps."""
        return Known(self.row[kept], self.position[kept], self.logits[kept])


class Guess(NamedTuple):
    """A state that may come."""

    slots: Slots
    window: Window
    valid: Tensor
    """bool `[rows]`: there is a guess for the row."""


class Drafts:
    """The rounds of an engine that drafts."""

    def __init__(self, denoiser: Denoiser, spec: SamplerSpec) -> None:
        self._denoiser, self._spec = denoiser, spec
        self._known: Known | None = None

    def keep(self, rows: list[int]) -> None:
        """Drop every other row."""
        if self._known is None:
            return
        device = self._known.row.device
        kept = torch.tensor(rows, dtype=torch.int64, device=device)
        left = self._known.where(torch.isin(self._known.row, kept))
        self._known = left._replace(row=torch.searchsorted(kept, left.row))

    def admit(self, rows: list[int]) -> None:
        """Nothing is known of new rows."""
        if self._known is not None:
            fresh = torch.tensor(rows, dtype=torch.int64, device=self._known.row.device)
            self._known = self._known.where(~torch.isin(self._known.row, fresh))

    def guesses(self, slots: Slots) -> list[Guess]:
        """The true state, and up to `draft_steps - 1` states that the known logits lead to."""
        everyone = torch.ones_like(slots.step, dtype=torch.bool)
        states = [Guess(slots, slots.window(), everyone)]
        if self._known is None or len(self._known.row) == 0:
            return states
        known, valid, state = self._known, everyone, slots
        for _ in range(self._spec.draft_steps - 1):
            state = state.fork()
            valid = valid & self._follow(state, known)
            states.append(Guess(state, state.window(), valid))
            masked = state.canvas[known.row, known.position] == state.mask_id
            known = known.where(masked & valid[known.row])
        return states

    def _follow(self, state: Slots, known: Known) -> Tensor:
        """Take the step that the known logits lead to; the rows where there were any."""
        start = state.span()[:, :1]
        window = state.window()
        width = window.position.shape[1]
        index = known.row * width + (known.position - start[known.row, 0])
        flat = torch.zeros_like(window.eligible).flatten()
        eligible = flat.index_fill(0, index, True).view_as(window.eligible) & window.eligible
        narrow = replace(window, eligible=eligible, index=index)
        state.commit(decide(self._spec, state.step_input(narrow, known.logits)), narrow)
        moved = eligible.any(dim=1)
        state.advance(state.block_is_done() & moved, moved)
        return moved

    def logits(self, states: list[Guess]) -> list[Tensor]:
        """Logits of every state at its seen positions, by one forward; counts forwards and tokens."""
        slots, gen_len = states[0].slots, self._spec.gen_len
        slots.forwards += 1
        blocks = enlarged_blocks(self._denoiser, slots)
        inputs: list[tuple[Tensor, Tensor | None, Tensor | None]] = []
        places: list[tuple[Tensor, Tensor]] = []
        for state in states:
            slots.tokens += state.valid * (slots.prompt_len + gen_len)
            places.append(_seen_places(state, offset=sum(len(ids) for ids, _, _ in inputs)))
            parts = (*state.slots.model_input(), blocks)
            ids, mask, lengths = (None if part is None else part[state.valid] for part in parts)
            assert ids is not None
            inputs.append((ids, mask, lengths))
        every = canvas_logits(
            self._denoiser,
            torch.cat([ids for ids, _, _ in inputs]),
            _joined([mask for _, mask, _ in inputs]),
            (torch.cat([row for row, _ in places]), torch.cat([position for _, position in places])),
            gen_len,
            _joined([lengths for _, _, lengths in inputs]),
        )
        return list(every.split([len(row) for row, _ in places]))

    def remember(self, slots: Slots, states: list[Guess], logits: list[Tensor], last: Tensor) -> None:
        """Keep the logits that the rows went on from last, at positions that are masked still.

        Args:
            slots: the rows after the round.
            states: of the round.
            logits: of each state.
            last: int64 `[rows]`: the state whose logits each row used last.
        """
        parts = []
        for number, (state, values) in enumerate(zip(states, logits, strict=True)):
            row, position = state.window.where(state.window.index)
            seen = state.valid[row]
            row, position = row[seen], position[seen]
            active = (position >= slots.span()[row, 0]) & (position < slots.span()[row, 1])
            useful = (last[row] == number) & active & (slots.canvas[row, position] == slots.mask_id)
            parts.append(Known(row, position, values).where(useful))
        joined = Known(*(torch.cat(column) for column in zip(*parts, strict=True)))
        order = (joined.row * slots.canvas.shape[1] + joined.position).argsort()
        self._known = Known(*(column[order] for column in joined))


def _seen_places(state: Guess, *, offset: int) -> tuple[Tensor, Tensor]:
    """Row and canvas position of what is seen of a state, rows counted among the valid ones from `offset`."""
    row, position = state.window.where(state.window.index)
    seen = state.valid[row]
    place = state.valid.cumsum(0) - 1 + offset
    return place[row[seen]], position[seen]


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    """One tensor of all parts; None where they are None, which they are together."""
    present = [part for part in parts if part is not None]
    return torch.cat(present) if present else None


def narrowed(window: Window, valid: Tensor, logits: Tensor, active: Tensor) -> tuple[Window, Tensor]:
    """A window and its logits, cut to the active rows.

    Args:
        window: of a state, over all rows.
        valid: bool `[rows]`: rows that `logits` has entries of.
        logits: `[entries, vocab]`.
        active: bool `[rows]`, some of the valid ones.
    """
    row, _ = window.where(window.index)
    kept = active[row]
    eligible = window.eligible & active[:, None]
    return replace(window, eligible=eligible, index=window.index[kept]), logits[kept[valid[row]]]
