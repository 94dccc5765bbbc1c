"""Dream, SDAR, LLaDA-MoE, LLaDA2 and converted models: decoders that attend both ways.

Layers are those of transformers' Qwen2, Qwen3 and Llama, but for experts and LLaDA2. What surrounds them is
here, because there it is causal, keeps the rotary angles in a buffer that a cast degrades, and freezes the
embedding row of the padding token.
"""

from __future__ import annotations

import importlib
import math
import re
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rl4dlm.models.attention import ATTENTION_NAME, transformers_attention
from rl4dlm.models.base import FamilyModel
from rl4dlm.models.llada import RMSNorm
from rl4dlm.models.llada2 import LLaDA2Layer
from rl4dlm.models.moe import SparseMLP
from rl4dlm.models.network_config import NetworkConfig
from rl4dlm.models.scoring import OutputHead
from rl4dlm.types import KeyValueStore

_LAYERS = {"qwen2": "Qwen2", "qwen3": "Qwen3", "llama": "Llama"}


def inverse_frequencies(config: NetworkConfig) -> tuple[Tensor, float]:
    """Rotary frequencies `theta^(-2j / rotary_dim)`, or what a scaling rule makes of them.

    Returns:
        float32 `[rotary_dim / 2]` on the CPU, radians per position; and the factor on cosines and sines (1
        except under YaRN).
    """
    kind = config.rope["rope_type"]
    if kind == "default":
        size = config.rotary_dim
        exponents = torch.arange(0, size, 2, device="cpu", dtype=torch.float32) / size
        return 1.0 / config.rope["rope_theta"] ** exponents, 1.0
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    frequencies, factor = ROPE_INIT_FUNCTIONS[kind](published_config(config), device="cpu")
    return frequencies.float(), float(factor)


def published_config(config: NetworkConfig) -> Any:
    """transformers' configuration of the same network, with our attention, which reads bool masks."""
    from transformers import AttentionInterface, AutoConfig

    AttentionInterface.register(ATTENTION_NAME, transformers_attention)

    published = AutoConfig.for_model(
        config.backbone,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        rms_norm_eps=config.rms_norm_eps,
        max_position_embeddings=config.max_position_embeddings,
        vocab_size=config.vocab_size,
        attention_bias=config.attention_bias,
        tie_word_embeddings=config.tie_word_embeddings,
        rope_parameters=dict(config.rope),
    )
    published._attn_implementation = ATTENTION_NAME
    return published


def _layers(config: NetworkConfig) -> nn.ModuleList:
    if config.backbone == "llada2":
        return nn.ModuleList(LLaDA2Layer(config, index) for index in range(config.num_hidden_layers))
    module = importlib.import_module(f"transformers.models.{config.backbone}.modeling_{config.backbone}")
    make = getattr(module, f"{_LAYERS[config.backbone]}DecoderLayer")
    published = published_config(config)
    layers = nn.ModuleList(make(published, index) for index in range(config.num_hidden_layers))
    if config.experts is not None:
        for layer in layers:
            layer.mlp = SparseMLP(config.hidden_size, config.experts)
    return layers


class DecoderBackbone(nn.Module):
    """Embedding and layers; the final norm lies in the same published container but runs later."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        self.add_module(config.embedding_name, nn.Embedding(config.vocab_size, config.hidden_size))
        self.layers = _layers(config)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self._rotary_frequencies: tuple[Tensor, float] | None = None

    def forward(
        self, input_ids: Tensor, mask: Tensor | None, positions: Tensor, cache: KeyValueStore | None = None
    ) -> Tensor:
        """The residual stream after the last layer, `[rows, length, hidden]`; see `attention_of`."""
        x = self.embedding()(input_ids)
        rotary = self._rotary(positions, x.dtype)
        recompute = self.recompute and torch.is_grad_enabled()
        for layer in self.layers:
            if recompute:
                x = checkpoint(layer, x, mask, position_embeddings=rotary, use_reentrant=False)
            else:
                x = layer(x, mask, position_embeddings=rotary, past_key_values=cache)
        return x

    def embedding(self) -> nn.Embedding:
        """The matrix over the vocabulary, whatever its published name is."""
        return cast(nn.Embedding, self.get_submodule(self.config.embedding_name))

    def _rotary(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines `[rows or 1, length, rotary_dim]`: float32, then cast (Qwen's dialect)."""
        if self._rotary_frequencies is None:  # at first use: what builds a network may round all it makes
            self._rotary_frequencies = inverse_frequencies(self.config)
        frequencies, factor = self._rotary_frequencies
        if frequencies.device != positions.device:
            frequencies = frequencies.to(positions.device)
            self._rotary_frequencies = (frequencies, factor)
        angles = positions[..., None].float() * frequencies
        angles = torch.cat((angles, angles), dim=-1)
        return (angles.cos() * factor).to(dtype), (angles.sin() * factor).to(dtype)


class Decoder(FamilyModel):
    """A model of one of these families with the call of `rl4dlm.types.Denoiser`."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.model = DecoderBackbone(config)
        self.lm_head: OutputHead | None = OutputHead(config.hidden_size, config.vocab_size)
        self.tie_weights()

    def states(
        self, input_ids: Tensor, mask: Tensor | None, positions: Tensor, cache: KeyValueStore | None
    ) -> Tensor:
        return self.model(input_ids, mask, positions, cache)

    def finish(self, states: Tensor) -> Tensor:
        return self.model.norm(states)

    def head(self) -> OutputHead:
        assert self.lm_head is not None
        return self.lm_head

    def drop_head(self) -> None:
        self.lm_head = None

    def recompute_layers(self, recompute: bool) -> None:
        self.model.recompute = recompute

    def tie_weights(self) -> None:
        if self.config.tie_word_embeddings and self.lm_head is not None:
            self.lm_head.weight = self.model.embedding().weight


@torch.no_grad()
def initialise_decoder(module: Decoder, generator: torch.Generator) -> None:
    """Fill every parameter as `initialise_llada` does: norms 1, biases 0, matrices with variance 1 / inputs,
    outputs of layer l, counted from 1, with variance 1 / (2 l inputs)."""
    for name, parameter in module.named_parameters():
        if parameter.dim() == 1:
            parameter.fill_(0.0 if name.endswith(".bias") else 1.0)
            continue
        variance = 1 / parameter.shape[1]
        output = re.search(r"layers\.(\d+)\..*(o_proj|dense|down_proj)\.weight$", name)
        if output:
            variance /= 2 * (int(output[1]) + 1)
        parameter.normal_(0.0, math.sqrt(variance), generator=generator)
