"""The laws that every method obeys, whatever its likelihood and its loss, tried on a tiny model.

    rl4dlm methods test my_method.py:MyMethod

They are what the machinery relies on: the estimate is linear in what single states say, denominators are
counted over the whole optimizer step, and what decides which rows run is a function of the batch alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rl4dlm.diffusion.seeds import derive_seed
from rl4dlm.likelihood.trajectory import TrajectoryRecord
from rl4dlm.loss.reduce import finish_metrics, merge_metrics
from rl4dlm.recipe.algorithms import GDPOConfig, MethodConfig
from rl4dlm.testing.tiny import tiny_denoiser, tiny_groups, tiny_scores
from rl4dlm.trainers import make_method
from rl4dlm.trainers.method import Likelihood, Method, Metrics, MicroBatch, Setting
from rl4dlm.trainers.passes import estimate_rows, loss, micro_batches, needs_current, step_size
from rl4dlm.trainers.prepare import partial_decodes, prepare_batch
from rl4dlm.trainers.trajectories import trajectory_likelihood
from rl4dlm.types import Denoiser, RolloutGroup, TrainBatch, flatten

REWARD = (1, 0, 0.5, 0, 0, 0, 0, 0, 1, 1, 0, 0.25)  # the second of three groups is all equal
WHOLE = 10**6  # a token budget that everything fits in
_SEED = 5
_CLOSE = 1e-8

Gradient = dict[str, Tensor]


class BrokenLaw(Exception):
    """A method does not do what the machinery relies on; the message says what came out."""


def require(holds: bool, found: str) -> None:
    """
    Raises:
        BrokenLaw: it does not hold.
    """
    if not holds:
        raise BrokenLaw(found)


@dataclass(frozen=True)
class MethodTrial:
    """A method on the tiny model, of full attention or with blocks of some length."""

    config: MethodConfig
    block_length: int | None = None

    def method(self, **changes: object) -> Method[MethodConfig]:
        """The method, with some settings changed."""
        spec = tiny_denoiser(block_length=self.block_length).spec
        config = self.config.model_copy(update=changes)
        return make_method(config, Setting(temperature=1.0, spec=spec, block_length=3))

    def model(self, seed: int = 0) -> Denoiser:
        """The tiny model."""
        return tiny_denoiser(block_length=self.block_length, seed=seed)

    def perturbed(self, seed: int = 0, scale: float = 0.1) -> Denoiser:
        """The tiny model a few updates away."""
        denoiser, generator = self.model(), torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in _module(denoiser).parameters():
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        return denoiser

    def batch(
        self, method: Method[MethodConfig], reward: Sequence[float] = REWARD, *, equal_steps: bool = False
    ) -> TrainBatch | None:
        """The batch of twelve rollouts, as if the tiny model had sampled them.

        Args:
            equal_steps: rewards of partial decodes are all alike, too.
        """
        groups = tiny_groups()
        steps = _step_rewards(method, groups, reward, equal_steps) if method.config.scores_steps else None
        batch, _ = prepare_batch(
            method, groups, tiny_scores(reward), policy_version=3, seed=_SEED, step_rewards=steps
        )
        return None if batch is None else self._recorded(method, batch)

    def _recorded(self, method: Method[MethodConfig], batch: TrainBatch) -> TrainBatch:
        """The sampler recorded its own log-probabilities."""
        if not isinstance(batch.record, TrajectoryRecord):
            return batch
        sampler = trajectory_likelihood(method.setting)
        logp = _estimates(sampler, self.model(), batch, [_all_of(sampler, batch)], 0)
        values = np.stack([logp[row].numpy() for row in range(len(batch))])
        return replace(batch, record=replace(batch.record, rollout_logp=values))


def _step_rewards(
    method: Method[MethodConfig], groups: Sequence[RolloutGroup], reward: Sequence[float], equal: bool
) -> list[np.ndarray]:
    rng, decodes = np.random.default_rng(0), partial_decodes(method, groups)
    if equal:
        return [np.full(len(texts), 0.3, np.float32) for texts in decodes]
    final = [0.5 if np.isnan(value) else value for value in reward]
    return [final[i] * rng.uniform(0.5, 1, len(texts)).astype(np.float32) for i, texts in enumerate(decodes)]


def _module(denoiser: Denoiser) -> torch.nn.Module:
    assert isinstance(denoiser.model, torch.nn.Module)
    return denoiser.model


def _all_of(likelihood: Likelihood, batch: TrainBatch) -> MicroBatch:
    most = int(likelihood.states.count(batch).max())
    return MicroBatch(tuple(range(len(batch))), tuple(range(most)), True)


def _estimates(
    likelihood: Likelihood, model: Denoiser, batch: TrainBatch, work: Sequence[MicroBatch], inner: int
) -> dict[int, Tensor]:
    """By row: estimates without gradient, micro-batches of a row added up."""
    totals: dict[int, Tensor] = {}
    with torch.no_grad():
        for micro in work:
            values = estimate_rows(likelihood, model, batch, micro, inner)
            for row, value in zip(micro.rows, values, strict=True):
                totals[row] = totals[row] + value if row in totals else value
    return totals


def one_step(
    method: Method[MethodConfig],
    denoiser: Denoiser,
    batch: TrainBatch,
    *,
    old: Denoiser | None = None,
    ref: Denoiser | None = None,
    inner: int = 0,
    budget: int = WHOLE,
    num_ranks: int = 1,
) -> tuple[float, Gradient, Metrics]:
    """What ranks do for one optimizer step: loss, gradient and metrics over all of them."""
    _module(denoiser).zero_grad()
    total, parts, size = 0.0, [], step_size(method, batch, range(len(batch)))
    models = {
        "old": old if method.config.needs_old else None,
        "ref": ref if method.config.keeps_reference else None,
        "current": denoiser,
    }
    for rank in range(num_ranks):
        work = micro_batches(method, batch, range(rank, len(batch), num_ranks), budget)
        known = {
            kind: _estimates(method.likelihood, model, batch, work, inner)
            for kind, model in models.items()
            if model is not None
        }
        for micro in work:
            given = {kind: torch.stack([values[row] for row in micro.rows]) for kind, values in known.items()}
            share, metrics = loss(
                method,
                denoiser,
                batch,
                micro,
                inner,
                old=given.get("old"),
                ref=given.get("ref"),
                current=given["current"] if needs_current(method, micro) else None,
                step=size,
            )
            share.backward()
            total += share.item()
            parts.append(metrics)
    gradient = {
        name: p.grad.clone() for name, p in _module(denoiser).named_parameters() if p.grad is not None
    }
    return total, gradient, finish_metrics(merge_metrics(parts))


def _largest(gradient: Gradient) -> float:
    return max((float(value.abs().max()) for value in gradient.values()), default=0.0)


def _apart(left: Gradient, right: Gradient) -> float:
    """The largest difference between two gradients."""
    names = left.keys() | right.keys()
    zero = torch.zeros(())
    return max((float((left.get(n, zero) - right.get(n, zero)).abs().max()) for n in names), default=0.0)


def _same_metrics(left: Metrics, right: Metrics) -> bool:
    return left.keys() == right.keys() and all(abs(left[name] - right[name]) < _CLOSE for name in left)


def an_update_does_not_depend_on_how_the_batch_is_split(trial: MethodTrial) -> None:
    """Loss, gradient and metrics are those of one pass, whatever the token budget and the number of ranks."""
    method, denoiser = trial.method(), trial.perturbed()
    batch = trial.batch(method)
    assert batch is not None
    old, ref = trial.model(), trial.perturbed(1)
    whole = one_step(method, denoiser, batch, inner=2, old=old, ref=ref)
    require(_largest(whole[1]) > 1e-6, "nothing is learnt: the gradient is zero")
    for budget, num_ranks in ((1, 1), (30, 1), (WHOLE, 2), (20, 2), (60, 3)):
        again = one_step(
            method, denoiser, batch, inner=2, budget=budget, num_ranks=num_ranks, old=old, ref=ref
        )
        how = f"with {budget} tokens per pass on {num_ranks} rank(s)"
        require(abs(again[0] - whole[0]) < _CLOSE, f"{how} the loss is {again[0]:.6g}, whole {whole[0]:.6g}")
        apart = _apart(again[1], whole[1])
        require(apart < _CLOSE, f"{how} the gradient differs by {apart:.2g}")
        require(_same_metrics(again[2], whole[2]), f"{how} the metrics are {again[2]}, whole {whole[2]}")


def the_first_ratio_is_one_and_the_first_kl_zero(trial: MethodTrial) -> None:
    """With the weights that drew the rollouts nothing is clipped, with or without cached old values."""
    method = trial.method()
    batch = trial.batch(method)
    assert batch is not None
    cached = one_step(method, trial.model(), batch, old=trial.model(), ref=trial.model())
    for name, expected in {"ratio/max": 1, "ratio/min": 1, "kl": 0, "clip_ratio/region_mean": 0}.items():
        found = cached[2].get(name, expected)
        require(abs(found - expected) < _CLOSE, f"{name} is {found:.6g}, not {expected}")
    fresh = one_step(method, trial.model(), batch, ref=trial.model())
    apart = _apart(cached[1], fresh[1])
    require(apart < _CLOSE, f"without cached old values the gradient differs by {apart:.2g}")


def equal_rewards_give_no_gradient(trial: MethodTrial) -> None:
    """Where all completions are worth the same, nothing is learnt."""
    method = trial.method()
    batch = trial.batch(method, [0.3] * len(REWARD), equal_steps=True)
    if batch is None:
        return  # there was nothing to compare
    _, gradient, _ = one_step(method, trial.model(), batch, old=trial.model(), ref=trial.model())
    require(_largest(gradient) < 1e-12, f"the gradient is {_largest(gradient):.2g}")


def a_shift_of_all_rewards_changes_nothing(trial: MethodTrial) -> None:
    """Rewards are compared, so their zero does not matter."""
    method = trial.method()
    if method.config.scores_steps:
        return  # rewards of partial decodes are not shifted here
    found = []
    for shift in (0, 4):
        batch = trial.batch(method, [value + shift for value in REWARD])
        assert batch is not None
        found.append(one_step(method, trial.perturbed(), batch, old=trial.model(), ref=trial.model()))
    apart = max(abs(found[0][0] - found[1][0]), _apart(found[0][1], found[1][1]))
    require(apart < 1e-6, f"loss or gradient differ by {apart:.2g}")


def a_failed_reward_leaves_the_update(trial: MethodTrial) -> None:
    """A completion without a reward is not learnt from."""
    method = trial.method()
    batch = trial.batch(method, [1, float("nan"), 0, 0.5, *REWARD[4:]])
    failed = flatten(tiny_groups())[1]
    assert batch is not None
    gone = derive_seed(_SEED, "corruption", failed.seed) not in batch.seed
    require(gone, "the completion whose reward failed is in the batch")
    require(len(batch) < len(REWARD), f"the batch has {len(batch)} rows")


def gradient_steps_raise_the_rewarded_completions(trial: MethodTrial) -> None:
    """Ten optimizer steps raise the ELBO of what was rewarded against what was not."""
    method, denoiser = trial.method(num_iterations=10), trial.model()
    probe = replace(trial, config=GDPOConfig(estimator="stratified", num_nodes=5))
    watcher = probe.method()
    batch, every = trial.batch(method), probe.batch(watcher)
    assert batch is not None and every is not None

    def likelihood() -> Tensor:
        values = _estimates(watcher.likelihood, denoiser, every, [_all_of(watcher.likelihood, every)], 0)
        return torch.stack([values[row] for row in range(len(every))])

    before, optimizer = likelihood(), torch.optim.Adam(_module(denoiser).parameters(), lr=0.01)
    for inner in range(10):
        one_step(method, denoiser, batch, old=trial.model(), ref=trial.model(), inner=inner)
        optimizer.step()
    gained = float(((likelihood() - before) * torch.tensor(every.advantage)).sum())
    require(gained > 0.2, f"the sum of advantage times gained ELBO is {gained:.3g} nats, not above 0.2")


LAWS: tuple[Callable[[MethodTrial], None], ...] = (
    an_update_does_not_depend_on_how_the_batch_is_split,
    the_first_ratio_is_one_and_the_first_kl_zero,
    equal_rewards_give_no_gradient,
    a_shift_of_all_rewards_changes_nothing,
    a_failed_reward_leaves_the_update,
    gradient_steps_raise_the_rewarded_completions,
)
"""A law raises `BrokenLaw`; its name and first line say what it asks for. A policy that decides what to
unmask is no likelihood of a language model, and none of them applies to it."""
