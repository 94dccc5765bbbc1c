"""The inner update loop of one rank: cached estimates, micro-batches, optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rl4dlm.errors import UpdateError
from rl4dlm.learner.engine import TrainingEngine
from rl4dlm.learner.passes import in_step
from rl4dlm.likelihood.importance import importance_weights
from rl4dlm.likelihood.trajectory import DrawnTokens
from rl4dlm.loss.reduce import merge_metrics
from rl4dlm.recipe.algorithms import Passes
from rl4dlm.trainers.method import Likelihood, Method, Metrics, MicroBatch
from rl4dlm.trainers.passes import estimate_rows, loss, micro_batches, minibatches, needs_current, step_size
from rl4dlm.types import Denoiser, TrainBatch

Estimates = dict[int, Tensor]
"""By row of the batch: a method's estimate, without gradient."""


@dataclass(frozen=True)
class RankUpdate:
    """One rank's part in updating the policy from a batch of rollouts.

    Row r of a batch belongs to rank r mod world_size, so caches stay where they were made. Results are sums
    over this rank's rows, divided by global counts: adding them over ranks gives the value.
    """

    engine: TrainingEngine
    denoiser: Denoiser
    method: Method[Passes]
    rank: int
    world_size: int
    token_budget: int
    num_minibatches: int
    reference: Denoiser | None = None
    """Frozen weights; None with LoRA, where `as_reference` switches the adapters off."""
    as_reference: Callable[[], AbstractContextManager[None]] = nullcontext

    def estimate(self, batch: TrainBatch) -> Estimates:
        """The method's estimates of this rank's rows, pass 0: eval mode, no gradient."""
        return self._estimate(self.denoiser, batch, np.arange(len(batch)), 0)

    def run(self, batch: TrainBatch) -> Metrics:
        """All passes over `batch`.

        Raises:
            UpdateError: a loss or a gradient is not finite.
        """
        facts = self.method.config
        every_row, passes = np.arange(len(batch)), range(facts.num_iterations)
        batch = self._with_importance(batch)
        on_policy = facts.optimizer_steps(self.num_minibatches) == 1
        olds: dict[int, Estimates] = {}
        refs: dict[int, Estimates] = {}
        if facts.needs_old and not on_policy:
            olds = {k: self._estimate(self.denoiser, batch, every_row, k) for k in passes}
        if facts.keeps_reference:
            refs = {k: self._reference_estimate(batch, every_row, k) for k in passes}
        parts = []
        for k in passes:
            for rows in minibatches(batch, k, self.num_minibatches):
                parts.append(self._step(batch, rows, k, olds.get(k), refs.get(k)))
        return average(parts)

    def _with_importance(self, batch: TrainBatch) -> TrainBatch:
        """The batch with importance weights of this rank's rows, where the method wants them."""
        replay, cap = self.method.replay, self.method.config.importance_bound
        if replay is None or cap is None:
            return batch
        now = self._estimate(self.denoiser, batch, np.arange(len(batch)), 0, replay)
        weights = importance_weights(now, batch.recorded(DrawnTokens).rollout_logp, cap=cap)
        return replace(batch, importance=of_all_rows(batch, weights))

    def _step(
        self, batch: TrainBatch, rows: np.ndarray, inner: int, old: Estimates | None, ref: Estimates | None
    ) -> Metrics:
        """One optimizer step on `rows` of all ranks."""
        method, plans = self.method, self._plans(batch, rows, self.method.likelihood)
        if not any(plans):
            return {}
        size = step_size(method, batch, rows)
        current: Estimates | None = None
        if any(needs_current(method, micro) for plan in plans for micro in plan):
            current = self._estimate(self.denoiser, batch, rows, inner)
        self.engine.train()
        parts: list[Metrics] = []
        for micro, real in self._in_step(plans):
            share, part = loss(
                method,
                self.denoiser,
                batch,
                micro,
                inner,
                old=_take(old, micro),
                ref=_take(ref, micro),
                current=_take(current, micro) if needs_current(method, micro) else None,
                step=size,
            )
            self._refuse_non_finite(share, batch, micro)
            # The engine averages gradients over ranks; the loss is already divided by the global count.
            self.engine.backward(share * (float(self.world_size) if real else 0.0))
            if real:
                parts.append(part)
        self.engine.step()
        norm = {"grad_norm": self._grad_norm()} if self.rank == 0 else {}
        return merge_metrics([*parts, norm])

    def _estimate(
        self,
        model: Denoiser,
        batch: TrainBatch,
        rows: np.ndarray,
        inner: int,
        likelihood: Likelihood | None = None,
    ) -> Estimates:
        """Estimates (by default the method's) of this rank's share of `rows`: eval mode, no gradient."""
        asked = likelihood or self.method.likelihood
        plans = self._plans(batch, rows, asked)
        totals: Estimates = {}
        self.engine.eval()
        with torch.no_grad():
            for micro, real in self._in_step(plans):
                values = estimate_rows(asked, model, batch, micro, inner)
                for row, value in zip(micro.rows, values, strict=True) if real else ():
                    totals[row] = totals[row] + value if row in totals else value
        return totals

    def _reference_estimate(self, batch: TrainBatch, rows: np.ndarray, inner: int) -> Estimates:
        with self.as_reference():
            return self._estimate(self.reference or self.denoiser, batch, rows, inner)

    def _plans(self, batch: TrainBatch, rows: np.ndarray, likelihood: Likelihood) -> list[list[MicroBatch]]:
        """The micro-batches of every rank: cheap, and computed alike on all of them."""
        shares = [
            [int(row) for row in rows if row % self.world_size == rank] for rank in range(self.world_size)
        ]
        return [micro_batches(self.method, batch, share, self.token_budget, likelihood) for share in shares]

    def _in_step(self, plans: Sequence[Sequence[MicroBatch]]) -> Iterator[tuple[MicroBatch, bool]]:
        """This rank's micro-batches; a filler is the smallest one's first row."""

        def filler() -> MicroBatch:
            smallest = min((m for plan in plans for m in plan), key=lambda m: len(m.rows) * len(m.states))
            return MicroBatch(smallest.rows[:1], smallest.states, True)

        return in_step(plans, self.rank, filler)

    def _refuse_non_finite(self, loss: Tensor, batch: TrainBatch, micro: MicroBatch) -> None:
        if not torch.isfinite(loss):
            groups = sorted({int(batch.group[row]) for row in micro.rows})
            raise UpdateError(
                f"the loss is {loss.item()} on groups {groups} of the batch that version "
                f"{batch.policy_version} drew.\n"
                "Fix: lower trainer.learning_rate, or look at these groups in the run's rollouts folder."
            )

    def _grad_norm(self) -> float:
        norm = float(self.engine.get_global_grad_norm() or 0.0)
        if not math.isfinite(norm):
            raise UpdateError(f"the gradient norm is {norm}.\nFix: lower trainer.learning_rate.")
        return norm


def _take(values: Estimates | None, micro: MicroBatch) -> Tensor | None:
    """The rows of a micro-batch from a cache; a filler's row may belong to another rank and then counts as
    0."""
    if values is None:
        return None
    known = next(iter(values.values())) if values else torch.zeros(())
    return torch.stack([values.get(row, torch.zeros_like(known)) for row in micro.rows])


def of_all_rows(batch: TrainBatch, values: Estimates) -> np.ndarray | None:
    """Some rows' values as one array of the batch, float32 `[batch, ...]`, zeros in the others; None without
    any.

    Args:
        values: by row, all of one shape.
    """
    if not values:
        return None
    shape = next(iter(values.values())).shape
    array: np.ndarray = np.zeros((len(batch), *shape), dtype=np.float32)
    for row, value in values.items():
        array[row] = value.float().cpu().numpy()
    return array


def average(parts: Sequence[Metrics]) -> Metrics:
    """The metrics of several optimizer steps as one: means, and extremes of extremes."""
    total = merge_metrics(parts)
    taken = sum(1 for part in parts if part)
    return {k: v if k.endswith(("/max", "/min")) else v / taken for k, v in total.items()}
