"""Configurations of Dream, SDAR and converted autoregressive models, read strictly from JSON.

All three are architectures that transformers has (Qwen2, Qwen3, Llama) with another attention: the reader
keeps what shapes the network, what the attention sees, and the special ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rl4dlm.models.fields import Fields
from rl4dlm.recipe.sections import ModelInit

MARK = "diffusion"
"""Key in the config.json of a converted model that says how it attends."""

ARCHITECTURES = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}
"""Class of transformers that loads a converted model's weights, by `model_type`."""

_UNSUPPORTED = {
    "hidden_act": "silu",
    "attention_dropout": 0,
    "use_sliding_window": False,
    "use_mrope": False,
    "mlp_bias": False,
    "num_experts": None,
}


@dataclass(frozen=True)
class DecoderConfig:
    """What shapes a Qwen2, Qwen3 or Llama network, and how it is used as a denoiser.

    Example: `read_sdar_config(json.loads(text), "config.json").block_length`.
    """

    family: str
    """Key of `FAMILIES`."""
    backbone: str
    """`qwen2`, `qwen3` or `llama`: whose layers these are."""
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: Mapping[str, Any]
    """`rope_theta` and `rope_type` with the type's parameters, as transformers 5 writes them."""
    max_position_embeddings: int
    vocab_size: int
    """Rows of the embedding matrix and of the output head."""
    attention_bias: bool
    """Llama and Qwen3 alone: biases of all four projections. Qwen2 always has those of q, k and v."""
    tie_word_embeddings: bool
    mask_token_id: int
    eos_token_id: int
    pad_token_id: int
    block_length: int | None
    """None: every token sees every other."""
    logit_shift: int
    """1: row i - 1 of the network predicts token i (Dream); 0: row i does."""
    published: Mapping[str, Any]
    """The whole JSON object, for writing back."""

    @property
    def embedding_size(self) -> int:
        return self.vocab_size

    def to_dict(self) -> dict[str, Any]:
        """The published JSON object."""
        return dict(self.published)


def read_dream_config(data: Mapping[str, Any], where: str) -> DecoderConfig:
    """Dream-7B, Dream-Coder, DiffuCoder: Qwen2, full attention, logits shifted by one.

    Source: arXiv:2508.15487 and its published configuration (specs: models 5.1).

    Raises:
        ModelError: a key is missing, has the wrong type, or asks for another architecture.
    """
    return _read(Fields(data, where, "Dream"), "dream", "qwen2", block_length=None, logit_shift=1)


def read_sdar_config(data: Mapping[str, Any], where: str) -> DecoderConfig:
    """SDAR and TraDo: Qwen3, attention in blocks of `block_size`.

    Source: SDAR, arXiv:2510.06303; TraDo, arXiv:2509.06949 (specs: models 6.1).

    Raises:
        ModelError: as `read_dream_config`.
    """
    fields = Fields(data, where, "SDAR or TraDo")
    return _read(fields, "sdar", "qwen3", block_length=fields.integer("block_size"), logit_shift=0)


def read_a2d_config(data: Mapping[str, Any], where: str) -> DecoderConfig:
    """A Qwen2, Qwen3 or Llama checkpoint that was made a diffusion model, marked by `convert_config`.

    Configurations of dllm (`model_type` a2d-qwen2, a2d-qwen3, a2d-llama) have no mark and attend fully.

    Raises:
        ModelError: as `read_dream_config`.
    """
    fields = Fields(data, where, "converted")
    backbone = str(data["model_type"]).removeprefix("a2d-")
    mark = Fields(data.get(MARK) or {"attention": "full"}, f"{where}: {MARK}", "converted")
    blocks = mark.get("attention") == "block_causal"
    if not blocks and mark.get("attention") != "full":
        raise mark.wrong("attention", "is neither full nor block_causal")
    block_length = mark.integer("block_length") if blocks else None
    return _read(fields, "a2d", backbone, block_length=block_length, logit_shift=0)


def _read(
    fields: Fields, family: str, backbone: str, *, block_length: int | None, logit_shift: int
) -> DecoderConfig:
    fields.require(_UNSUPPORTED)
    width, rows = fields.integer("hidden_size"), fields.integer("vocab_size")
    head_dim = fields.integer("head_dim") if fields.data.get("head_dim") is not None else None
    heads = fields.heads(width, "num_attention_heads", "num_key_value_heads", head_dim)
    eos = _first_id(fields, "eos_token_id", rows)
    return DecoderConfig(
        family=family,
        backbone=backbone,
        hidden_size=width,
        intermediate_size=fields.integer("intermediate_size"),
        num_hidden_layers=fields.integer("num_hidden_layers"),
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
        head_dim=heads[2],
        rms_norm_eps=fields.number("rms_norm_eps"),
        rope=_rope(fields),
        max_position_embeddings=fields.integer("max_position_embeddings"),
        vocab_size=rows,
        attention_bias=bool(fields.data.get("attention_bias", False)),
        tie_word_embeddings=bool(fields.data.get("tie_word_embeddings", False)),
        mask_token_id=fields.token("mask_token_id", rows),
        eos_token_id=eos,
        pad_token_id=eos if fields.data.get("pad_token_id") is None else fields.token("pad_token_id", rows),
        block_length=block_length,
        logit_shift=logit_shift,
        published=dict(fields.data),
    )


