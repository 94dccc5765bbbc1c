"""The seam for engines of others (SGLang, vLLM and their like).

An external sampler keeps its own copy of the weights and returns token ids; what a trainer needs is built
here. None comes with the package. `rl4dlm.testing.conformance` says whether one may be trusted.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from rl4dlm.decoding import SamplerSpec
from rl4dlm.errors import RecipeError, RolloutError
from rl4dlm.rollout.engine import Engine
from rl4dlm.rollout.finish import Decode, Finisher
from rl4dlm.rollout.graphs import Graphs
from rl4dlm.rollout.journal import RowJournal
from rl4dlm.rollout.request import Request, block_offset, check_room
from rl4dlm.rollout.sampler_checks import check_sampler
from rl4dlm.rollout.slots import RawRow
from rl4dlm.types import SAMPLED, Denoiser, Rollout

BUILTIN = "builtin"


@dataclass(frozen=True)
class Completion:
    """What an external sampler returns for a request. Arrays may end where the text does."""

    token_ids: np.ndarray
    """int `[tokens]`, at most the canvas; whole blocks, so what follows the first stop id in its block is
    included."""
    step_map: np.ndarray
    """int `[tokens]`: the step that committed each token, from 0 without gaps."""
    logp: np.ndarray
    """float `[tokens]`, nats: see `rl4dlm.types.Trace.rollout_logp`."""
    num_forwards: int
    token_forwards: int


class ExternalSampler(Protocol):
    """An engine of others."""

    def load(self, denoiser: Denoiser) -> None:
        """Take over the weights of the model; called before sampling whenever they changed."""
        ...

    def complete(self, requests: Sequence[Request], spec: SamplerSpec) -> Sequence[Completion]:
        """Sample one completion per request, in their order."""
        ...


class SamplingEngine(Protocol):
    """What a rollout worker samples with: ours, or an adapter around one of others."""

    def generate(
        self, requests: Sequence[Request], *, policy_version: int, decode: Decode | None = None
    ) -> list[Rollout]:
        """See `rl4dlm.rollout.Engine.generate`."""
        ...


class Versioned:
    """An external sampler that knows which weights it holds; it outlives the engines made around it."""

    def __init__(self, sampler: ExternalSampler) -> None:
        self._sampler = sampler
        self._version: int | None = None

    def at(self, denoiser: Denoiser, version: int) -> ExternalSampler:
        """The sampler, with the weights of a version."""
        if self._version != version:
            self._sampler.load(denoiser)
            self._version = version
        return self._sampler


class ExternalEngine:
    """An external sampler behind our engine's interface."""

    def __init__(self, sampler: Versioned, denoiser: Denoiser, spec: SamplerSpec) -> None:
        self._sampler, self._denoiser, self._spec = sampler, denoiser, spec

    def generate(
        self, requests: Sequence[Request], *, policy_version: int, decode: Decode | None = None
    ) -> list[Rollout]:
        """Sample one completion per request.

        Raises:
            RecipeError, DataError: as our engine's.
            RolloutError: the sampler's answer cannot be a rollout.
        """
        model, spec = self._denoiser.spec, self._spec
        check_room(requests, spec.gen_len, model)
        check_sampler(spec, model)
        completions = self._sampler.at(self._denoiser, policy_version).complete(requests, spec)
        if len(completions) != len(requests):
            raise RolloutError(f"{len(requests)} completions were asked for, {len(completions)} came back.")
        finisher = Finisher(model, policy_version, decode)
        rollouts = []
        for request, completion in zip(requests, completions, strict=True):
            row = self._row(request, completion)
            rollouts.append(finisher.finish(request, request.sampler(spec), row, RowJournal()))
        return rollouts

    def _row(self, request: Request, completion: Completion) -> RawRow:
        """A completion as the engine's own loop would have left it."""
        for problem in completion_problems(completion, self._spec, self._denoiser.spec.mask_id):
            raise RolloutError(
                f"prompt uid {request.prompt_uid}, sample {request.sample}: the external sampler's "
                f"completion cannot be used: {problem}."
            )
        gen_len, tokens = self._spec.gen_len, len(completion.token_ids)
        steps = int(completion.step_map.max()) + 1
        canvas: np.ndarray = np.full(gen_len, self._denoiser.spec.mask_id, np.int64)
        canvas[:tokens] = completion.token_ids
        sampler = request.sampler(self._spec)
        offset = block_offset(len(request.prompt_ids), self._denoiser.spec, sampler.block_length)
        block: np.ndarray = (np.arange(tokens) + offset) // sampler.block_length
        committed = np.bincount(completion.step_map, minlength=steps)
        return RawRow(
            canvas=canvas,
            step_map=_padded(completion.step_map, gen_len, np.int32),
            rank=_padded(_ranks(completion.step_map), gen_len, np.int16),
            kind=np.full(gen_len, SAMPLED, np.uint8),
            logp=_padded(completion.logp, gen_len, np.float32),
            score=_padded(np.exp(completion.logp), gen_len, np.float32),
            step_block=np.array([block[completion.step_map == s].max() for s in range(steps)], np.int16),
            step_masked=(gen_len - np.concatenate([[0], committed.cumsum()[:-1]])).astype(np.int32),
            num_steps=steps,
            forwards=completion.num_forwards,
            tokens=completion.token_forwards,
        )


