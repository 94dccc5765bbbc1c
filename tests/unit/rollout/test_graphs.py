"""Recorded layers: the samples of the plain engine, whatever batches, weights and stores come and go."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from recording import record, tensors
from test_llada_caches import llada
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rl4dlm.decoding import SamplerSpec
from rl4dlm.diffusion.blocks import WindowLayout
from rl4dlm.models import build_char_tokenizer, create
from rl4dlm.recipe.sections import ModelInit
from rl4dlm.rollout import Engine, Request
from rl4dlm.rollout.graphs import Graphs, round_queries, round_rows
from rl4dlm.rollout.store import Store
from rl4dlm.types import Denoiser, Rollout

CASES = [(4, "none"), (4, "block"), (None, "none"), (None, "prefix"), (None, "dual"), (None, "dkv_decode")]


def some_requests(lengths: tuple[int, ...]) -> list[Request]:
    return [
        Request(i, 0, 50 + i, tuple(1 + (j * 7 + i) % 20 for j in range(length)))
        for i, length in enumerate(lengths)
    ]


RAGGED = (7, 7, 3, 11, 10, 2, 9, 9, 9)


def sample(
    model: Denoiser, graphs: Graphs | None, cache: str, lengths: tuple[int, ...] = RAGGED, **more: Any
):
    settings = {"temperature": 0.8, "eos_policy": "none", "cache": cache} | more
    engine = Engine(model, SamplerSpec(16, 4, 8, **settings), 5, graphs)
    return engine.generate(some_requests(lengths), policy_version=0)


def require_same(some: list[Rollout], others: list[Rollout]) -> None:
    for one, other in zip(some, others, strict=True):
        np.testing.assert_array_equal(one.completion_ids, other.completion_ids)
        np.testing.assert_array_equal(one.trace.step_map, other.trace.step_map)
        np.testing.assert_allclose(one.trace.rollout_logp, other.trace.rollout_logp, atol=1e-6)
        assert (one.num_forwards, one.token_forwards) == (other.num_forwards, other.token_forwards)


@pytest.mark.parametrize("align", [4, 128])
@pytest.mark.parametrize(("block_length", "cache"), CASES)
def test_replayed_layers_change_no_sample(block_length: int | None, cache: str, align: int) -> None:
    model, graphs = llada(block_length, 2), Graphs(record, after=1, align=align)
    for lengths in ((12, 1), RAGGED, (4, 4, 4, 4, 4, 8)):
        require_same(sample(model, graphs, cache, lengths), sample(model, None, cache, lengths))
    assert graphs.replays > (graphs.forwards / 3 if align == 128 else 0)


def test_shared_prompts_and_drafts_are_replayed_too() -> None:
    grouped = [Request(i // 4, i % 4, 9 + i, (3, 1, 4, 1, 5, 9, 2, 6)[: 5 + i // 4]) for i in range(12)]
    for block_length, settings in ((4, {"cache": "block"}), (None, {"draft_steps": 3})):
        model, graphs = llada(block_length, 2), Graphs(record, after=1)
        spec = SamplerSpec(16, 4, 8, temperature=0.8, eos_policy="none", **settings)
        plain = Engine(model, spec, 6).generate(grouped, policy_version=0)
        for _ in range(2):
            require_same(Engine(model, spec, 6, graphs).generate(grouped, policy_version=0), plain)
        assert graphs.replays > graphs.forwards / 3


@pytest.mark.parametrize(("block_length", "cache"), [(4, "block"), (None, "none")])
def test_programs_outlive_a_batch_and_see_new_weights(block_length: int | None, cache: str) -> None:
    model, graphs = llada(block_length, 2), Graphs(record, after=1)
    sample(model, graphs, cache)
    recorded = len(graphs)
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.mul_(1.1)
    before = graphs.replays
    require_same(sample(model, graphs, cache), sample(model, None, cache))
    assert graphs.replays > before
    assert len(graphs) >= recorded > 0


def test_weights_at_another_place_are_recorded_anew() -> None:
    model, graphs = llada(4, 2), Graphs(record, after=1)
    sample(model, graphs, "block")
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.data = parameter.data * 1.1
    require_same(sample(model, graphs, "block"), sample(model, None, "block"))


def test_a_larger_batch_gets_a_larger_store() -> None:
    model, graphs = llada(4, 2), Graphs(record, after=1, align=4)
    for lengths in ((3, 3), RAGGED, (40, 2, 2), (3, 3)):
        require_same(sample(model, graphs, "block", lengths), sample(model, None, "block", lengths))


def test_keys_that_went_bad_leave_no_trace() -> None:
    model, graphs = llada(4, 2), Graphs(record, after=1)
    sample(model, graphs, "block")
    store = graphs._store
    assert store is not None
    with torch.inference_mode():
        for kept in store._tensors():
            kept.fill_(float("nan"))
    require_same(sample(model, graphs, "block"), sample(model, None, "block"))


def test_no_more_programs_are_kept_than_asked_for() -> None:
    model, graphs = llada(4, 2), Graphs(record, after=1, most=2, align=4)
    for _ in range(2):
        require_same(sample(model, graphs, "block"), sample(model, None, "block"))
        assert len(graphs) == 2


def test_a_shape_runs_as_it_is_until_it_has_come_back() -> None:
    calls: list[int] = []

    def states(ids: Tensor, mask: Tensor | None, positions: Tensor, cache: Store | None) -> Tensor:
        calls.append(len(ids))
        return ids[..., None] * 2.0

    graphs, positions = Graphs(record, after=2), torch.arange(4)[None]
    for rows in (3, 3, 4, 3, 4):
        ids = torch.arange(rows * 4).view(rows, 4)
        with torch.inference_mode():
            torch.testing.assert_close(graphs(states, ids, None, positions, None), ids[..., None] * 2.0)
    assert calls == [3, 3, 4]  # the third is the recording of four rows, which serves three as well
    assert (graphs.forwards, graphs.replays) == (5, 3)


def test_other_keys_of_the_same_number_are_another_program() -> None:
    def states(ids: Tensor, mask: Tensor | None, positions: Tensor, cache: Store) -> Tensor:
        new = ids[:, None, :, None].double()
        return cache.update(new, new, 0)[0][:, 0]

    graphs, ids = Graphs(record, after=1), torch.tensor([[5, 6]])
    store, rows = graphs.store(2, 8), torch.tensor([0])
    with torch.inference_mode():
        for start in (0, 0, 0, 4, 4, 4):
            store.aim(rows, torch.tensor([[start, start + 1]]), slice(start, start + 4), are_first=True)
            found = graphs(states, ids, None, ids, store)
            assert found.flatten().tolist() == [5, 6, 0, 0]
    assert (len(graphs), graphs.replays) == (2, 4)


def test_sizes_are_rounded_to_few() -> None:
    assert [round_rows(n) for n in (1, 2, 3, 5, 8, 9, 16, 17, 64)] == [1, 2, 4, 8, 8, 16, 16, 24, 64]
    assert [round_queries(n) for n in (1, 4, 5, 33, 64, 65, 200)] == [1, 4, 8, 64, 64, 128, 256]


@pytest.mark.parametrize("counts", [{"after": 0}, {"most": 0}, {"align": 0}])
def test_counts_must_be_positive(counts: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(counts))):
        Graphs(record, **counts)


class OnTheDevice(TorchDispatchMode):
    """No operation touches the host's memory: a recording cannot wait for it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tensors((args, kwargs, out)):
            assert tensor.device.type == "meta" or tensor.dim() == 0, f"{func} on {tensor.device}"
        return out


FAMILIES = [("llada", None), ("dream", None), ("sdar", 4), ("a2d", None), ("mdlm", None), ("bd3lm", 4)]


@pytest.mark.parametrize(("family", "block_length"), FAMILIES)
def test_layers_stay_on_the_device(family: str, block_length: int | None) -> None:
    """The second forward, whose first has set everything up, on a device that has no values to wait for."""
    init = ModelInit(d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, mlp_hidden_size=48)
    characters = build_char_tokenizer("0123456789=")
    with torch.inference_mode():
        module = create(init, characters, 0, family=family, block_length=block_length).module.to("meta")
        store, ids = Store(3, 12), torch.zeros(3, 4, dtype=torch.int64, device="meta")
        rows, columns = torch.arange(3, device="meta"), torch.arange(4, device="meta").expand(3, 4)
        store.aim(rows, columns, slice(0, 12), are_first=True)
        layout = WindowLayout(columns, torch.ones(3, 4, 12, dtype=torch.bool, device="meta"))
        args = (ids, layout.visible()[:, None], layout.position, store)
        module.states(*args)
        with OnTheDevice():
            assert module.states(*args).device.type == "meta"
