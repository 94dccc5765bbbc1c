"""LLaDA (arXiv:2502.09992): a bidirectional transformer that predicts masked tokens, published tensor names.

Numerics follow the OLMo dialect that the published weights were trained with: RMSNorm takes
its statistics in float32 and casts before the weight; rotary angles and the rotation itself are float32,
whatever the parameters' dtype.
"""

from __future__ import annotations

import math
import re
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rl4dlm.models.attention import attend
from rl4dlm.models.base import FamilyModel
from rl4dlm.models.network_config import NetworkConfig
from rl4dlm.models.scoring import OutputHead
from rl4dlm.types import KeyValueStore


class RMSNorm(nn.Module):
    """Root-mean-square normalisation: float32 statistics, cast to the input's dtype, then the weight."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        full = x.float()
        scaled = full * torch.rsqrt(full.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * scaled.to(x.dtype)


def rotary_tables(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles `position * theta^(-2j / head_dim)`.

    Built in every forward pass and never stored, so that casting the module cannot degrade the angles.

    Args:
        positions: int64 `[rows or 1, length]`.
        head_dim: even.

    Returns:
        Two float32 tensors `[rows or 1, 1, length, head_dim]`, the angles once for each half of the head.
    """
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angles = positions[..., None].float() * (1.0 / theta**exponents)  # [rows, length, head_dim / 2]
    angles = torch.cat((angles, angles), dim=-1)[:, None]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate `[rows, heads, length, head_dim]` by the half-split convention, in float32; same dtype out."""
    full = x.float()
    first, second = full.chunk(2, dim=-1)
    return (full * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


class LLaDABlock(nn.Module):
    """One pre-norm layer: bidirectional attention, then a SwiGLU MLP. Module names are the published ones."""

    def __init__(self, config: NetworkConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        width, kv_width = config.hidden_size, config.num_key_value_heads * config.head_dim
        self.num_heads, self.num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.attn_norm = RMSNorm(width, config.rms_norm_eps)
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, kv_width, bias=False)
        self.v_proj = nn.Linear(width, kv_width, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.ff_norm = RMSNorm(width, config.rms_norm_eps)
        self.ff_proj = nn.Linear(width, config.intermediate_size, bias=False)  # the gate
        self.up_proj = nn.Linear(width, config.intermediate_size, bias=False)
        self.ff_out = nn.Linear(config.intermediate_size, width, bias=False)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        key_mask: Tensor | None,
        cache: KeyValueStore | None = None,
    ) -> Tensor:
        """`[rows, length, hidden]` to the same; see `rotary_tables` and `key_mask_and_positions`."""
        x = x + self.attn_out(self._attention(self.attn_norm(x), cos, sin, key_mask, cache))
        normed = self.ff_norm(x)
        return x + self.ff_out(F.silu(self.ff_proj(normed)) * self.up_proj(normed))

    def _attention(
        self, x: Tensor, cos: Tensor, sin: Tensor, key_mask: Tensor | None, cache: KeyValueStore | None
    ) -> Tensor:
        query = rotate(self._heads(self.q_proj(x), self.num_heads), cos, sin)
        key = rotate(self._heads(self.k_proj(x), self.num_kv_heads), cos, sin)
        value = self._heads(self.v_proj(x), self.num_kv_heads)
        if cache is not None:
            key, value = cache.update(key, value, self.layer)
        return attend(query, key, value, key_mask)

    @staticmethod
    def _heads(x: Tensor, num_heads: int) -> Tensor:
        """`[rows, length, heads * head_dim]` to `[rows, heads, length, head_dim]`."""
        return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


class LLaDABackbone(nn.Module):
    """Embedding and blocks. The final norm and the head lie in the same published container but run later."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.hidden_size),
                "blocks": nn.ModuleList(LLaDABlock(config, i) for i in range(config.num_hidden_layers)),
                "ln_f": RMSNorm(config.hidden_size, config.rms_norm_eps),
                "ff_out": OutputHead(config.hidden_size, config.vocab_size),
            }
        )

    def forward(
        self,
        input_ids: Tensor,
        key_mask: Tensor | None,
        positions: Tensor,
        cache: KeyValueStore | None = None,
    ) -> Tensor:
        """The residual stream after the last block, before the final norm: `[rows, length, hidden]`."""
        cos, sin = rotary_tables(positions, self.config.head_dim, self.config.rope["rope_theta"])
        x = self.transformer["wte"](input_ids)
        recompute = self.recompute and torch.is_grad_enabled()
        for block in self.transformer["blocks"].children():
            if recompute:
                x = checkpoint(block, x, cos, sin, key_mask, use_reentrant=False)
            else:
                x = block(x, cos, sin, key_mask, cache)
        return x


class LLaDA(FamilyModel):
    """LLaDA with the call of `rl4dlm.types.Denoiser`: index i scores the token at position i.

    Not covered: dropout (the published value is 0); gradients through a key-value cache.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.model = LLaDABackbone(config)
        self.tie_weights()

    def states(
        self, input_ids: Tensor, mask: Tensor | None, positions: Tensor, cache: KeyValueStore | None
    ) -> Tensor:
        return self.model(input_ids, mask, positions, cache)

    def finish(self, states: Tensor) -> Tensor:
        return self.model.transformer["ln_f"](states)

    def head(self) -> OutputHead:
        return cast(OutputHead, self.model.transformer["ff_out"])

    def drop_head(self) -> None:
        del self.model.transformer["ff_out"]

    def recompute_layers(self, recompute: bool) -> None:
        self.model.recompute = recompute

    def tie_weights(self) -> None:
        if self.config.tie_word_embeddings:
            self.model.transformer["ff_out"].weight = self.model.transformer["wte"].weight


@torch.no_grad()
def initialise_llada(module: LLaDA, generator: torch.Generator) -> None:
    """Fill every parameter: norms 1, matrices normal with variance 1 / inputs, less for residual outputs.

    Source: the initialisation that LLaDA's configuration names, `init_fn = mitchell` (OLMo): outputs of layer
    l, counted from 1, have variance 1 / (2 l inputs). Depends on the generator alone, which is drawn from in
    the order of `named_parameters`.
    """
    for name, parameter in module.named_parameters():
        if parameter.dim() == 1:
            parameter.fill_(1.0)
            continue
        variance = 1 / parameter.shape[1]
        output = re.search(r"blocks\.(\d+)\.(attn_out|ff_out)\.weight$", name)
        if output:
            variance /= 2 * (int(output[1]) + 1)
        parameter.normal_(0.0, math.sqrt(variance), generator=generator)