def _first_id(fields: Fields, key: str, rows: int) -> int:
    """An id, or the first of a list of ids: Llama's configurations list every id that ends a text."""
    value = fields.get(key)
    if isinstance(value, list) and value:
        return Fields({key: value[0]}, fields.where, fields.label).token(key, rows)
    return fields.token(key, rows)


_ROPE_TYPES = ("default", "linear", "llama3", "yarn")


def _rope(fields: Fields) -> dict[str, Any]:
    """Rotary parameters from either spelling: `rope_theta` with `rope_scaling`, or `rope_parameters`."""
    scaling = fields.data.get("rope_scaling") or {}
    rope = dict(fields.data.get("rope_parameters") or scaling)
    rope.setdefault("rope_type", rope.pop("type", "default"))
    rope.setdefault("rope_theta", fields.data.get("rope_theta"))
    if rope["rope_type"] not in _ROPE_TYPES:
        raise fields.wrong("rope_scaling", f"is not one of the supported types {', '.join(_ROPE_TYPES)}")
    rope["rope_theta"] = Fields(rope, fields.where, fields.label).number("rope_theta")
    return rope


def _sizes(init: ModelInit, vocab_size: int) -> dict[str, Any]:
    """Fields that Qwen2, Qwen3 and Llama share, from a recipe's `model.init`."""
    return {
        "hidden_size": init.d_model,
        "intermediate_size": init.mlp_hidden_size,
        "num_hidden_layers": init.n_layers,
        "num_attention_heads": init.n_heads,
        "num_key_value_heads": init.n_kv_heads or init.n_heads,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": init.rope_theta,
        "rope_scaling": None,
        "max_position_embeddings": init.max_sequence_length,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": False,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": init.n_layers,
        "vocab_size": vocab_size,
    }


def _ids(mask_id: int, eos_id: int, pad_id: int) -> dict[str, int]:
    return {"mask_token_id": mask_id, "eos_token_id": eos_id, "pad_token_id": pad_id, "bos_token_id": eos_id}


def dream_config_for(
    init: ModelInit, *, vocab_size: int, mask_id: int, eos_id: int, pad_id: int, block_length: None = None
) -> DecoderConfig:
    """The full published configuration of a Dream made from scratch.

    Raises:
        ModelError: the sizes of `model.init` do not fit together.
    """
    data = {
        "model_type": "Dream",
        "architectures": ["DreamModel"],
        **_sizes(init, vocab_size),
        "use_mrope": False,
        "tie_word_embeddings": False,
        **_ids(mask_id, eos_id, pad_id),
    }
    return read_dream_config(data, "model.init")


def sdar_config_for(
    init: ModelInit, *, vocab_size: int, mask_id: int, eos_id: int, pad_id: int, block_length: int
) -> DecoderConfig:
    """The full published configuration of an SDAR made from scratch.

    Raises:
        ModelError: the sizes of `model.init` do not fit together.
    """
    data = {
        "model_type": "sdar",
        "architectures": ["SDARForCausalLM"],
        **_sizes(init, vocab_size),
        "head_dim": init.d_model // init.n_heads,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "block_size": block_length,
        "fuse_cross_entropy": False,
        **_ids(mask_id, eos_id, pad_id),
    }
    return read_sdar_config(data, "model.init")


def a2d_config_for(
    init: ModelInit, *, vocab_size: int, mask_id: int, eos_id: int, pad_id: int, block_length: int | None
) -> DecoderConfig:
    """A converted Qwen3 made from scratch, its head tied to the embedding as in the small Qwen3 models.

    Raises:
        ModelError: the sizes of `model.init` do not fit together.
    """
    data = {
        "model_type": "qwen3",
        **_sizes(init, vocab_size),
        "head_dim": init.d_model // init.n_heads,
        "attention_bias": False,
        "tie_word_embeddings": True,
        **_ids(mask_id, eos_id, pad_id),
    }
    return read_a2d_config(convert_config(data, mask_id=mask_id, block_length=block_length), "model.init")


def convert_config(data: Mapping[str, Any], *, mask_id: int, block_length: int | None) -> dict[str, Any]:
    """The config.json of an autoregressive model, marked as a diffusion model.

    `model_type` stays, so that transformers loads the folder with its own class; `is_causal` false makes that
    class attend fully, as a model without blocks does.

    Args:
        mask_id: row of the embedding that stands for a hidden token.
        block_length: None: full attention.
    """
    kind = str(data["model_type"]).removeprefix("a2d-")
    blocks = {"attention": "block_causal", "block_length": block_length}
    return {
        **data,
        "model_type": kind,
        "architectures": [ARCHITECTURES[kind]],
        "is_causal": False,
        "mask_token_id": mask_id,
        "vocab_size": max(data["vocab_size"], mask_id + 1),
        MARK: {"attention": "full"} if block_length is None else blocks,
    }
