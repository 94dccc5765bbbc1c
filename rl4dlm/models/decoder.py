"""Dream, SDAR and converted models: the layers of transformers' Qwen2, Qwen3 or Llama, attending both ways.

Only the layers are transformers'. Embedding, final norm, rotary angles, masks and head are here, because what
surrounds them there is causal, keeps the angles in a buffer that a cast degrades, and freezes the embedding
row of the padding token (specs: models 2, 5.2).
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rl4dlm.diffusion.blocks import sequence_layout
from rl4dlm.models.decoder_config import DecoderConfig
from rl4dlm.models.llada import RMSNorm, key_mask_and_positions
from rl4dlm.models.scoring import OutputHead
from rl4dlm.types import AttentionLayout

_LAYERS = {"qwen2": "Qwen2", "qwen3": "Qwen3", "llama": "Llama"}


def attention_of(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    layout: AttentionLayout | None,
    block_length: int | None,
) -> tuple[Tensor | None, Tensor]:
    """What attention may look at, and where tokens stand.

    Args:
        input_ids: int64 `[rows, length]`.
        attention_mask: bool `[rows, length]`, False = padding; None = all real.
        layout: in place of the model's own attention.
        block_length: of a block-causal model, whose blocks begin at the first real token.

    Returns:
        bool, broadcastable to `[rows, 1, queries, keys]`, True = may attend, or None where all may; and
        positions, int64 `[rows or 1, queries]`.
    """
    if layout is not None:
        return layout.visible()[:, None], layout.position
    mask, positions = key_mask_and_positions(input_ids, attention_mask)
    if block_length is None:
        return mask, positions
    real = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask
    layout = sequence_layout(real, block_length)
    return layout.visible()[:, None], layout.position


def inverse_frequencies(config: DecoderConfig) -> tuple[Tensor, float]:
    """Rotary frequencies `theta^(-2j / head_dim)`, or what a scaling rule makes of them.

    Returns:
        float32 `[head_dim / 2]` on the CPU, radians per position; and the factor on cosines and sines (1
        except under YaRN).
    """
    kind = config.rope["rope_type"]
    if kind == "default":
        exponents = torch.arange(0, config.head_dim, 2, device="cpu", dtype=torch.float32) / config.head_dim
        return 1.0 / config.rope["rope_theta"] ** exponents, 1.0
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    frequencies, factor = ROPE_INIT_FUNCTIONS[kind](published_config(config), device="cpu")
    return frequencies.float(), float(factor)


def published_config(config: DecoderConfig) -> Any:
    """transformers' configuration of the same network, attention by SDPA, which reads bool masks."""
    from transformers import AutoConfig

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
    published._attn_implementation = "sdpa"
    return published


def _layers(config: DecoderConfig) -> nn.ModuleList:
    module = importlib.import_module(f"transformers.models.{config.backbone}.modeling_{config.backbone}")
    make = getattr(module, f"{_LAYERS[config.backbone]}DecoderLayer")
    published = published_config(config)
    layers = nn.ModuleList(make(published, index) for index in range(config.num_hidden_layers))
    for layer in layers:
        layer.self_attn.is_causal = False  # without a mask, SDPA would else be told to be causal
    return layers


class DecoderBackbone(nn.Module):
    """Embedding, layers and final norm, under the names of transformers' base models."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = _layers(config)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self._frequencies, self._factor = inverse_frequencies(config)

    def forward(self, input_ids: Tensor, mask: Tensor | None, positions: Tensor, cache: Any = None) -> Tensor:
        """Hidden states after the final norm, `[rows, length, hidden]`; see `attention_of`."""
        x = self.embed_tokens(input_ids)
        rotary = self._rotary(positions, x.dtype)
        recompute = self.recompute and torch.is_grad_enabled()
        for layer in self.layers:
            if recompute:
                x = checkpoint(layer, x, mask, position_embeddings=rotary, use_reentrant=False)
            else:
                x = layer(x, mask, position_embeddings=rotary, past_key_values=cache)
        return self.norm(x)

    def _rotary(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines `[rows or 1, length, head_dim]`: float32, then cast (Qwen's dialect)."""
        angles = positions[..., None].float() * self._frequencies.to(positions.device)
        angles = torch.cat((angles, angles), dim=-1)
        return (angles.cos() * self._factor).to(dtype), (angles.sin() * self._factor).to(dtype)


