"""One rank's share of supervised fine-tuning: an optimizer step, and the held-out likelihood."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from rl4dlm.learner.engine import TrainingEngine
from rl4dlm.learner.passes import in_step
from rl4dlm.loss.reduce import merge_metrics
from rl4dlm.trainers.method import Metrics
from rl4dlm.trainers.sft import SFTBatch, padding_tokens, row_nll, sft_loss, sft_micro_batches, shares
from rl4dlm.types import Denoiser


@dataclass(frozen=True)
class RankSFT:
    """One rank's part. Results are sums over its rows, divided by global counts: adding them over ranks gives
    the value."""

    engine: TrainingEngine
    denoiser: Denoiser
    rank: int
    world_size: int
    token_budget: int

    def step(self, batch: SFTBatch) -> Metrics:
        """One optimizer step."""
        self.engine.train()
        parts: list[Metrics] = []
        for rows, real in self._passes(batch):
            loss, part = sft_loss(self.denoiser, batch, rows)
            # The engine averages gradients over ranks; the loss is already divided by the global count.
            self.engine.backward(loss * (float(self.world_size) if real else 0.0))
            if real:
                parts.append(part)
        self.engine.step()
        norm = {"grad_norm": float(self.engine.get_global_grad_norm() or 0.0)} if self.rank == 0 else {}
        return merge_metrics([*parts, norm, self._counts(batch)])

    @torch.no_grad()
    def held_out(self, batch: SFTBatch) -> np.ndarray:
        """What the objective says of each row without learning it (`row_nll`), nats; 0 for rows of other
        ranks. float64 `[rows]`."""
        self.engine.eval()
        nll: np.ndarray = np.zeros(len(batch), dtype=np.float64)
        for rows, real in self._passes(batch):
            values = row_nll(self.denoiser, batch, rows)
            if real:
                nll[rows] = values.double().cpu().numpy()
        return nll

    def _passes(self, batch: SFTBatch) -> Iterator[tuple[list[int], bool]]:
        """This rank's micro-batches; a filler is the shortest row of the batch."""
        return in_step(self._plans(batch), self.rank, lambda: [min(range(len(batch)), key=batch.tokens)])

    def _plans(self, batch: SFTBatch) -> list[list[list[int]]]:
        """The micro-batches of every rank: cheap, and computed alike on all of them."""
        return [sft_micro_batches(batch, rows, self.token_budget) for rows in shares(batch, self.world_size)]

    def _counts(self, batch: SFTBatch) -> Metrics:
        """Tokens that this rank read, with and without padding."""
        mine = self._plans(batch)[self.rank]
        read = sum(batch.tokens(row) for rows in mine for row in rows)
        return {"sft/tokens": float(read), "sft/padding": float(padding_tokens(batch, mine))}
