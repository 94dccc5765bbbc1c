"""On a CUDA device: every sampler and cache runs, repeats itself, and agrees with the CPU where it must."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rl4dlm.decoding import STRATEGIES, SamplerSpec, register_policy
from rl4dlm.models import build_char_tokenizer, create, denoiser
from rl4dlm.recipe.sections import ModelInit
from rl4dlm.rollout import CACHES, Engine, Graphs, Request, check_trace
from rl4dlm.types import Denoiser, Rollout

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


INIT = ModelInit(d_model=64, n_layers=2, n_heads=4, mlp_hidden_size=128, max_sequence_length=64)


def model(device: str) -> Denoiser:
    loaded = create(INIT, build_char_tokenizer("0123456789="), seed=1)
    return denoiser(loaded, model=loaded.module.to(device), device=device)


def sample(device: str, **settings: Any) -> list[Rollout]:
    spec = SamplerSpec(**({"gen_len": 16, "block_length": 8, "steps": 8} | settings))
    wanted = [Request(i, 0, 7 + i, (1, 2, 3)[: 1 + i % 3]) for i in range(9)]
    return Engine(model(device), spec, 4).generate(wanted, policy_version=0)


@pytest.mark.parametrize("remasking", sorted(STRATEGIES))
def test_every_sampler_runs_and_repeats_itself(remasking: str) -> None:
    register_policy("surest", lambda features: 8 * features.confidence - 2)
    settings = {"remasking": remasking, "policy": "surest" if remasking == "learned" else ""}
    first, again = sample("cuda", **settings), sample("cuda", **settings)
    for one, other in zip(first, again, strict=True):
        check_trace(one, model("cpu").spec.mask_id)
        np.testing.assert_array_equal(one.completion_ids, other.completion_ids)


@pytest.mark.parametrize("cache", [name for name, plan in CACHES.items() if plan.attention == "full"])
def test_every_cache_for_full_attention_runs(cache: str) -> None:
    for rollout in sample("cuda", cache=cache, remasking="random"):
        check_trace(rollout, model("cpu").spec.mask_id)


def test_greedy_tokens_are_those_of_the_cpu() -> None:
    pairs = list(zip(sample("cuda", temperature=0.0), sample("cpu", temperature=0.0), strict=True))
    same = [np.array_equal(one.completion_ids, other.completion_ids) for one, other in pairs]
    assert np.mean(same) > 0.8  # a near tie may fall the other way


def test_drafts_and_a_cache_that_is_always_refreshed_change_no_token() -> None:
    plain = sample("cuda", temperature=0.0)
    for changes in ({"draft_steps": 4}, {"cache": "dual", "cache_refresh": 1}):
        other = sample("cuda", temperature=0.0, **changes)
        same = [np.array_equal(a.completion_ids, b.completion_ids) for a, b in zip(plain, other, strict=True)]
        assert np.mean(same) > 0.8


@pytest.mark.parametrize(("family", "block_length"), [("llada", None), ("sdar", 8), ("dream", None)])
@pytest.mark.parametrize("cached", [False, True])
def test_cuda_graphs_replay_what_the_kernels_do(family: str, block_length: int | None, cached: bool) -> None:
    loaded = create(INIT, build_char_tokenizer("0123456789="), 1, family=family, block_length=block_length)
    denoised = denoiser(loaded, model=loaded.module.to("cuda"), device="cuda")
    cache = ("block" if block_length else "dual") if cached else "none"
    spec, graphs = SamplerSpec(16, 8, 8, temperature=0.0, eos_policy="none", cache=cache), Graphs(after=1)
    wanted = [Request(i, 0, 7 + i, (1, 2, 3)[: 1 + i % 3]) for i in range(9)]
    for _ in range(2):
        plain = Engine(denoised, spec, 4).generate(wanted, policy_version=0)
        replayed = Engine(denoised, spec, 4, graphs).generate(wanted, policy_version=0)
        same = 0
        for one, other in zip(plain, replayed, strict=True):
            if np.array_equal(one.trace.step_map, other.trace.step_map):
                same += np.array_equal(one.completion_ids, other.completion_ids)
                np.testing.assert_allclose(one.trace.rollout_logp, other.trace.rollout_logp, atol=1e-3)
        assert same > 7  # of 9: a near tie may fall the other way
        with torch.no_grad():  # as a sync does: replays read the new weights
            for parameter in loaded.module.parameters():
                parameter.mul_(1.05)
    assert graphs.replays > graphs.forwards / 3