class Decoder(nn.Module):
    """Dream, SDAR or a converted model with the call of `rl4dlm.types.Denoiser`: index i scores token i."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.model = DecoderBackbone(config)
        self.lm_head: OutputHead | None = OutputHead(config.hidden_size, config.vocab_size)
        self.tie_weights()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        select: Tensor | None = None,
        labels: Tensor | None = None,
        temperature: float = 1.0,
        layout: AttentionLayout | None = None,
        cache: Any = None,
    ) -> Tensor:
        """Logits, or log-probabilities of labels, at the selected positions.

        Args:
            input_ids: int64 `[rows, length]`, the mask token where a position is hidden.
            attention_mask: bool `[rows, length]`, False = padding, neither attended to nor counted in
                positions; None = all real. Values at padded positions mean nothing, but are finite.
            select: bool `[rows, length]`; None = all. The head runs on these positions alone.
            labels: int64 `[rows, length]`, ids to score; read at the selected positions only.
            temperature: divides the logits before labels are scored; without labels it has no effect.
            layout: positions and attention in place of `attention_mask`'s and the model's own.
            cache: stored keys and values, with transformers' `update(key, value, layer)`, which gives those
                to attend to; positions and visibility come from `layout` then.

        Returns:
            float32 logits `[selected, vocab]` in row-major order of `select` (`[rows, length, vocab]` without
            it), forbidden ids at -inf. With labels float32 `[selected]` (`[rows, length]`), nats.

        A model with shifted logits scores a token by the row before it. Where the sequence holds none (the
        first token, or the first of a cached window), the token's own row is read, as published code does;
        what is sampled there means nothing.
        """
        mask, positions = attention_of(input_ids, attention_mask, layout, self.config.block_length)
        hidden = self.model(input_ids, mask, positions, cache)
        if self.config.logit_shift:
            hidden = previous_rows(hidden, positions.expand(input_ids.shape))
        if select is not None:
            hidden = hidden[select]
            labels = None if labels is None else labels[select]
        return self.lm_head(hidden, labels, temperature)

    def hidden_states(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        layout: AttentionLayout | None = None,
    ) -> Tensor:
        """States after the final norm, `[rows, length, hidden]`; row i is token i's own, unshifted."""
        mask, positions = attention_of(input_ids, attention_mask, layout, self.config.block_length)
        return self.model(input_ids, mask, positions)

    def drop_head(self) -> None:
        """Remove the projection to the vocabulary; `hidden_states` is what remains."""
        self.lm_head = None

    def forbid(self, ids: Sequence[int]) -> None:
        """Ids that may never be proposed: their logits are -inf from now on."""
        self.lm_head.forbid(ids)

    def gradient_checkpointing_enable(self) -> None:
        """Keep only each layer's input for the backward pass and compute the rest again."""
        self.model.recompute = True

    def gradient_checkpointing_disable(self) -> None:
        self.model.recompute = False

    def tie_weights(self) -> None:
        """Let the head use the embedding matrix where the configuration says so; call it after assignment."""
        if self.config.tie_word_embeddings and self.lm_head is not None:
            self.lm_head.weight = self.model.embed_tokens.weight


def previous_rows(hidden: Tensor, positions: Tensor) -> Tensor:
    """At every token the row before it, or its own where that row is not the token one position before.

    Args:
        hidden: `[rows, length, hidden]`.
        positions: int64 `[rows, length]`, restarting where a packed sequence begins.
    """
    follows = torch.zeros_like(positions, dtype=torch.bool)
    follows[:, 1:] = positions[:, 1:] == positions[:, :-1] + 1
    return torch.where(follows[..., None], hidden.roll(1, dims=1), hidden)


@torch.no_grad()
def initialise_decoder(module: Decoder, generator: torch.Generator) -> None:
    """Fill every parameter as `initialise_llada` does: norms 1, biases 0, matrices with variance 1 / inputs,
    outputs of layer l, counted from 1, with variance 1 / (2 l inputs)."""
    for name, parameter in module.named_parameters():
        if parameter.dim() == 1:
            parameter.fill_(0.0 if name.endswith(".bias") else 1.0)
            continue
        variance = 1 / parameter.shape[1]
        output = re.search(r"layers\.(\d+)\.(self_attn\.o_proj|mlp\.down_proj)\.weight$", name)
        if output:
            variance /= 2 * (int(output[1]) + 1)
        parameter.normal_(0.0, math.sqrt(variance), generator=generator)