def completion_problems(completion: Completion, spec: SamplerSpec, mask_id: int) -> Iterator[str]:
    """Why a completion is none, one sentence each."""
    lengths = {len(completion.token_ids), len(completion.step_map), len(completion.logp)}
    if len(lengths) != 1 or not 0 < max(lengths) <= spec.gen_len:
        yield f"its arrays have lengths {sorted(lengths)}, the canvas {spec.gen_len}"
        return
    if (completion.token_ids == mask_id).any():
        yield "it holds the mask token"
    steps = np.unique(completion.step_map)
    if not np.array_equal(steps, np.arange(len(steps))):
        yield f"its steps are {steps.tolist()[:20]}, not 0, 1, 2, ..."
    if not np.isfinite(completion.logp).all() or (completion.logp > 0).any():
        yield "a log-probability is not a number from -inf to 0"


def _padded(values: np.ndarray, length: int, dtype: type) -> np.ndarray:
    padded: np.ndarray = np.zeros(length, dtype)
    padded[: len(values)] = values
    return padded


def _ranks(step_map: np.ndarray) -> np.ndarray:
    """Order within each step, by position: an external sampler does not say in which order it chose."""
    ranks: np.ndarray = np.zeros(len(step_map), np.int64)
    for step in np.unique(step_map):
        where = np.flatnonzero(step_map == step)
        ranks[where] = np.arange(len(where))
    return ranks


def find_engine(name: str) -> Callable[[], ExternalSampler] | None:
    """The factory that `rollout.engine` names; None for our own engine.

    Args:
        name: `builtin`, or `package.module:function`, a callable without arguments.

    Raises:
        RecipeError: it cannot be imported, or is not callable.
    """
    if name == BUILTIN:
        return None
    module, _, function = name.partition(":")
    try:
        factory: Any = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise RecipeError(
            f"rollout.engine = {name!r} cannot be imported: {error}.\n"
            "Fix: use builtin, or package.module:function of an installed engine."
        ) from error
    if not callable(factory):
        raise RecipeError(f"rollout.engine = {name!r} is not callable.\nFix: name a function.")
    return factory


def sampling_engine(
    sampler: Versioned | None,
    denoiser: Denoiser,
    spec: SamplerSpec,
    slots: int,
    graphs: Graphs | None = None,
) -> SamplingEngine:
    """Our engine, or an external sampler behind its interface."""
    if sampler is None:
        return Engine(denoiser, spec, slots, graphs)
    return ExternalEngine(sampler, denoiser, spec)
