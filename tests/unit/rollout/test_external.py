"""Engines of others: what they return becomes rollouts, and the conformance test tells right from wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rollout_toys import EOS, MASK, block_causal, requests, transformer

from rl4dlm.decoding import SamplerSpec
from rl4dlm.errors import RecipeError, RolloutError
from rl4dlm.rollout import Engine, Request, check_trace
from rl4dlm.rollout.external import (
    BUILTIN,
    Completion,
    ExternalEngine,
    Versioned,
    find_engine,
    sampling_engine,
)
from rl4dlm.testing.conformance import conformance
from rl4dlm.testing.reference_sampler import generate_reference
from rl4dlm.types import EOS_FILLER, Denoiser

SPEC = SamplerSpec(16, 4, 8, temperature=0.0)


class Plain:
    """An external sampler: the plain reference loop, which knows neither slots nor padding."""

    def __init__(self, **damage: Any) -> None:
        self.damage, self.loads = damage, 0

    def load(self, denoiser: Denoiser) -> None:
        self.denoiser, self.loads = denoiser, self.loads + 1

    def complete(self, wanted: Sequence[Request], spec: SamplerSpec) -> list[Completion]:
        made = []
        for rollout in generate_reference(self.denoiser, spec, wanted, policy_version=0):
            kept = rollout.trace.kind != EOS_FILLER
            completion = Completion(
                rollout.completion_ids[kept],
                rollout.trace.step_map[kept],
                rollout.trace.rollout_logp[kept],
                rollout.num_forwards,
                rollout.token_forwards,
            )
            made.append(replace(completion, **{k: f(completion) for k, f in self.damage.items()}))
        return made


@pytest.mark.parametrize("denoiser", [transformer(), block_causal(4)], ids=["full", "block_causal"])
def test_a_right_sampler_conforms_and_its_rollouts_can_be_replayed(denoiser: Denoiser) -> None:
    wanted = requests(6)
    assert conformance(Plain(), denoiser, SPEC, wanted) == []
    ours = Engine(denoiser, SPEC, 3).generate(wanted, policy_version=2)
    theirs = ExternalEngine(Versioned(Plain()), denoiser, SPEC).generate(wanted, policy_version=2)
    for one, other in zip(ours, theirs, strict=True):
        check_trace(other, MASK)
        np.testing.assert_array_equal(one.completion_ids, other.completion_ids)
        np.testing.assert_array_equal(one.trace.step_block, other.trace.step_block)
        np.testing.assert_array_equal(one.trace.step_masked, other.trace.step_masked)
        assert (one.completion_len, one.stop_reason) == (other.completion_len, other.stop_reason)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"token_ids": lambda c: np.where(c.token_ids == EOS, EOS, (c.token_ids + 1) % 10)}, "token 0 is"),
        ({"step_map": lambda c: c.step_map[::-1].copy()}, "committed in other steps"),
        ({"logp": lambda c: c.logp - 0.01}, "differ by up to 0.01 nats"),
    ],
)
def test_a_wrong_sampler_is_told_what_differs(damage: dict, message: str) -> None:
    found = conformance(Plain(**damage), transformer(), replace(SPEC, eos_policy="none"), requests(4))
    assert any(message in text for text in found)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"token_ids": lambda c: np.full_like(c.token_ids, MASK)}, "holds the mask token"),
        ({"step_map": lambda c: c.step_map * 2}, "its steps are"),
        ({"logp": lambda c: c.logp + 9}, "not a number from -inf to 0"),
        ({"logp": lambda c: c.logp[:-1]}, "its arrays have lengths"),
    ],
)
def test_what_cannot_be_a_rollout_is_refused(damage: dict, message: str) -> None:
    with pytest.raises(RolloutError, match=message):
        engine = ExternalEngine(Versioned(Plain(**damage)), transformer(), SPEC)
        engine.generate(requests(2), policy_version=0)


def test_weights_are_loaded_when_the_version_changes() -> None:
    sampler, denoiser = Plain(), transformer()
    held = Versioned(sampler)
    for version in (0, 0, 1):
        sampling_engine(held, denoiser, SPEC, 2).generate(requests(1), policy_version=version)
    assert sampler.loads == 2


def test_only_greedy_samples_are_compared() -> None:
    with pytest.raises(ValueError, match="only greedy"):
        conformance(Plain(), transformer(), replace(SPEC, temperature=1.0), requests(1))


def test_an_engine_is_found_by_its_dotted_name() -> None:
    assert find_engine(BUILTIN) is None
    assert find_engine("collections:OrderedDict") is not None
    for wrong in ("no.such.module:make", "collections:nothing", "collections"):
        with pytest.raises(RecipeError, match="cannot be imported.*\nFix: use builtin"):
            find_engine(wrong)
    with pytest.raises(RecipeError, match="is not callable"):
        find_engine("string:digits")
    denoiser = transformer()
    assert isinstance(sampling_engine(None, denoiser, SPEC, 2), Engine)
    assert isinstance(sampling_engine(Versioned(Plain()), denoiser, SPEC, 2), ExternalEngine)
