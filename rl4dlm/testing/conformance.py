"""The test that an external engine must pass: for greedy decoding its tokens and steps are those of ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from rl4dlm.decoding import SamplerSpec
from rl4dlm.rollout.engine import Engine
from rl4dlm.rollout.external import ExternalEngine, ExternalSampler, Versioned
from rl4dlm.rollout.request import Request
from rl4dlm.types import Denoiser, Rollout


def conformance(
    sampler: ExternalSampler, denoiser: Denoiser, spec: SamplerSpec, requests: Sequence[Request]
) -> list[str]:
    """Where an external sampler differs from our engine, one sentence per difference.

    Args:
        sampler: asked for the same requests.
        denoiser: the model.
        spec: greedy (temperature 0): only then are samples comparable across engines.
        requests: several, of different lengths.

    Returns:
        Nothing when it conforms: tokens up to the end of text and their steps are the same, and
        log-probabilities are within 1e-3 nats.

    Raises:
        ValueError: the sampler is not greedy.
    """
    if spec.temperature != 0:
        raise ValueError(f"temperature = {spec.temperature}: only greedy samples can be compared")
    ours = Engine(denoiser, spec, slots=len(requests)).generate(requests, policy_version=0)
    theirs = ExternalEngine(Versioned(sampler), denoiser, spec).generate(requests, policy_version=0)
    return [text for one, other in zip(ours, theirs, strict=True) for text in _differences(one, other)]


def _differences(ours: Rollout, theirs: Rollout) -> Iterator[str]:
    end, who = ours.completion_len, f"prompt uid {ours.prompt_uid}, sample {ours.sample}"
    if not np.array_equal(ours.completion_ids[:end], theirs.completion_ids[:end]):
        first = int(np.flatnonzero(ours.completion_ids[:end] != theirs.completion_ids[:end])[0])
        yield f"{who}: token {first} is {theirs.completion_ids[first]}, not {ours.completion_ids[first]}"
        return
    if not np.array_equal(ours.trace.step_map[:end], theirs.trace.step_map[:end]):
        yield f"{who}: the same tokens were committed in other steps"
    gap = float(np.abs(ours.trace.rollout_logp[:end] - theirs.trace.rollout_logp[:end]).max())
    if gap > 1e-3:
        yield f"{who}: log-probabilities differ by up to {gap:.3g} nats"
