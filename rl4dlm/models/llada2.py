"""Layers of LLaDA2.x (arXiv:2512.15745, 2602.08676): fused projections, part of a head rotated, experts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rl4dlm.models.attention import attend
from rl4dlm.models.llada import RMSNorm
from rl4dlm.models.moe import GatedMLP, SparseMLP
from rl4dlm.models.network_config import NetworkConfig
from rl4dlm.types import KeyValueStore


class LLaDA2Attention(nn.Module):
    """One matrix for queries, keys and values, rows in this order; norms per head before the rotation."""

    def __init__(self, config: NetworkConfig, index: int) -> None:
        super().__init__()
        self.index = index
        self.heads = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
        rows = sum(self.heads) * config.head_dim
        self.query_key_value = nn.Linear(config.hidden_size, rows, bias=False)
        self.query_layernorm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.key_layernorm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.dense = nn.Linear(self.heads[0] * config.head_dim, config.hidden_size, bias=False)

    def forward(
        self, x: Tensor, mask: Tensor | None, rotary: tuple[Tensor, Tensor], cache: KeyValueStore | None
    ) -> Tensor:
        heads = self.query_key_value(x).unflatten(-1, (sum(self.heads), -1)).transpose(1, 2)
        query, key, value = heads.split(self.heads, dim=1)  # [rows, heads, length, head_dim]
        query = _rotate_part(self.query_layernorm(query), *rotary)
        key = _rotate_part(self.key_layernorm(key), *rotary)
        if cache is not None:
            key, value = cache.update(key, value, self.index)
        return self.dense(attend(query, key, value, mask))


def _rotate_part(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first dimensions of each head, as many as the tables have, in the dtype of `x`.

    Args:
        x: `[rows, heads, length, head_dim]`.
        cos, sin: `[rows or 1, length, rotated]`.
    """
    cos, sin = cos[:, None], sin[:, None]
    turned, kept = x.split((cos.shape[-1], x.shape[-1] - cos.shape[-1]), dim=-1)
    first, second = turned.chunk(2, dim=-1)
    return torch.cat((turned * cos + torch.cat((-second, first), dim=-1) * sin, kept), dim=-1)


class LLaDA2Layer(nn.Module):
    """A pre-norm layer, called as transformers' decoder layers are."""

    def __init__(self, config: NetworkConfig, index: int) -> None:
        super().__init__()
        experts = config.experts
        assert experts is not None
        dense = index < experts.num_dense_layers
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = LLaDA2Attention(config, index)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp: nn.Module = (
            GatedMLP(config.hidden_size, config.intermediate_size)
            if dense
            else SparseMLP(config.hidden_size, experts)
        )

    def forward(
        self,
        x: Tensor,
        attention_mask: Tensor | None,
        *,
        position_embeddings: tuple[Tensor, Tensor],
        past_key_values: KeyValueStore | None = None,
    ) -> Tensor:
        normed = self.input_layernorm(x)
        x = x + self.attention(normed, attention_mask, position_embeddings, past_key_values)
        return x + self.mlp(self.post_attention_layernorm(x))
