"""States of a completion never show what its sampler could not see: the tail after the last action."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from method_toys import batch_of, estimate, gradient, loss_of, make, states_of
from tiny import all_subsets, enumerate_elbo, tiny_denoiser

from rl4dlm.likelihood.coupled import Strata, plan_coupled
from rl4dlm.likelihood.elbo import ElboSettings, elbo, plan_corruptions
from rl4dlm.likelihood.lab import Completions, Draws, enumerate_subsets
from rl4dlm.likelihood.orders import blockwise_plan, random_order_plan
from rl4dlm.likelihood.plans import CorruptionPlan
from rl4dlm.likelihood.states import unseen_by_sampler
from rl4dlm.trainers.vrpo import Rejected
from rl4dlm.types import TrainBatch

METHODS = {
    "gdpo": {"type": "gdpo", "completion_scope": "until_eos"},
    "gdpo-stratified": {"type": "gdpo", "estimator": "stratified", "num_nodes": 2},
    "gdpo-bernoulli": {"type": "gdpo", "estimator": "double_mc", "count_rule": "bernoulli"},
    "espo": {"type": "espo", "num_masks": 2},
    "vrpo": {"type": "vrpo", "pairs": "online", "num_nodes": 3},
    "unigrpo": {"type": "unigrpo"},
    "coupled_grpo": {"type": "coupled_grpo"},
    "spg": {"type": "spg"},
    "spg-random": {"type": "spg", "mask_scheme": "random"},
    "diffu_grpo": {"type": "diffu_grpo"},
    "wd1": {"type": "wd1"},
}
PROMPT, WRITTEN, CANVAS = [2, 0], [1, 3, 0, 3], 7


def of_canvas(tail: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """One completion with this tail, and its actions."""
    return np.array([[*WRITTEN, *tail]]), np.arange(CANVAS)[None] < len(WRITTEN)


def table_of_the_shorter_completion(denoiser, written=WRITTEN, canvas=CANVAS) -> torch.Tensor:
    """log p(y_i | q, y with S hidden, the rest of the canvas not yet written), `[2^L, L]`."""
    subsets, mask = all_subsets(len(written)), denoiser.spec.mask_id
    shown = torch.where(subsets, mask, torch.tensor(written))
    rest = torch.full((len(subsets), canvas - len(written)), mask)
    ids = torch.cat((torch.tensor(PROMPT).expand(len(subsets), -1), shown, rest), dim=1)
    logits = denoiser.logits(ids, None, torch.ones_like(ids, dtype=torch.bool)).view(*ids.shape, -1)
    logp = logits.log_softmax(-1)[:, len(PROMPT) : len(PROMPT) + len(written)]
    return (
        logp.gather(2, torch.tensor(written).expand(len(subsets), -1)[..., None])[..., 0] * subsets
    ).detach()


def test_what_follows_the_last_action_is_unseen_and_gaps_before_it_are_not():
    actions = torch.tensor([[1, 0, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]]).bool()
    assert unseen_by_sampler(actions).int().tolist() == [[0, 0, 0, 1, 1], [0] * 5, [1] * 5]


def test_the_exact_elbo_is_that_of_the_shorter_completion_with_the_rest_masked():
    denoiser = tiny_denoiser(max_length=12, seed=3)
    ids, action = of_canvas([3, 3, 3])
    prompts = [np.array(PROMPT)]
    exact = enumerate_elbo(table_of_the_shorter_completion(denoiser))
    completions = Completions.of(prompts, ids, action, denoiser.spec, CANVAS)
    assert enumerate_subsets(denoiser, completions, 64).elbo().item() == pytest.approx(exact, abs=1e-9)
    # One state for every count, averaged over many masks.
    many = 3000
    draws = Draws.of(completions, range(many), 1)
    plan = plan_corruptions(draws.seed, draws.loss_mask, 0, ElboSettings("stratified", 4, 1, "round_half"))
    with torch.no_grad():
        values = elbo(denoiser, prompts * many, np.repeat(ids, many, axis=0), plan)
    assert abs(values.mean().item() - exact) < 4 * values.std().item() / many**0.5


def plans(action: np.ndarray) -> dict[str, CorruptionPlan]:
    seed, settings = np.array([5]), ElboSettings("sdmc", 2, 1, "round_half")
    block = torch.arange(CANVAS).div(4, rounding_mode="floor")[None].clamp(max=0)
    return {
        "elbo": plan_corruptions(seed, action, 0, settings),
        "coupled": plan_coupled(seed, action, 0, 2, Strata(seed, np.zeros(1))),
        "random_order": random_order_plan(seed, action, 0, 3),
        "blockwise": blockwise_plan(seed, action, 0, settings, block),
    }


@pytest.mark.parametrize("name", plans(of_canvas([3, 3, 3])[1]))
def test_every_plan_scores_its_states_with_the_rest_masked(name):
    denoiser = tiny_denoiser(max_length=12, seed=3)
    ids, action = of_canvas([0, 1, 2])
    plan = plans(action)[name]
    weight = plan.weight[0] if plan.weight.ndim == 3 else plan.weight[0, :, None]
    code = (plan.is_masked[0, :, :4].long() << torch.arange(4)).sum(-1)
    expected = (weight[..., :4] * table_of_the_shorter_completion(denoiser)[code]).sum()
    assert elbo(denoiser, [np.array(PROMPT)], ids, plan).item() == pytest.approx(expected.item(), abs=1e-9)


def cut(batch: TrainBatch, last: int) -> TrainBatch:
    """As if blocks after position `last` had never been sampled."""
    reached = np.arange(batch.loss_mask.shape[1]) <= last
    record = batch.record
    if isinstance(record, Rejected):
        record = replace(record, mask=record.mask & reached)
    return replace(batch, loss_mask=batch.loss_mask & reached, record=record)


def other_tails(batch: TrainBatch) -> TrainBatch:
    """The same completions with other tokens where no action is."""

    def changed(ids: np.ndarray, actions: np.ndarray) -> np.ndarray:
        assert (~actions).any()
        return np.where(actions, ids, (ids + 1) % 3)

    record = batch.record
    if isinstance(record, Rejected):
        record = replace(record, ids=changed(record.ids, record.mask))
    return replace(batch, completion_ids=changed(batch.completion_ids, batch.loss_mask), record=record)


@pytest.mark.parametrize("last", [3, 2])
@pytest.mark.parametrize("block_length", [None, 2])
@pytest.mark.parametrize("name", METHODS)
def test_estimate_and_gradient_do_not_change_with_the_tokens_of_the_tail(name, block_length, last):
    method = make(block_length=block_length, **{"completion_scope": "until_eos", **METHODS[name]})
    denoiser = tiny_denoiser(block_length=block_length, seed=4)
    batch = cut(batch_of(method), last)
    found = []
    for one in (batch, other_tails(batch)):
        known = estimate(method, tiny_denoiser(block_length=block_length), one, 1)
        loss, _ = loss_of(method, denoiser, one, 1, old=known, ref=known)
        found.append((estimate(method, denoiser, one, 1), gradient(loss, denoiser)))
    (value, slope), (other_value, other_slope) = found
    assert slope.abs().max() > 1e-6
    torch.testing.assert_close(other_value, value, atol=1e-12, rtol=0)
    torch.testing.assert_close(other_slope, slope, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", METHODS)
def test_nothing_of_the_tail_is_scored(name):
    method = make(**{"completion_scope": "until_eos", **METHODS[name]})
    batch = batch_of(method)
    states = states_of(method, batch, range(len(batch)), 0)
    masks = torch.from_numpy(batch.loss_mask)[states.row]
    if isinstance(batch.record, Rejected):
        second = (states.number >= states.number.max() // 2 + 1)[:, None]
        masks = torch.where(second, torch.from_numpy(batch.record.mask)[states.row], masks)
    assert not (states.target & ~masks).any()
    assert states.is_masked[unseen_by_sampler(masks)].all() and unseen_by_sampler(masks).any()
