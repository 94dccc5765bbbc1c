"""The value model's part in an update: values, returns and advantages, then its own optimizer steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rl4dlm.learner.update import RankUpdate, of_all_rows
from rl4dlm.loss.reduce import merge_metrics
from rl4dlm.trainers.method import Metrics
from rl4dlm.trainers.trace_value import TraceValue, judged
from rl4dlm.types import TrainBatch


@dataclass(frozen=True)
class Critic:
    """A rank's value model: it judges and trains on the same rows as the rank's policy."""

    update: RankUpdate
    """Of the value model: its engine, and the method that it learns by."""
    method: TraceValue
    sum_over_ranks: Callable[[Tensor], Tensor]
    """A collective."""

    def run(self, batch: TrainBatch) -> tuple[TrainBatch, Metrics]:
        """Judge a batch, then train on it.

        Returns:
            The batch with the advantages of this rank's tokens, and this rank's share of the metrics.
        """
        values = self.update.estimate(batch)
        credits = {row: self.method.credit(batch, row, found.cpu().numpy()) for row, found in values.items()}
        returns = {row: torch.from_numpy(credit.returns) for row, credit in credits.items()}
        advantage = {row: torch.from_numpy(credit.advantage) for row, credit in credits.items()}
        metrics = self._spread(batch, advantage)
        if self.method.value.whiten_advantages:
            advantage = self._whitened(batch, advantage)
        zeros: np.ndarray = np.zeros(batch.loss_mask.shape, dtype=np.float32)
        known = [of_all_rows(batch, found) for found in (returns, values)]
        trained = self.update.run(judged(batch, *(zeros if found is None else found for found in known)))
        norm = {"value/grad_norm": trained.pop("grad_norm")} if "grad_norm" in trained else {}
        weighed = replace(batch, token_advantage=of_all_rows(batch, advantage))
        return weighed, merge_metrics([trained, norm, metrics])

    def _spread(self, batch: TrainBatch, advantage: dict[int, Tensor]) -> Metrics:
        """Moments of the token advantages, this rank's share."""
        tokens = max(1.0, float(batch.loss_mask.sum()))
        own = self._tokens(batch, advantage)
        return {
            "token_advantage/mean": float(own.sum() / tokens),
            "token_advantage/mean_square": float((own**2).sum() / tokens),
        }

    def _whitened(self, batch: TrainBatch, advantage: dict[int, Tensor]) -> dict[int, Tensor]:
        """Mean 0 and standard deviation 1 over the tokens of all ranks."""
        own = self._tokens(batch, advantage)
        sums = torch.tensor([len(own), own.sum(), (own**2).sum()], dtype=torch.float64)
        count, total, squares = self.sum_over_ranks(sums).tolist()
        mean = total / max(count, 1.0)
        std = max(squares / max(count, 1.0) - mean**2, 0.0) ** 0.5
        actions = {row: torch.from_numpy(batch.loss_mask[row]) for row in advantage}
        return {
            row: torch.where(actions[row], (values - mean) / (std + 1e-8), 0.0)
            for row, values in advantage.items()
        }

    def _tokens(self, batch: TrainBatch, advantage: dict[int, Tensor]) -> np.ndarray:
        """The advantages of this rank's tokens, float64 `[tokens]`."""
        parts = [values.double().numpy()[batch.loss_mask[row]] for row, values in advantage.items()]
        return np.concatenate(parts) if parts else np.zeros(0)
