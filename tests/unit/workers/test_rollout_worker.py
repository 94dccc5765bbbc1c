"""A rollout worker samples only with the weights it is asked for; no Ray here, the class is plain Python."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from recording import record

from rl4dlm.decoding import SamplerSpec
from rl4dlm.errors import SyncError
from rl4dlm.learner.weight_sync import Manifest, WeightChunk, combined_checksum, pack
from rl4dlm.models import build_char_tokenizer, create, save, trainable_state
from rl4dlm.recipe import Recipe
from rl4dlm.recipe.loader import check
from rl4dlm.recipe.sections import ModelInit
from rl4dlm.rollout import Graphs, Request
from rl4dlm.workers import rollout_worker
from rl4dlm.workers.rollout_worker import _RolloutWorker

INIT = ModelInit(d_model=16, n_layers=1, n_heads=2, mlp_hidden_size=32, max_sequence_length=16)
SPEC = SamplerSpec(gen_len=4, block_length=4, steps=4)
REQUESTS = [Request(prompt_uid, 0, 17 + prompt_uid, (1, 2, 3)) for prompt_uid in range(3)]


@pytest.fixture
def recipe() -> Recipe:
    return check(
        {
            "model": {"init": INIT.model_dump()},
            "data": {"task": {"name": "sort"}},
            "reward": {"functions": ["sort"]},
            "algorithm": {"type": "gdpo"},
            "rollout": {"max_completion_length": 4, "block_length": 4, "diffusion_steps": 4},
        }
    )


@pytest.fixture
def worker(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _RolloutWorker:
    """A worker whose object references are the objects themselves."""
    monkeypatch.setattr(rollout_worker.ray, "get", lambda reference: reference)
    model = create(INIT, build_char_tokenizer("0123456789="), seed=0)
    save(model, tmp_path / "model", model.tokenizer)
    return _RolloutWorker(recipe, str(tmp_path / "model"))


def manifest(
    seed: int, version: int, change: Callable[[list[WeightChunk]], list[WeightChunk]] = list
) -> Manifest:
    """Weights of another random model, in chunks of a few tensors; `change` tampers with them on the way."""
    model = create(INIT, build_char_tokenizer("0123456789="), seed=seed)
    chunks = list(pack(trainable_state(model.module), chunk_bytes=2000))
    assert len(chunks) > 2
    whole = combined_checksum(chunk.checksum for chunk in chunks)
    return Manifest(version, whole, 0, tuple(change(chunks)))


def test_a_worker_that_was_never_synced_does_not_sample(worker: _RolloutWorker) -> None:
    with pytest.raises(SyncError, match="version 0"):
        worker.generate(REQUESTS, SPEC, 0)


def test_a_worker_with_another_version_does_not_sample(worker: _RolloutWorker) -> None:
    worker.sync(manifest(seed=1, version=4))
    with pytest.raises(SyncError, match=r"version 5 .* version 4"):
        worker.generate(REQUESTS, SPEC, 5)


def test_synced_weights_are_those_that_were_published(worker: _RolloutWorker) -> None:
    worker.sync(manifest(seed=1, version=4))
    other = create(INIT, build_char_tokenizer("0123456789="), seed=1).module.state_dict()
    for name, tensor in worker.sampler.module.state_dict().items():
        assert torch.equal(tensor, other[name])
    drawn = worker.generate(REQUESTS, SPEC, 4)
    assert [rollout.policy_version for rollout in drawn] == [4, 4, 4]


def test_recorded_layers_outlive_a_sync_and_read_its_weights(
    worker: _RolloutWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.sampler.graphs = Graphs(record, after=1)
    for version in (1, 2, 3):
        worker.sync(manifest(seed=version, version=version))
        replayed = worker.generate(REQUESTS, SPEC, version)
        with monkeypatch.context() as without:
            without.setattr(worker.sampler, "graphs", None)
            plain = worker.generate(REQUESTS, SPEC, version)
        for one, other in zip(plain, replayed, strict=True):
            np.testing.assert_array_equal(one.completion_ids, other.completion_ids)
            np.testing.assert_allclose(one.trace.rollout_logp, other.trace.rollout_logp, atol=1e-5)
    assert len(worker.sampler.graphs) == 1
    assert worker.sampler.graphs.replays > worker.sampler.graphs.forwards / 2


def test_the_recipe_says_whether_layers_are_recorded(
    recipe: Recipe, worker: _RolloutWorker, tmp_path
) -> None:
    assert worker.sampler.graphs is None
    asked = recipe.model_copy(update={"rollout": recipe.rollout.model_copy(update={"cuda_graphs": True})})
    assert _RolloutWorker(asked, str(tmp_path / "model")).sampler.graphs is not None


def test_a_sync_that_fails_leaves_a_worker_that_does_not_sample(worker: _RolloutWorker) -> None:
    worker.sync(manifest(seed=1, version=4))

    def damage(chunks: list[WeightChunk]) -> list[WeightChunk]:
        data = np.array(chunks[1].data)
        data[3] ^= 1
        return [chunks[0], replace(chunks[1], data=data), *chunks[2:]]

    with pytest.raises(SyncError, match="damaged"):
        worker.sync(manifest(seed=2, version=5, change=damage))
    for version in (4, 5):
        with pytest.raises(SyncError):
            worker.generate(REQUESTS, SPEC, version)


def test_a_missing_chunk_is_noticed(worker: _RolloutWorker) -> None:
    with pytest.raises(SyncError, match="is missing"):
        worker.sync(manifest(seed=2, version=5, change=lambda chunks: chunks[:-1]))


def test_a_chunk_of_other_weights_is_noticed(worker: _RolloutWorker) -> None:
    stranger = list(
        pack(trainable_state(create(INIT, build_char_tokenizer("0123456789="), seed=9).module), 2000)
    )
    with pytest.raises(SyncError, match="checksum differs"):
        worker.sync(manifest(seed=2, version=5, change=lambda chunks: [stranger[0], *chunks[1:]]))
