"""A value model: the backbone of a policy with one number per token on top, zero before training."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from rl4dlm.models.base import FamilyModel
from rl4dlm.models.loading import load
from rl4dlm.models.network_config import config_of
from rl4dlm.types import AttentionLayout


class ValueModel(nn.Module):
    """Values of tokens, or of the positions where they will stand, read off the final hidden states.

    Source: TraceRL, arXiv:2509.06949 (a value model of the policy's architecture). Row i is read for token i,
    also where the policy's logits are shifted: it sees all that the row before it does.

    Args:
        backbone: a model of `FAMILIES`; its projection to the vocabulary is removed.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = cast(FamilyModel, backbone)
        self.backbone.drop_head()
        self.config = config_of(backbone)
        weight = next(backbone.parameters())
        self.head = nn.Linear(
            self.config.hidden_size, 1, bias=False, device=weight.device, dtype=weight.dtype
        )
        nn.init.zeros_(self.head.weight)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        select: Tensor | None = None,
        layout: AttentionLayout | None = None,
    ) -> Tensor:
        """Values at the selected positions.

        Args:
            input_ids: int64 `[rows, length]`, the mask token where a position is hidden.
            attention_mask: bool `[rows, length]`, False = padding; None = all real.
            select: bool `[rows, length]`; None = all.
            layout: positions and attention in place of the model's own.

        Returns:
            float32 `[selected]` in row-major order of `select` (`[rows, length]` without it), in units of
            reward.
        """
        hidden = self.backbone.hidden_states(input_ids, attention_mask, layout)
        if select is not None:
            hidden = hidden[select]
        return self.head(hidden).squeeze(-1).float()

    def gradient_checkpointing_enable(self) -> None:
        """Keep only each layer's input for the backward pass and compute the rest again."""
        self.backbone.gradient_checkpointing_enable()

    def gradient_checkpointing_disable(self) -> None:
        self.backbone.gradient_checkpointing_disable()


def load_value_model(
    path: str | Path, *, dtype: torch.dtype = torch.float32, device: str = "cpu", **options: Any
) -> ValueModel:
    """A value model on a copy of a policy's backbone; all values are 0 until it is trained.

    Args:
        path: local folder, or `owner/name` on the hub.
        dtype, device: of all parameters.
        options: other arguments of `load`, such as `options_of` gives.

    Raises:
        ModelError: as `load`.
    """
    return ValueModel(load(path, dtype=dtype, device=device, **options).module)
