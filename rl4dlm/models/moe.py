"""Mixtures of experts: LLaDA-MoE and SDAR-30B (softmax router), LLaDA2 (grouped sigmoid router)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rl4dlm.models.base import ExactBuffers


@dataclass(frozen=True)
class ExpertsConfig:
    """Sizes and router of the sparse layers."""

    num_experts: int
    num_chosen: int
    """Experts per token."""
    width: int
    """Of one expert's gated MLP."""
    renormalise: bool
    """Weights of the chosen experts are divided by their sum."""
    shared_width: int = 0
    """Of an expert that every token uses; 0: none."""
    num_dense_layers: int = 0
    """First layers that have a plain MLP instead."""
    num_groups: int = 0
    """Groups that experts are chosen from; 0: the softmax router, which has none and no bias."""
    num_kept_groups: int = 0
    scale: float = 1.0
    """Factor on the weights of the chosen experts."""


class GatedMLP(nn.Module):
    """`down(silu(gate(x)) * up(x))`."""

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, width, bias=False)
        self.up_proj = nn.Linear(hidden_size, width, bias=False)
        self.down_proj = nn.Linear(width, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Router(ExactBuffers):
    """Which experts a token uses, and with what weights; all in float32.

    Source: LLaDA-MoE, arXiv:2509.24389: softmax over all experts, the largest are chosen, not renormalised.
    LLaDA2, arXiv:2512.15745: sigmoid scores; a bias, which steers the choice alone; the best groups by the
    sum of their two best experts; weights renormalised and scaled.
    """

    expert_bias: Tensor
    """`[experts]`; only where experts are in groups."""

    def __init__(self, hidden_size: int, config: ExpertsConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.num_experts, hidden_size))
        if config.num_groups:
            self.register_buffer("expert_bias", torch.zeros(config.num_experts))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`[tokens, hidden]` to weights, float32, and experts, int64, both `[tokens, chosen]`."""
        logits = F.linear(x.float(), self.weight.float())
        config = self.config
        if config.num_groups:
            scores = logits.sigmoid()
            chosen = self._from_best_groups(scores + self.expert_bias).topk(config.num_chosen, dim=-1).indices
        else:
            scores = logits.softmax(dim=-1)
            chosen = scores.topk(config.num_chosen, dim=-1).indices
        weights = scores.gather(-1, chosen)
        if config.renormalise:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
        return weights * config.scale, chosen

    def _from_best_groups(self, scores: Tensor) -> Tensor:
        """Scores with those of all groups but the best at -inf."""
        groups = scores.unflatten(-1, (self.config.num_groups, -1))  # [tokens, groups, experts of a group]
        strength = groups.topk(2, dim=-1).values.sum(dim=-1)
        kept = torch.zeros_like(strength, dtype=torch.bool)
        kept.scatter_(-1, strength.topk(self.config.num_kept_groups, dim=-1).indices, True)
        return groups.masked_fill(~kept[..., None], float("-inf")).flatten(-2)


class SparseMLP(nn.Module):
    """A router and its experts, under the published names.

    Every expert runs in every pass that keeps gradients, with no tokens if need be: under ZeRO all ranks must
    ask for the same weights in the same order.
    """

    def __init__(self, hidden_size: int, config: ExpertsConfig) -> None:
        super().__init__()
        self.gate = Router(hidden_size, config)
        self.experts = nn.ModuleList(GatedMLP(hidden_size, config.width) for _ in range(config.num_experts))
        shared = config.shared_width
        self.shared_experts = GatedMLP(hidden_size, shared) if shared else None

    def forward(self, x: Tensor) -> Tensor:
        """`[rows, length, hidden]` to the same."""
        tokens = x.reshape(-1, x.shape[-1])
        weights, chosen = self.gate(tokens)
        weights = weights.to(x.dtype)
        mixed = torch.zeros_like(tokens)
        for index, expert in enumerate(self.experts):
            token, place = torch.nonzero(chosen == index, as_tuple=True)
            if len(token) or self._must_run(expert):
                mixed = mixed.index_add(0, token, expert(tokens[token]) * weights[token, place, None])
        if self.shared_experts is not None:
            mixed = mixed + self.shared_experts(tokens)
        return mixed.reshape(x.shape)

    @staticmethod
    def _must_run(expert: Any) -> bool:
        """Gradients are kept, or the weights are a partition that all ranks gather together (ZeRO-3)."""
        return torch.is_grad_enabled() or hasattr(expert.gate_proj.weight, "ds_id")
