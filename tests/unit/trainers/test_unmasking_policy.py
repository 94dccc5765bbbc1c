"""Learning Unmasking Policies: the laws of specs/rl-algorithms 12, 30 and 31, and the loss by hand."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_denoiser, tiny_scores

from rl4dlm.decoding import PolicyFeatures, SamplerSpec, register_policy
from rl4dlm.loss.reduce import merge_metrics
from rl4dlm.models import UnmaskNet, UnmaskNetConfig, new_policy, open_policy, save_policy
from rl4dlm.recipe.algorithms import UnmaskingPolicyConfig
from rl4dlm.rollout import Engine, Request
from rl4dlm.trainers import make_method
from rl4dlm.trainers.method import MicroBatch, Setting
from rl4dlm.trainers.passes import estimate_rows, micro_batches, needs_current, step_size
from rl4dlm.trainers.passes import loss as loss_of_rows
from rl4dlm.trainers.prepare import prepare_batch
from rl4dlm.trainers.unmasking_policy import decision_gap, decision_logp
from rl4dlm.types import Denoiser, PolicyActions, Prompt, Rollout, RolloutGroup, TrainBatch

SPEC = SamplerSpec(gen_len=6, block_length=3, steps=6, temperature=0.0, remasking="learned", policy="net")
REWARD = [1.0, 0.0, 0.5, 0.0, 0.0, 0.0, 1.0, 0.25]
WHOLE = 10**6


def network(seed: int = 0, scale: float = 0.1) -> UnmaskNet:
    """A network some updates away from its start."""
    net = new_policy(UnmaskNetConfig(initial_bias=-0.5), 0)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return net


def sample(policy: Any, spec: SamplerSpec = SPEC, number: int = 8) -> list[Rollout]:
    register_policy("net", policy)
    requests = [Request(i // 4, i % 4, 100 + i, (0, 1, 2)) for i in range(number)]
    return Engine(tiny_denoiser(), spec, 8).generate(requests, policy_version=0)


def as_denoiser(policy: Any) -> Denoiser:
    return Denoiser(policy, tiny_denoiser().spec)


def make(sharpness: float = 1.0, **settings: Any) -> Any:
    return make_method(UnmaskingPolicyConfig(**settings), Setting(policy_sharpness=sharpness))


def batch_of(trainer: Any, rollouts: list[Rollout], reward: list[float] = REWARD) -> TrainBatch:
    """Groups of four."""
    groups = [
        RolloutGroup(Prompt(i, "", "", (0, 1, 2)), tuple(rollouts[i : i + 4]))
        for i in range(0, len(rollouts), 4)
    ]
    batch, _ = prepare_batch(trainer, groups, tiny_scores(reward), policy_version=0, seed=1)
    assert batch is not None
    return batch


def step(
    trainer: Any, policy: Any, batch: TrainBatch, *, old: Any = None, budget: int = WHOLE, num_ranks: int = 1
) -> tuple[float, dict[str, torch.Tensor], dict[str, float]]:
    """Loss, gradient and metrics of one optimizer step over all ranks."""
    policy.zero_grad()
    size, total, parts = step_size(trainer, batch, range(len(batch))), 0.0, []
    for rank in range(num_ranks):
        for micro in micro_batches(trainer, batch, range(rank, len(batch), num_ranks), budget):
            assert not needs_current(trainer, micro)
            cached = None
            if old is not None:
                whole = replace_states(trainer, batch, micro)
                with torch.no_grad():
                    cached = estimate_rows(trainer.likelihood, as_denoiser(old), batch, whole, 0)
            loss, metrics = loss_of_rows(
                trainer, as_denoiser(policy), batch, micro, 0, old=cached, ref=None, current=None, step=size
            )
            loss.backward()
            total += loss.item()
            parts.append(metrics)
    return total, {name: p.grad.clone() for name, p in policy.named_parameters()}, merge_metrics(parts)


def replace_states(trainer: Any, batch: TrainBatch, micro: MicroBatch) -> MicroBatch:
    return MicroBatch(micro.rows, tuple(range(int(trainer.likelihood.states.count(batch).max()))), True)


@pytest.mark.parametrize("sharpness", [1.0, 2.5])
def test_the_probabilities_of_all_decisions_sum_to_one_the_empty_one_included(sharpness: float) -> None:
    decided = torch.tensor([[True, True, False, True]])
    total = 0.0
    for drawn in itertools.product([False, True], repeat=3):
        action = torch.tensor([[drawn[0], drawn[1], False, drawn[2]]])
        confidence = torch.tensor([[0.9, 0.2, 0.0, 0.5]])
        given = {"confidence": confidence, "decided": decided, "action": action, "step": torch.tensor([2])}
        total += decision_logp(network(), **given, sharpness=sharpness, device="cpu").exp().item()
    assert total == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("block_length", [6, 3])
def test_a_policy_that_is_certain_of_the_likeliest_position_is_low_confidence_remasking(
    block_length: int,
) -> None:
    def surest(features: PolicyFeatures) -> torch.Tensor:
        best = features.confidence.masked_fill(~features.eligible, -1.0).argmax(1, keepdim=True)
        infinite = torch.full_like(features.confidence, -torch.inf)
        return infinite.scatter(1, best, torch.inf)

    learned = sample(surest, replace(SPEC, block_length=block_length))
    plain = replace(SPEC, block_length=block_length, remasking="low_confidence", policy="")
    for ours, theirs in zip(learned, sample(surest, plain), strict=True):
        assert ours.completion_ids.tolist() == theirs.completion_ids.tolist()
        assert ours.trace.step_map.tolist() == theirs.trace.step_map.tolist()
        assert ours.trace.actions is not None and (ours.trace.actions.logp == 0).all()


def test_the_trainer_replays_what_the_sampler_recorded() -> None:
    net, rollouts = network(), []
    for sharpness in (1.0, 3.0):
        rollouts = sample(net, replace(SPEC, policy_sharpness=sharpness))
        total, number = decision_gap(net, rollouts, sharpness=sharpness, device="cpu")
        assert number == sum(rollout.num_steps for rollout in rollouts) > 8
        assert total / number < 1e-5
    assert decision_gap(net, rollouts, sharpness=1.0, device="cpu")[0] / number > 0.1


def test_the_estimate_of_a_step_stands_in_its_place() -> None:
    net = network()
    rollouts, trainer = sample(net), make()
    batch = batch_of(trainer, rollouts)
    whole = replace_states(trainer, batch, MicroBatch(tuple(range(8)), (), True))
    with torch.no_grad():
        value = estimate_rows(trainer.likelihood, as_denoiser(net), batch, whole, 0)
    assert value.shape == (8, 6)
    for row, rollout in zip(value, rollouts, strict=True):
        assert rollout.trace.actions is not None
        assert row[: rollout.num_steps].tolist() == pytest.approx(rollout.trace.actions.logp, abs=1e-5)
        assert (row[rollout.num_steps :] == 0).all()


class Constant(torch.nn.Module):
    """The same logit everywhere."""

    def __init__(self, logit: float) -> None:
        super().__init__()
        self.logit = torch.nn.Parameter(torch.tensor(logit))

    def forward(self, features: PolicyFeatures) -> torch.Tensor:
        return self.logit.expand(features.confidence.shape)


def by_hand() -> list[Rollout]:
    """Two completions of one group: two steps, which drew {0} of {0, 1, 2} and nothing of {1, 2}; and one
    step, which drew everything."""
    template = sample(Constant(0.0), replace(SPEC, gen_len=3, steps=3), number=4)[:2]
    slow = PolicyActions(
        ptr=np.array([0, 3, 5]),
        pos=np.array([0, 1, 2, 1, 2]),
        confidence=np.full(5, 0.5, dtype=np.float32),
        action=np.array([1, 0, 0, 0, 0], dtype=np.uint8),
        logp=np.zeros(2, dtype=np.float32),
    )
    fast = replace(slow, ptr=np.array([0, 3]), pos=np.arange(3), confidence=slow.confidence[:3])
    fast = replace(fast, action=np.ones(3, dtype=np.uint8), logp=slow.logp[:1])
    return [
        replace(rollout, num_steps=number, trace=replace(rollout.trace, actions=actions))
        for rollout, number, actions in zip(template, (2, 1), (slow, fast), strict=True)
    ]


def hand_batch(trainer: Any) -> TrainBatch:
    """Rewards 1 and 0 and no bonus for speed: advantages 1/2 and -1/2."""
    group = RolloutGroup(Prompt(0, "", "", (0, 1, 2)), tuple(by_hand()))
    batch, metrics = prepare_batch(trainer, [group], tiny_scores([1.0, 0.0]), policy_version=0, seed=1)
    assert batch.advantage.tolist() == [0.5, -0.5] and metrics["reward/with_speed"] == 0.5
    return batch


def test_the_first_gradient_is_the_mean_over_completions_of_the_mean_over_steps() -> None:
    trainer, policy = make(alpha=0.0), Constant(0.0)
    loss, gradient, metrics = step(trainer, policy, hand_batch(trainer))
    # Ratios are 1: loss = -(1/2) (1/2 - 1/2) = 0. At logit 0 a drawn position has slope 1/2, another -1/2:
    # steps -1/2 and -1 of the first, 3/2 of the second. -(1/2) [1/2 (-1/2 - 1)/2 - 1/2 (3/2)] = 9/16.
    assert loss == pytest.approx(0.0, abs=1e-7) and metrics["ratio/mean"] == pytest.approx(1.0)
    assert gradient["logit"].item() == pytest.approx(9 / 16)


def test_ratios_are_clipped_step_by_step() -> None:
    trainer = make(alpha=0.0, epsilon=0.2)
    loss, gradient, metrics = step(trainer, Constant(0.2), hand_batch(trainer), old=Constant(0.0))
    # s = sigmoid(.2) = .549834, against 1/2: ratios 8 s (1-s)^2 = .891392, 4 (1-s)^2 = .810598, 8 s^3 =
    # 1.329797. Advantage 1/2 and ratios inside [.8, 1.2]: not clipped. Advantage -1/2 and a ratio above: the
    # minimum takes the ratio. -(1/2) [ (.891392 + .810598)/2 * 1/2 - 1.329797/2 ] = .119700.
    assert loss == pytest.approx(0.119700, abs=2e-6)
    assert metrics["clip_ratio/region_mean"] == 0
    assert metrics["ratio/max"] == pytest.approx(1.329797, abs=2e-6)
    # At logit -1: s = .268941, ratios 1.149, 2.137 (beyond 1.2: its gain stands still), .155 (below .8 with a
    # negative advantage: likewise). Clipped share: (1/2) (1/2 + 1).
    _, gradient, metrics = step(trainer, Constant(-1.0), hand_batch(trainer), old=Constant(0.0))
    assert metrics["clip_ratio/region_mean"] == pytest.approx(0.75)
    # Left: the first step, ratio r = 8 s (1-s)^2, slope r (1 - 3 s): -(1/2) (1/2) (1/2) r (1 - 3s).
    s = 0.2689414
    assert gradient["logit"].item() == pytest.approx(-(8 * s * (1 - s) ** 2) * (1 - 3 * s) / 8, abs=1e-6)


def test_speed_enters_the_advantage_as_a_factor_of_the_reward() -> None:
    trainer = make(alpha=1.0)
    group = RolloutGroup(Prompt(0, "", "", (0, 1, 2)), tuple(by_hand()))
    batch, metrics = prepare_batch(trainer, [group], tiny_scores([1.0, 1.0]), policy_version=0, seed=1)
    # Canvas 3: two steps leave 1/3, one step 2/3.
    assert batch.advantage.tolist() == pytest.approx([-1 / 6, 1 / 6])
    assert metrics["reward"] == 1.0 and metrics["reward/with_speed"] == pytest.approx(0.5)


@pytest.mark.parametrize("moved", [False, True], ids=["first step", "later step"])
def test_the_update_depends_neither_on_micro_batches_nor_on_ranks(moved: bool) -> None:
    trainer, policy = make(), network(scale=0.12)
    batch = batch_of(trainer, sample(network()))
    old = network() if moved else None
    loss, gradient, metrics = step(trainer, policy, batch, old=old)
    assert max(value.abs().max() for value in gradient.values()) > 1e-3
    for budget, num_ranks in ((1, 1), (13, 1), (WHOLE, 3), (13, 2)):
        other, split, parts = step(trainer, policy, batch, old=old, budget=budget, num_ranks=num_ranks)
        assert other == pytest.approx(loss, abs=1e-6)
        for name, value in gradient.items():
            torch.testing.assert_close(split[name], value, atol=1e-6, rtol=1e-4)
        assert parts == pytest.approx(metrics, abs=1e-5)


def test_gradient_steps_make_the_rewarded_decisions_likelier() -> None:
    trainer, policy = make(), network()
    batch = batch_of(trainer, sample(policy))
    whole = replace_states(trainer, batch, MicroBatch(tuple(range(8)), (), True))

    def gain() -> float:
        with torch.no_grad():
            value = estimate_rows(trainer.likelihood, as_denoiser(policy), batch, whole, 0).sum(1)
            return float((value * torch.tensor(batch.advantage)).sum())

    before, optimizer = gain(), torch.optim.Adam(policy.parameters(), lr=1e-3)
    for _ in range(10):
        step(trainer, policy, batch)
        optimizer.step()
    assert gain() > before + 0.2


def test_a_trained_policy_samples_the_same_from_its_folder(tmp_path: Path) -> None:
    net = network()
    folder = str(save_policy(net, tmp_path / "policy"))
    open_policy(folder)
    for ours, theirs in zip(sample(net), sample(net, replace(SPEC, policy=folder)), strict=True):
        assert ours.completion_ids.tolist() == theirs.completion_ids.tolist()
        assert ours.trace.step_map.tolist() == theirs.trace.step_map.tolist()
