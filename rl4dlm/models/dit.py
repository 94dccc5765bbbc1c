"""MDLM (arXiv:2406.07524) and BD3-LM (arXiv:2503.09573): the small research models, a DiT over tokens.

Published tensor names; SUBS is what `Denoiser` asks for (the mask has logit -inf, visible tokens are not
scored). The time is not an input, as in the published checkpoints: what modulates the layers is one learned
vector. Not covered: dropout (published training: 0.1).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rl4dlm.models.attention import attend
from rl4dlm.models.base import ExactBuffers, FamilyModel
from rl4dlm.models.llada import rotary_tables, rotate
from rl4dlm.models.network_config import NetworkConfig
from rl4dlm.models.scoring import OutputHead
from rl4dlm.types import KeyValueStore

_TIME_FEATURES = 256
_EPS = 1e-5
_ROPE_THETA = 10000.0


class LayerNorm(nn.Module):
    """In float32, without bias, cast to the dtype of the weight."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        normed = F.layer_norm(x.float(), self.weight.shape, eps=_EPS)
        return (normed * self.weight.float()).to(self.weight.dtype)


class TokenEmbedding(nn.Module):
    """A matrix under its published name `embedding`."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(rows, width))

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.embedding)


class TimeEmbedding(nn.Module):
    """Of time 0, which is all that models without time conditioning are given: `[1, cond]`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(_TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self) -> Tensor:
        weight = next(self.mlp.parameters())
        features = torch.zeros(1, _TIME_FEATURES, device=weight.device, dtype=weight.dtype)
        features[:, : _TIME_FEATURES // 2] = 1.0  # cosines of 0, then sines of 0
        return F.silu(self.mlp(features))


class DiTBlock(nn.Module):
    """Attention and MLP, each after a norm that the condition modulates, if there is one."""

    def __init__(self, config: NetworkConfig, index: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads, self.index = config.num_attention_heads, index
        self.norm1 = LayerNorm(width)
        self.attn_qkv = nn.Linear(width, 3 * width, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.norm2 = LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )
        if config.adaln:
            self.adaLN_modulation = nn.Linear(config.cond_dim, 6 * width)

    def forward(
        self,
        x: Tensor,
        condition: Tensor | None,
        rotary: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: KeyValueStore | None,
    ) -> Tensor:
        """`[rows, length, hidden]` to the same; `condition` is `[1, cond]`."""
        if condition is None:
            x = x + self._attention(self.norm1(x), rotary, mask, cache)
            return x + self.mlp(self.norm2(x))
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(condition).chunk(6, dim=-1)
        x = x + gate1 * self._attention(self.norm1(x) * (1 + scale1) + shift1, rotary, mask, cache)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)

    def _attention(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None, cache: KeyValueStore | None
    ) -> Tensor:
        query, key, value = self.attn_qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = rotate(query, *rotary), rotate(key, *rotary)
        if cache is not None:
            key, value = cache.update(key, value, self.index)
        return self.attn_out(attend(query, key, value, mask))


class FinalLayer(nn.Module):
    """The last norm, modulated, and the projection to the vocabulary."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.norm_final = LayerNorm(config.hidden_size)
        self.linear: OutputHead | None = OutputHead(config.hidden_size, config.vocab_size, bias=True)
        if config.adaln:
            self.adaLN_modulation = nn.Linear(config.cond_dim, 2 * config.hidden_size)

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """What the projection reads."""
        if condition is None:
            return self.norm_final(x)
        shift, scale = self.adaLN_modulation(condition).chunk(2, dim=-1)
        return self.norm_final(x) * (1 + scale) + shift


class _Rotary(ExactBuffers):
    """Holds the frequencies that published files store; angles are computed anew in float32 from theta."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        self.register_buffer("inv_freq", 1.0 / _ROPE_THETA**exponents)


class DiTBackbone(nn.Module):
    """The network under the name that the published wrapper gives it."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        self.vocab_embed = TokenEmbedding(config.vocab_size, config.hidden_size)
        if config.adaln:
            self.sigma_map = TimeEmbedding(config.cond_dim)
        self.rotary_emb = _Rotary(config.head_dim)
        self.blocks = nn.ModuleList(DiTBlock(config, index) for index in range(config.num_hidden_layers))
        self.output_layer = FinalLayer(config)

    def forward(
        self, input_ids: Tensor, mask: Tensor | None, positions: Tensor, cache: KeyValueStore | None
    ) -> Tensor:
        """The residual stream after the last block, `[rows, length, hidden]`."""
        condition = self.condition()
        rotary = rotary_tables(positions, self.config.head_dim, _ROPE_THETA)
        x = self.vocab_embed(input_ids)
        recompute = self.recompute and torch.is_grad_enabled()
        for block in self.blocks:
            if recompute:
                x = checkpoint(block, x, condition, rotary, mask, cache, use_reentrant=False)
            else:
                x = block(x, condition, rotary, mask, cache)
        return x

    def condition(self) -> Tensor | None:
        """The vector that modulates the layers, `[1, cond]`, if the model has one."""
        return self.sigma_map() if self.config.adaln else None


class DiT(FamilyModel):
    """MDLM or BD3-LM with the call of `rl4dlm.types.Denoiser`."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = DiTBackbone(config)
        if config.clipped_schedule is not None:  # stored by the published class, which reads them in training
            self.register_buffer("sampling_eps_min", torch.tensor(config.clipped_schedule[0]))
            self.register_buffer("sampling_eps_max", torch.tensor(config.clipped_schedule[1]))

    def states(
        self, input_ids: Tensor, mask: Tensor | None, positions: Tensor, cache: KeyValueStore | None
    ) -> Tensor:
        return self.backbone(input_ids, mask, positions, cache)

    def finish(self, states: Tensor) -> Tensor:
        return self.backbone.output_layer(states, self.backbone.condition())

    def head(self) -> OutputHead:
        head = self.backbone.output_layer.linear
        assert head is not None
        return head

    def drop_head(self) -> None:
        self.backbone.output_layer.linear = None

    def recompute_layers(self, recompute: bool) -> None:
        self.backbone.recompute = recompute


@torch.no_grad()
def initialise_dit(module: DiT, generator: torch.Generator) -> None:
    """Fill every parameter: norms 1, biases 0, matrices normal with variance 1 / inputs; modulations and the
    projection to the vocabulary 0, as published."""
    for name, parameter in module.named_parameters():
        if parameter.dim() == 1:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        elif "adaLN_modulation" in name or "output_layer.linear" in name:
            parameter.zero_()
        else:
            parameter.normal_(0.0, 1 / math.sqrt(parameter.shape[1]), generator=generator)
