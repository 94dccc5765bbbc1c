"""From hidden states to what a `Denoiser` returns: float32 logits, or log-probabilities of labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

LOGITS_PER_CHUNK = 1 << 26
"""Float32 logits of one chunk while labels are scored: 256 MiB, and a few times that in its backward pass."""


class OutputHead(nn.Linear):
    """The projection to the vocabulary, with forbidden ids at -inf, and the scoring of labels in row chunks.

    Scoring happens inside this module's forward so that ZeRO-3 gathers the matrix once per pass, however many
    chunks a rank's rows need: gathers per chunk would differ between ranks and deadlock them.
    """

    def __init__(self, hidden_size: int, vocab_rows: int, *, bias: bool = False) -> None:
        super().__init__(hidden_size, vocab_rows, bias=bias)
        self.register_buffer("forbidden_ids", torch.empty(0, dtype=torch.long), persistent=False)

    def forbid(self, ids: Sequence[int]) -> None:
        """Set the ids whose logits are -inf from now on."""
        self.forbidden_ids = torch.tensor(list(ids), dtype=torch.long, device=self.weight.device)

    def forward(self, hidden: Tensor, labels: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        """Logits of `hidden`, or log-probabilities of `labels` under `softmax(logits / temperature)`.

        Args:
            hidden: `[..., hidden]`, any float dtype.
            labels: int64 `[...]`, ids to score; None for logits.
            temperature: positive; applies to labels only.

        Returns:
            float32 `[..., vocab]`, or `[...]` in nats with labels.

        Raises:
            ValueError: `temperature` is not positive while labels are scored.
        """
        if labels is None:
            return self._logits(hidden)
        if not temperature > 0:
            raise ValueError(f"temperature = {temperature} must be positive to score labels")
        chunk_rows = max(1, LOGITS_PER_CHUNK // self.out_features)
        hidden_chunks = hidden.reshape(-1, hidden.shape[-1]).split(chunk_rows)
        label_chunks = labels.reshape(-1).split(chunk_rows)
        scores = [self._score(h, y, temperature) for h, y in zip(hidden_chunks, label_chunks, strict=True)]
        return torch.cat(scores).reshape(labels.shape)

    def _score(self, hidden: Tensor, labels: Tensor, temperature: float) -> Tensor:
        """One chunk; its logits are computed again in the backward pass instead of being kept."""
        if not torch.is_grad_enabled():
            return self._label_logp(hidden, labels, temperature)
        return checkpoint(
            self._label_logp, hidden, labels, temperature, use_reentrant=False, preserve_rng_state=False
        )

    def _label_logp(self, hidden: Tensor, labels: Tensor, temperature: float) -> Tensor:
        logits = self._logits(hidden)
        if temperature != 1.0:
            logits = logits / temperature
        return -F.cross_entropy(logits, labels, reduction="none")

    def _logits(self, hidden: Tensor) -> Tensor:
        """float32 `[..., vocab]`; cast before any softmax: over 100 k bfloat16 entries it is too coarse."""
        logits = F.linear(hidden, self.weight, self.bias).float()
        return logits.index_fill_(-1, self.forbidden_ids, float("-inf"))
