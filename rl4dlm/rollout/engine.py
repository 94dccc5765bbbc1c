"""The rollout engine: requests -> rollouts with traces, by one forward per iteration over all rows under way.

Plain torch, no Ray. Continuous batching: a finished row's slot goes to the next request at once, so rows of
one forward are in different blocks and steps. A rollout is a function of (weights, request, sampler) alone:
how requests are batched, ordered or padded does not enter it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from rl4dlm.decoding import SamplerSpec
from rl4dlm.errors import RolloutError
from rl4dlm.rollout.finish import Decode, Finisher
from rl4dlm.rollout.graphs import Graphs
from rl4dlm.rollout.journal import Journal
from rl4dlm.rollout.request import Request, check_room
from rl4dlm.rollout.sampler_checks import check_sampler
from rl4dlm.rollout.slots import Slots
from rl4dlm.rollout.steps import Stepper, make_stepper
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
    logp: np.ndarray
    """float32 `[rows, completion]`, nats: log-probability of what is committed, 0 elsewhere."""
    num_steps: np.ndarray
    """int64 `[rows]`: steps that the row has taken."""


OnStep = Callable[[StepView], None]


class Engine:
    """Samples completions with a denoiser; its model must be in evaluation mode (no dropout).

    Example: `Engine(denoiser, spec, slots=64).generate(requests, policy_version=3)`
    """

    def __init__(
        self, denoiser: Denoiser, spec: SamplerSpec, slots: int, graphs: Graphs | None = None
    ) -> None:
        """
        Args:
            denoiser: the model; its logits are asked for at the masked positions of active blocks only.
            spec: the sampler.
            slots: rows that share a forward at most.
            graphs: record the layers and replay them, for a model on a GPU whose kernels do not depend on the
                tokens; to be handed to every engine around the same model.

        Raises:
            ValueError: `slots` is not positive.
        """
        if slots < 1:
            raise ValueError(f"an engine needs at least one slot, not {slots}")
        self.spec, self.slots, self._graphs = spec, slots, graphs
        self.denoiser = denoiser if graphs is None else replace(denoiser, run=graphs)

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
            requests: what to sample; served by length of the prompt, the longest first, so that rows under
                way are padded little.
            policy_version: the update whose weights the model holds; recorded in every rollout.
            decode: token ids -> text, for `Rollout.text`; None leaves it empty.
            on_step: called after every step with the rows under way, to watch them; costs a copy per step.

        Returns:
            Rollouts in the order of `requests`.

        Raises:
            DataError: a prompt and the canvas are longer than the model's positions.
            RolloutError: logits are not finite; names step and prompt.
        """
        check_room(requests, self.spec.gen_len, self.denoiser.spec)
        for sampler in {request.sampler(self.spec) for request in requests}:
            check_sampler(sampler, self.denoiser.spec)
        if not requests:
            return []
        model = self.denoiser.spec
        order = sorted(range(len(requests)), key=lambda i: -len(requests[i].prompt_ids))
        served = [requests[i] for i in order]
        if self._graphs is not None:
            self._graphs.begin(self.denoiser.model)
        align = 1 if self._graphs is None else self._graphs.align
        slots = Slots(served, self.slots, self.spec, model, self.denoiser.device, align)
        journal = Journal(self.spec, model.mask_id, len(slots))
        stepper = make_stepper(self.denoiser, self.spec, slots, self._graphs)
        finisher = Finisher(model, policy_version, decode)
        rollouts: dict[int, Rollout] = {}
        waiting = range(len(slots), len(requests))
        while len(slots):
            finished = _iterate(stepper, slots, journal, policy_version)
            if on_step is not None:
                on_step(_view(slots))
            if finished:
                for slot, row in zip(finished, slots.rows(finished), strict=True):
                    index = slots.tenants[slot]
                    rollouts[order[index]] = finisher.finish(
                        served[index], slots.sampler(slot), row, journal.rows[slot]
                    )
                waiting = _refill(slots, stepper, journal, finished, waiting)
        return [rollouts[index] for index in range(len(requests))]


def _iterate(stepper: Stepper, slots: Slots, journal: Journal, policy_version: int) -> list[int]:
    """One iteration of all rows; the slots that finished."""
    finished = stepper.take(slots, journal)
    broken = ~slots.logp.isfinite().all(dim=1)
    # The one wait for the device that an iteration needs beside those of boolean indexing.
    ended, failed = torch.stack([finished, broken]).tolist()
    if any(failed):
        raise _not_finite(slots, failed.index(True), policy_version)
    return [slot for slot, end in enumerate(ended) if end]


def _refill(slots: Slots, stepper: Stepper, journal: Journal, finished: list[int], waiting: range) -> range:
    """Give finished slots to the next requests, drop idle ones; returns the requests that still wait."""
    served, waiting = waiting[: len(finished)], waiting[len(finished) :]
    if served:
        slots.admit(finished[: len(served)], served)
        journal.admit(finished[: len(served)])
        stepper.admit(finished[: len(served)])
    if len(served) < len(finished):
        idle = set(finished[len(served) :])
        kept = [slot for slot in range(len(slots)) if slot not in idle]
        slots.keep(kept)
        journal.keep(kept)
        stepper.keep(kept)
    return waiting


def _not_finite(slots: Slots, slot: int, policy_version: int) -> RolloutError:
    """The error for a row whose logits held NaN or infinity."""
    request, step = slots.requests[slots.tenants[slot]], int(slots.step[slot]) - 1
    return RolloutError(
        f"prompt uid {request.prompt_uid}, sample {request.sample}, step {step}: the model's logits are not "
        f"finite (policy version {policy_version}).\nFix: the weights have probably diverged; go back to the "
        "last good checkpoint and lower trainer.learning_rate."
    )


def _view(slots: Slots) -> StepView:
    """A copy of what an onlooker may see."""
    return StepView(
        requests=tuple(slots.requests[index] for index in slots.tenants),
        canvas=slots.canvas.cpu().numpy().copy(),
        score=slots.score.cpu().numpy().copy(),
        logp=slots.logp.cpu().numpy().copy(),
        num_steps=slots.step.cpu().numpy().copy(),
    )
