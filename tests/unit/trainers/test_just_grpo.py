"""JustGRPO: the chain rule in the order of reading."""

import numpy as np
import pytest
import torch
from method_toys import batch_of, estimate, loss_of, make
from tiny import tiny_denoiser

from rl4dlm.likelihood.states import block_of_positions
from rl4dlm.likelihood.trajectory import TrajectoryRecord
from rl4dlm.types import TrainBatch


def in_order(completions: list[list[int]], prompt: list[int], block_length: int | None = None) -> TrainBatch:
    """Rows written from left to right, one token per step."""
    ids = np.array(completions, dtype=np.int32)
    ones = np.ones(ids.shape, dtype=bool)
    order = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape).copy()
    spec = tiny_denoiser(block_length=block_length).spec
    block = block_of_positions([len(prompt)] * len(ids), ids.shape[1], spec)
    return TrainBatch(
        prompt_ids=tuple(np.array(prompt, dtype=np.int32) for _ in ids),
        completion_ids=ids,
        loss_mask=ones,
        advantage=np.ones(len(ids), dtype=np.float32),
        seed=np.arange(len(ids), dtype=np.int64),
        group=np.zeros(len(ids), dtype=np.int32),
        policy_version=0,
        record=TrajectoryRecord(np.zeros(ids.shape, dtype=np.float32), order, ones, block.numpy()),
    )


@pytest.mark.parametrize("block_length", [None, 2])
def test_the_likelihoods_of_all_sequences_sum_to_one(block_length):
    every = [[a, b, c] for a in range(4) for b in range(4) for c in range(4)]
    trainer = make(block_length, type="just_grpo")
    logp = estimate(
        trainer, tiny_denoiser(block_length=block_length), in_order(every, [1, 2, 0], block_length)
    )
    assert logp.sum(1).exp().sum().item() == pytest.approx(1.0, abs=1e-9)


def test_each_token_is_given_those_before_it():
    denoiser, completion, prompt = tiny_denoiser(), [1, 3, 0], [2, 0]
    logp = estimate(make(type="just_grpo"), denoiser, in_order([completion], prompt))[0]
    for token in range(3):
        ids = torch.tensor([[*prompt, *completion[:token], *[4] * (3 - token)]])
        select = torch.zeros_like(ids, dtype=torch.bool)
        select[0, 2 + token] = True
        expected = denoiser.logits(ids, None, select).log_softmax(-1)[0, completion[token]]
        assert logp[token].item() == pytest.approx(expected.item(), abs=1e-12)


def test_the_loss_is_divided_by_completions_and_canvas():
    trainer = make(type="just_grpo")
    batch = batch_of(trainer)
    loss, _ = loss_of(trainer, tiny_denoiser(), batch)
    expected = -(batch.advantage * batch.loss_mask.sum(1)).sum() / (12 * 5)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_it_is_the_trajectory_of_the_recorded_steps_without_shrinkage():
    trainer = make(type="just_grpo")
    assert trainer.likelihood.states.count(in_order([[0, 1, 2]], [1])).tolist() == [3]
