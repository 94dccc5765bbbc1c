"""Slots: the completions under way, row by row, and what a step reads from and writes into them.

Every row has its own block and step, so rows that started at different times share a forward.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from rl4dlm.decoding import STRATEGIES, Decision, SamplerSpec, StepInput, block_span, num_blocks
from rl4dlm.rollout.request import Request, block_offset
from rl4dlm.rollout.row_arrays import RowArrays
from rl4dlm.types import SAMPLED, DenoiserSpec


@dataclass(frozen=True)
class Window:
    """The positions of all rows that a step looks at."""

    position: Tensor
    """int64 `[rows, width]`, ascending canvas positions; one beyond a row's block is not eligible."""
    eligible: Tensor
    """bool `[rows, width]`: may be committed."""
    masked: Tensor
    """bool `[rows, width]`: hold the mask token; of the active block where the window is the block."""
    index: Tensor
    """int64 `[seen]`: positions whose logits are wanted, in the flattened window, ascending."""

    def where(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Row and canvas position of entries of the flattened window."""
        return flat // self.position.shape[1], self.position.flatten()[flat]


@dataclass(frozen=True)
class RawRow:
    """A finished row as the loop leaves it; positions that were never reached still hold the mask token."""

    canvas: np.ndarray
    """int64 `[completion]`."""
    step_map: np.ndarray
    """int32 `[completion]`."""
    rank: np.ndarray
    """int16 `[completion]`."""
    kind: np.ndarray
    """uint8 `[completion]`."""
    logp: np.ndarray
    """float32 `[completion]`."""
    score: np.ndarray
    """float32 `[completion]`."""
    step_block: np.ndarray
    """int16 `[steps]`, or more than were taken."""
    step_masked: np.ndarray
    """int32 `[steps]`, or more than were taken."""
    num_steps: int
    forwards: int
    tokens: int


class Slots(RowArrays):
    """The rows under way, and what each of them is about.

    Attributes:
        tenants: per slot the index of its request.
        prompt_lens: per slot the length of its prompt; the same on the device in `prompt_len`.
        fresh: slots filled since the last step.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        num_slots: int,
        spec: SamplerSpec,
        model: DenoiserSpec,
        device: str,
        align: int = 1,
    ) -> None:
        """Empty slots wide enough for any of `requests`, the first of which move in.

        Args:
            align: columns of prompts come in multiples of it.
        """
        self._align, self._spec, self._model, self._device = align, spec, model, device
        self.requests, self.fresh = requests, list[int]()
        self._samplers = [request.sampler(spec) for request in requests]
        self._width = max(sampler.block_length for sampler in self._samplers)
        rows, longest = min(num_slots, len(requests)), max(len(request.prompt_ids) for request in requests)
        self.tenants, self.prompt_lens = [-1] * rows, [0] * rows
        widths = {
            "prompt": -(-longest // align) * align,
            "canvas": spec.gen_len,
            "schedule": max(len(sampler.schedule()) for sampler in set(self._samplers)),
        }
        self.make_empty(rows, widths, {"pad": model.pad_id, "mask": model.mask_id}, device)
        self.state = {
            name: torch.zeros(rows, *shape, dtype=dtype, device=device)
            for name, (shape, dtype) in STRATEGIES[spec.remasking].state(spec, model.vocab_size).items()
        }
        self.admit(range(rows), range(rows))

    def __len__(self) -> int:
        return len(self.tenants)

    def admit(self, slots: Sequence[int], indices: Sequence[int]) -> None:
        """Put the requests at `indices` into `slots`, each of which starts anew."""
        where = self._places(slots)
        self.clear(where)
        width, tenants = self.prompt.shape[1], [self.requests[index] for index in indices]
        padded = [[self._model.pad_id] * (width - len(t.prompt_ids)) + list(t.prompt_ids) for t in tenants]
        self.prompt[where] = self._places(padded).view(len(tenants), width)
        numbers = [self._numbers(self.requests[i], self._samplers[i]) for i in indices]
        table = self._places([list(row.values()) for row in numbers])
        for column, name in enumerate(numbers[0]):
            getattr(self, name)[where] = table[:, column]
        self.schedule[where] = self._places([self._schedule(self._samplers[i]) for i in indices])
        self.fresh = sorted({*self.fresh, *slots})
        for slot, index, tenant in zip(slots, indices, tenants, strict=True):
            self.tenants[slot], self.prompt_lens[slot] = index, len(tenant.prompt_ids)

    def _places(self, numbers: Sequence[int] | list[list[int]]) -> Tensor:
        return torch.tensor(list(numbers), dtype=torch.int64, device=self._device)

    def _numbers(self, request: Request, sampler: SamplerSpec) -> dict[str, int]:
        """What a row knows about its request and its sampler, by the name of the array."""
        offset = block_offset(len(request.prompt_ids), self._model, sampler.block_length)
        return {
            "seed": request.seed,
            "prompt_len": len(request.prompt_ids),
            "num_steps": sampler.steps,
            "block_length": sampler.block_length,
            "block_steps": sampler.steps_per_block,
            "offset": offset,
            "last_block": num_blocks(sampler.gen_len, sampler.block_length, offset) - 1,
        }

    def _schedule(self, sampler: SamplerSpec) -> list[int]:
        """Commits per step of a block, the last one repeated."""
        counts = sampler.schedule()
        return [*counts, *counts[-1:] * (self.schedule.shape[1] - len(counts))]

    def keep(self, slots: Sequence[int]) -> None:
        """Drop every other slot."""
        where = self._places(slots)
        self.map_arrays(lambda array: array[where])
        self.fresh = [new for new, old in enumerate(slots) if old in self.fresh]
        self.tenants = [self.tenants[slot] for slot in slots]
        self.prompt_lens = [self.prompt_lens[slot] for slot in slots]

    def model_input(self) -> tuple[Tensor, Tensor | None]:
        """Ids int64 and attention mask bool, both `[slots, length]`, cut to the longest prompt under way.

        The mask is None when no row is padded, which keeps the model's fast attention kernel.
        """
        width = self.prompt.shape[1]
        longest = -(-max(self.prompt_lens) // self._align) * self._align
        ids = torch.cat([self.prompt[:, width - longest :], self.canvas], dim=1)
        if min(self.prompt_lens) == longest:
            return ids, None
        column = torch.arange(ids.shape[1], device=self._device)
        return ids, column >= longest - self.prompt_len[:, None]

    @property
    def mask_id(self) -> int:
        """What stands where nothing is committed."""
        return self._model.mask_id

    @property
    def num_columns(self) -> int:
        """Columns of prompt and canvas."""
        return self.prompt.shape[1] + self.canvas.shape[1]

    def all_ids(self) -> Tensor:
        """Prompts and canvases, `[slots, num_columns]`."""
        return torch.cat([self.prompt, self.canvas], dim=1)

    def prompt_of(self, slot: int) -> tuple[int, ...]:
        """The prompt of the row in a slot."""
        return tuple(self.requests[self.tenants[slot]].prompt_ids)

    def span(self) -> Tensor:
        """First and one past the last canvas position of each row's active block: int64 `[slots, 2]`."""
        return block_span(self.block, self.block_length, self.offset, self.canvas.shape[1])

    def counts(self) -> Tensor:
        """What the schedule of each row's block commits in its present step: int64 `[slots]`."""
        last = self.schedule.shape[1] - 1
        return self.schedule.gather(1, self.block_step.clamp(max=last)[:, None]).squeeze(1)

    def window(self) -> Window:
        """What the step looks at: the active blocks, or the canvases where the sampler needs more."""
        spec, facts = self._spec, self._spec.facts
        start, end = self.span().split(1, dim=1)
        sees_masks = spec.early_commit != "none" or spec.record_predictions
        if not (facts.revises or facts.sees_canvas or sees_masks):
            position = start + torch.arange(self._width, device=self._device)
            inside = position < end
            position = position.clamp(max=self.canvas.shape[1] - 1)
            masked = inside & (self.canvas.gather(1, position) == self._model.mask_id)
            return Window(position, masked, masked, masked.flatten().nonzero().squeeze(1))
        position = torch.arange(self.canvas.shape[1], device=self._device).expand_as(self.canvas)
        masked, decoded = self.canvas == self._model.mask_id, position < end
        eligible = masked & decoded & (position >= (0 if facts.revises else start))
        seen = masked if sees_masks else eligible
        if facts.sees_committed:
            seen = seen | decoded
        if spec.answer_region is not None:
            first, last = spec.answer_region
            seen = seen | ((position >= first) & (position < last))
        return Window(position, eligible, masked, seen.flatten().nonzero().squeeze(1))

    def step_input(self, window: Window, logits: Tensor) -> StepInput:
        """What the strategy sees of the step."""
        return StepInput(
            logits=logits,
            eligible=window.eligible,
            index=window.index,
            position=window.position,
            seed=self.seed,
            step=self.step,
            count=self.counts(),
            num_steps=self.num_steps,
            block_steps=self.block_steps,
            block_step=self.block_step,
            block_length=self.block_length,
            masked=window.masked,
            state=self.state,
        )

    def commit(self, decision: Decision, window: Window) -> None:
        """Write what a step decided, and what the step looked like, into canvas and trace."""
        where = window.where(window.index[decision.picked])
        masked = (self.canvas == self._model.mask_id).sum(dim=1, dtype=torch.int32)
        under_way = masked > 0  # a round of drafts goes on when some rows are full
        now = self.step.clamp(max=self.canvas.shape[1] - 1)[:, None]
        for kept, value in ((self.step_masked, masked), (self.step_block, self.block)):
            value = torch.where(under_way, value.to(kept.dtype), kept.gather(1, now)[:, 0])
            kept.scatter_(1, now, value[:, None])
        if decision.remask is not None:
            self.canvas.masked_fill_(decision.remask, self._model.mask_id)
        self.canvas[where] = decision.token
        self.step_map[where] = self.step[where[0]].to(torch.int32)
        self.rank[where] = decision.rank.to(torch.int16)
        if decision.kind is not None:
            self.kind[where] = decision.kind
        else:
            self.kind[where] = SAMPLED
        self.logp[where] = decision.logp
        self.score[where] = decision.score
        self.state |= decision.state

    def block_is_done(self) -> Tensor:
        """Whether no mask is left up to the end of each row's active block: bool `[slots]`."""
        decoded = torch.arange(self.canvas.shape[1], device=self._device) < self.span()[:, 1:]
        return ~((self.canvas == self._model.mask_id) & decoded).any(dim=1)

    def active(self) -> Tensor:
        """Positions of each row's active block: bool `[slots, completion]`."""
        start, end = self.span().split(1, dim=1)
        position = torch.arange(self.canvas.shape[1], device=self._device)
        return (position >= start) & (position < end)

    def advance(self, block_done: Tensor, moved: Tensor | None = None) -> None:
        """Move rows to their next step, and to their next block where `block_done`.

        Args:
            block_done: bool `[slots]`, True for moved rows only.
            moved: bool `[slots]`: the rows that took a step; None: all.
        """
        self.fresh = []
        step = torch.ones_like(self.step) if moved is None else moved.long()
        self.step += step
        self.block += block_done
        self.block_step = torch.where(block_done, 0, self.block_step + step)

    def fork(self) -> Slots:
        """A copy whose steps leave these rows as they are."""
        other = copy.copy(self)
        other.map_arrays(Tensor.clone)
        return other

    def rows(self, slots: Sequence[int]) -> list[RawRow]:
        """Copies of finished rows on the CPU."""
        where = self._places(slots)
        *names, _, _, _ = (column.name for column in fields(RawRow))
        arrays = [getattr(self, name)[where].cpu().numpy() for name in names]
        numbers = torch.stack([self.step, self.forwards, self.tokens], dim=1)[where].tolist()
        return [RawRow(*(array[i] for array in arrays), *row) for i, row in enumerate(numbers)]

    def sampler(self, slot: int) -> SamplerSpec:
        """The sampler of the row in a slot."""
        return self._samplers[self.tenants[slot]]
