"""The rollout engine: requests -> rollouts with traces, by one forward per iteration over all rows under way.

Plain torch, no Ray. Continuous batching: a finished row's slot goes to the next request at once, so rows of
one forward are in different blocks and steps. A rollout is a function of (weights, request, sampler) alone:
how requests are batched, ordered or padded does not enter it (specs: decoding 13.1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rl4dlm.decoding import SamplerSpec, StepInput, decide, ends_row
from rl4dlm.diffusion.blocks import PADDING, BlockLayout
from rl4dlm.errors import RolloutError
from rl4dlm.rollout.finish import Decode, Finisher
from rl4dlm.rollout.journal import Journal
from rl4dlm.rollout.request import Request, check_blocks, check_lengths
from rl4dlm.rollout.slots import Slots, Window
from rl4dlm.types import Denoiser, Rollout


@dataclass(frozen=True)
class StepView:
    """All rows under way just after a step: what `on_step` gets. Fillers are not written yet."""

    requests: tuple[Request, ...]
    """Per row its request; rows move and change hands between steps."""
    canvas: np.ndarray
    """int64 `[rows, completion]`, mask token where nothing is committed."""
    score: np.ndarray
    """float32 `[rows, completion]`: confidence of what is committed, 0 elsewhere."""
    num_steps: np.ndarray
    """int64 `[rows]`: steps that the row has taken."""


OnStep = Callable[[StepView], None]


class Engine:
    """Samples completions with a denoiser; its model must be in evaluation mode (no dropout).

    Example: `Engine(denoiser, spec, slots=64).generate(requests, policy_version=3)`
    """

    def __init__(self, denoiser: Denoiser, spec: SamplerSpec, slots: int) -> None:
        """
        Args:
            denoiser: the model; its logits are asked for at the masked positions of active blocks only.
            spec: the sampler.
            slots: rows that share a forward at most.

        Raises:
            ValueError: `slots` is not positive.
        """
        if slots < 1:
            raise ValueError(f"an engine needs at least one slot, not {slots}")
        self.denoiser, self.spec, self.slots = denoiser, spec, slots

    @torch.inference_mode()
    def generate(
        self,
        requests: Sequence[Request],
        *,
        policy_version: int,
        decode: Decode | None = None,
        on_step: OnStep | None = None,
    ) -> list[Rollout]:
        """Sample one completion per request.

        Args:
            requests: what to sample; served in this order.
            policy_version: the update whose weights the model holds; recorded in every rollout.
            decode: token ids -> text, for `Rollout.text`; None leaves it empty.
            on_step: called after every step with the rows under way, to watch them; costs a copy per step.

        Returns:
            Rollouts in the order of `requests`.

        Raises:
            DataError: a prompt and the canvas are longer than the model's positions.
            RolloutError: logits are not finite; names step and prompt.
        """
        check_lengths(requests, self.spec.gen_len, self.denoiser.spec)
        for sampler in {request.sampler(self.spec) for request in requests}:
            check_blocks(sampler, self.denoiser.spec)
        if not requests:
            return []
        model, device = self.denoiser.spec, self.denoiser.device
        slots = Slots(requests, self.slots, self.spec, model, device)
        journal = Journal(self.spec, model.mask_id, len(slots))
        stop_ids = torch.tensor(model.stop_ids, dtype=torch.int64, device=device)
        finisher = Finisher(model, policy_version, decode)
        rollouts: dict[int, Rollout] = {}
        waiting = range(len(slots), len(requests))
        while len(slots):
            finished = self._step(slots, journal, stop_ids, requests, policy_version)
            if on_step is not None:
                on_step(_view(slots, requests))
            if finished:
                for slot, row in zip(finished, slots.rows(finished), strict=True):
                    index = slots.tenants[slot]
                    rollouts[index] = finisher.finish(
                        requests[index], slots.sampler(slot), row, journal.rows[slot]
                    )
                waiting = _refill(slots, journal, finished, waiting, requests)
        return [rollouts[index] for index in range(len(requests))]

    def _step(
        self,
        slots: Slots,
        journal: Journal,
        stop_ids: Tensor,
        requests: Sequence[Request],
        policy_version: int,
    ) -> list[int]:
        """One forward and one state change of every row; the slots that finished."""
        window = slots.window()
        step = StepInput(
            logits=self._logits(slots, window),  # [seen, vocab]
            eligible=window.eligible,
            index=window.index,
            position=window.position,
            seed=slots.seed,
            step=slots.step,
            count=slots.counts(),
            block_steps=slots.block_steps,
            state=slots.state,
        )
        decision = decide(self.spec, step)
        journal.write(step, decision, window)
        slots.commit(decision, window)

        block_done = slots.block_is_done()
        stops = torch.isin(slots.canvas, stop_ids) & slots.decoded()
        finished = block_done & ends_row(slots.block == slots.last_block, stops, self.spec.eos_policy)
        broken = ~slots.logp.isfinite().all(dim=1)
        slots.advance(block_done)
        # The one wait for the device that an iteration needs beside those of boolean indexing.
        ended, failed = torch.stack([finished, broken]).tolist()
        if any(failed):
            raise _not_finite(slots, failed.index(True), requests, policy_version)
        return [slot for slot, end in enumerate(ended) if end]

    def _logits(self, slots: Slots, window: Window) -> Tensor:
        """Logits at the seen positions only, `[seen, vocab]`."""
        input_ids, attention_mask = slots.model_input()
        select = torch.zeros_like(input_ids, dtype=torch.bool)
        row, position = window.where(window.index)
        select[row, position + (input_ids.shape[1] - self.spec.gen_len)] = True
        if self._enlarges(slots):
            real = torch.ones_like(select) if attention_mask is None else attention_mask
            return self.denoiser.logits(input_ids, None, select, _enlarged_layout(real, slots.block_length))
        return self.denoiser.logits(input_ids, attention_mask, select)

    def _enlarges(self, slots: Slots) -> bool:
        """Whether some row decodes longer blocks than the block-causal model was made for."""
        model = self.denoiser.spec
        if model.attention == "full":
            return False
        return any(slots.sampler(slot).block_length != model.block_length for slot in range(len(slots)))


def _enlarged_layout(real: Tensor, block_length: Tensor) -> BlockLayout:
    """Block-causal attention in blocks of each row's own length, from its first real token on."""
    position = (real.long().cumsum(dim=1) - 1).clamp_min(0)
    segment = torch.where(real, 0, PADDING)
    return BlockLayout(position, position // block_length[:, None], torch.zeros_like(real), segment)


def _refill(
    slots: Slots, journal: Journal, finished: list[int], waiting: range, requests: Sequence[Request]
) -> range:
    """Give finished slots to the next requests, drop idle ones; returns the requests that still wait."""
    served, waiting = waiting[: len(finished)], waiting[len(finished) :]
    if served:
        slots.admit(finished[: len(served)], served, requests)
        journal.admit(finished[: len(served)])
    if len(served) < len(finished):
        idle = set(finished[len(served) :])
        kept = [slot for slot in range(len(slots)) if slot not in idle]
        slots.keep(kept)
        journal.keep(kept)
    return waiting


def _not_finite(slots: Slots, slot: int, requests: Sequence[Request], policy_version: int) -> RolloutError:
    """The error for a row whose logits held NaN or infinity."""
    request, step = requests[slots.tenants[slot]], int(slots.step[slot]) - 1
    return RolloutError(
        f"prompt uid {request.prompt_uid}, sample {request.sample}, step {step}: the model's logits are not "
        f"finite (policy version {policy_version}).\nFix: the weights have probably diverged; go back to the "
        "last good checkpoint and lower trainer.learning_rate."
    )


def _view(slots: Slots, requests: Sequence[Request]) -> StepView:
    """A copy of what an onlooker may see."""
    return StepView(
        requests=tuple(requests[index] for index in slots.tenants),
        canvas=slots.canvas.cpu().numpy().copy(),
        score=slots.score.cpu().numpy().copy(),
        num_steps=slots.step.cpu().numpy().copy(),
    )
