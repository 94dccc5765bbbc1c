"""Weights survive the trip bit by bit, and anything else is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from rl4dlm.errors import SyncError
from rl4dlm.learner.weight_sync import WeightChunk, combined_checksum, load_into, pack

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool]


def random_state() -> dict[str, torch.Tensor]:
    """Tensors of several dtypes and shapes: a scalar, and one that is not contiguous."""
    generator = torch.Generator().manual_seed(0)
    state = {
        f"layer.{i}.{dtype}": (torch.randn(3, 5, generator=generator) * 50).to(dtype)
        for i, dtype in enumerate(DTYPES)
    }
    state["scalar"] = torch.tensor(7.5, dtype=torch.bfloat16)
    state["transposed"] = torch.randn(4, 6, generator=generator).t()
    state["special"] = torch.tensor([torch.inf, -torch.inf, torch.nan, -0.0, 1e-40])
    return state


def only_chunk(state: dict[str, torch.Tensor]) -> WeightChunk:
    (chunk,) = pack(state)
    return chunk


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("chunk_bytes", [1, 100, 10**9])
def test_weights_arrive_bit_equal_however_they_are_chunked(chunk_bytes: int) -> None:
    state = random_state()
    target = {name: torch.full_like(tensor, 1) for name, tensor in state.items()}
    loaded: set[str] = set()
    for chunk in pack(state, chunk_bytes):
        loaded |= load_into(target, chunk)
    assert loaded == set(state)
    assert all(bits(target[name]) == bits(state[name]) for name in state)


def test_values_are_cast_to_the_workers_dtype() -> None:
    target = {"w": torch.zeros(2, dtype=torch.bfloat16)}
    load_into(target, only_chunk({"w": torch.tensor([1.0, 1.00390625])}))  # 1 + 2^-8: a tie, to even
    assert target["w"].tolist() == [1.0, 1.0] and target["w"].dtype == torch.bfloat16


def test_chunks_are_filled_up_to_the_bound_in_the_order_of_names() -> None:
    # 8 bytes each; a chunk of 20 holds two. The tensor of 40 has one of its own.
    state = {name: torch.zeros(2) for name in "edcba"} | {"c": torch.zeros(10)}
    names = [chunk.names for chunk in pack(state, 20)]
    assert names == [("a", "b"), ("c",), ("d", "e")]
    assert [chunk.data.nbytes for chunk in pack(state, 20)] == [16, 40, 16]
    assert list(pack({}, 20)) == []


def test_the_checksum_does_not_depend_on_the_order_of_the_state_dict() -> None:
    state = random_state()
    backwards = dict(reversed(state.items()))
    assert [c.checksum for c in pack(state, 99)] == [c.checksum for c in pack(backwards, 99)]


def test_one_flipped_bit_is_noticed() -> None:
    chunk = only_chunk({"w": torch.ones(8)})
    data = chunk.data.copy()
    data[13] ^= 1
    target = {"w": torch.zeros(8)}
    with pytest.raises(SyncError, match=r"weights w \.\. w arrived damaged"):
        load_into(target, replace(chunk, data=data))
    assert target["w"].tolist() == [0] * 8


@pytest.mark.parametrize(
    "change", [{"names": ("v",)}, {"shapes": ((4, 2),)}, {"dtypes": ("int32",)}], ids=lambda c: next(iter(c))
)
def test_the_checksum_covers_names_shapes_and_dtypes(change: dict[str, tuple[object, ...]]) -> None:
    chunk = replace(only_chunk({"w": torch.ones(2, 4)}), **change)
    with pytest.raises(SyncError, match="damaged"):
        list(chunk.tensors())


def test_names_that_run_together_differ() -> None:
    one = only_chunk({"a1": torch.zeros(1), "b": torch.zeros(1)})
    other = only_chunk({"a": torch.zeros(1), "b1": torch.zeros(1)})
    assert one.checksum != other.checksum


def test_a_tensor_that_the_worker_lacks_or_has_in_another_shape_is_refused() -> None:
    chunk = only_chunk({"w": torch.ones(2, 3)})
    with pytest.raises(SyncError, match=r"weights for w of shape \(2, 3\) arrived; .* no such tensor"):
        load_into({"v": torch.zeros(2, 3)}, chunk)
    with pytest.raises(SyncError, match=r"of shape \(2, 3\) arrived; the worker has \(3, 2\)"):
        load_into({"w": torch.zeros(3, 2)}, chunk)


def test_weights_may_arrive_in_read_only_memory_and_are_not_shared_with_it() -> None:
    chunk = only_chunk({"w": torch.ones(3)})
    chunk.data.setflags(write=False)
    target = {"w": torch.zeros(3)}
    load_into(target, chunk)
    target["w"] += 1
    assert np.frombuffer(chunk.data, dtype=np.float32).tolist() == [1, 1, 1]


def test_loading_keeps_parameters_and_their_place_in_the_graph() -> None:
    parameter = torch.nn.Parameter(torch.zeros(3))
    address = parameter.data_ptr()
    load_into({"w": parameter}, only_chunk({"w": torch.ones(3)}))
    assert parameter.requires_grad and parameter.data_ptr() == address and parameter.sum() == 3


def test_the_checksum_of_all_chunks_depends_on_their_order() -> None:
    assert combined_checksum(["a", "b"]) != combined_checksum(["b", "a"])
    assert combined_checksum(iter(["a", "b"])) == combined_checksum(["a", "b"])
