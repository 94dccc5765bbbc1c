"""Configurations of Dream, SDAR, LLaDA-MoE, LLaDA2 and converted models, read strictly from JSON.

The reader keeps what shapes the network, what the attention sees, and the special ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rl4dlm.models.fields import Fields
from rl4dlm.models.moe import ExpertsConfig
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
}


@dataclass(frozen=True)
class DecoderConfig:
    """What shapes a decoder, and how it is used as a denoiser.

    Example: `read_sdar_config(json.loads(text), "config.json").block_length`.
    """

    family: str
    """Key of `FAMILIES`."""
    backbone: str
    """`qwen2`, `qwen3`, `llama` or `llada2`: whose layers these are."""
    hidden_size: int
    intermediate_size: int
    """Width of a dense MLP."""
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
    experts: ExpertsConfig | None = None
    """Sparse layers; None: every MLP is dense."""
    rotary_dim: int = 0
    """Leading dimensions of a head that are rotated."""
    embedding_name: str = "embed_tokens"

    @property
    def embedding_size(self) -> int:
        return self.vocab_size

    @property
    def active_mlp_width(self) -> int:
        """MLP width that a token passes through: of its experts and the shared one, or of the dense MLP."""
        experts = self.experts
        if experts is None:
            return self.intermediate_size
        return experts.num_chosen * experts.width + experts.shared_width

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
    return _read(
        fields,
        "sdar",
        "qwen3",
        block_length=fields.integer("block_size"),
        logit_shift=0,
        experts=_qwen3_experts(fields) if data["model_type"] == "sdar_moe" else None,
    )


def _qwen3_experts(fields: Fields) -> ExpertsConfig:
    fields.require({"decoder_sparse_step": 1, "mlp_only_layers": []})
    return ExpertsConfig(
        num_experts=fields.integer("num_experts"),
        num_chosen=fields.integer("num_experts_per_tok"),
        width=fields.integer("moe_intermediate_size"),
        renormalise=fields.flag("norm_topk_prob"),
    )


def read_llada_moe_config(data: Mapping[str, Any], where: str) -> DecoderConfig:
    """LLaDA-MoE: Qwen3's attention, every MLP a mixture whose weights are not renormalised, full attention.

    Source: arXiv:2509.24389 and its published code (specs: models 4.1).

    Raises:
        ModelError: as `read_dream_config`.
    """
    fields = Fields(data, where, "LLaDA-MoE")
    layers = fields.integer("num_hidden_layers")
    fixed = {"partial_rotary_factor": 1, "qk_layernorm": True, "moe_layer_freq": [1] * layers}
    for key in fixed:
        fields.get(key)
    fields.require({**fixed, "clip_qkv": None, "shared_expert_intermediate_size": None})
    experts = ExpertsConfig(
        num_experts=fields.integer("num_experts"),
        num_chosen=fields.integer("num_experts_per_tok"),
        width=fields.integer("expert_intermediate_size"),
        renormalise=False,
    )
    return _read(
        fields, "llada_moe", "qwen3", block_length=None, logit_shift=0, experts=experts, mlp=experts.width
    )


LLADA2_BLOCK_LENGTH = 32
"""Of the published models, whose configuration does not state it."""


def read_llada2_config(data: Mapping[str, Any], where: str) -> DecoderConfig:
    """LLaDA2.x: attention in blocks, grouped sigmoid router with a shared expert, part of a head rotated.

    Source: arXiv:2512.15745 and its published configuration (specs: models 4.2). A folder written here says
    its block length under `block_length`.

    Raises:
        ModelError: as `read_dream_config`.
    """
    fields = Fields(data, where, "LLaDA2")
    fixed = {"score_function": "sigmoid", "norm_topk_prob": True, "moe_router_enable_expert_bias": True}
    fixed |= {"use_qk_norm": True, "use_qkv_bias": False, "use_bias": False}
    for key in fixed:
        fields.get(key)
    fields.require(fixed)
    width = fields.integer("moe_intermediate_size")
    experts = ExpertsConfig(
        num_experts=fields.integer("num_experts"),
        num_chosen=fields.integer("num_experts_per_tok"),
        width=width,
        renormalise=True,
        shared_width=width * fields.integer("num_shared_experts"),
        num_dense_layers=fields.integer("first_k_dense_replace", least=0),
        num_groups=fields.integer("n_group"),
        num_kept_groups=fields.integer("topk_group"),
        scale=fields.number("routed_scaling_factor"),
    )
    if experts.num_experts % experts.num_groups or experts.num_experts < 2 * experts.num_groups:
        raise fields.wrong(
            "n_group", f"does not split {experts.num_experts} experts into groups of two or more"
        )
    block_length = fields.integer("block_length") if "block_length" in data else LLADA2_BLOCK_LENGTH
    return _read(
        fields,
        "llada2",
        "llada2",
        block_length=block_length,
        logit_shift=0,
        experts=experts,
        rotated=fields.number("partial_rotary_factor"),
        embedding_name="word_embeddings",
    )


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
    fields: Fields,
    family: str,
    backbone: str,
    *,
    block_length: int | None,
    logit_shift: int,
    experts: ExpertsConfig | None = None,
    mlp: int | None = None,
    rotated: float = 1.0,
    embedding_name: str = "embed_tokens",
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
        intermediate_size=fields.integer("intermediate_size") if mlp is None else mlp,
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
        experts=experts,
        rotary_dim=round(heads[2] * rotated),
        embedding_name=embedding_name,
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


def llada_moe_config_for(
    init: ModelInit, *, vocab_size: int, mask_id: int, eos_id: int, pad_id: int, block_length: None = None
) -> DecoderConfig:
    """The full published configuration of a LLaDA-MoE made from scratch; experts as wide as the MLP would be.

    Raises:
        ModelError: the sizes of `model.init` do not fit together.
    """
    data = {
        "model_type": "llada",
        "architectures": ["LLaDAMoEModelLM"],
        **_sizes(init, vocab_size),
        "rms_norm_eps": 1e-5,
        "head_dim": init.d_model // init.n_heads,
        "num_experts": init.num_experts,
        "num_experts_per_tok": init.num_experts_per_tok,
        "expert_intermediate_size": init.mlp_hidden_size,
        "dense_intermediate_size": init.mlp_hidden_size,
        "shared_expert_intermediate_size": None,
        "moe_layer_freq": [1] * init.n_layers,
        "norm_topk_prob": False,
        "qk_layernorm": True,
        "clip_qkv": None,
        "partial_rotary_factor": 1,
        "router_aux_loss_coef": 0.01,
        "tie_word_embeddings": False,
        **_ids(mask_id, eos_id, pad_id),
    }
    return read_llada_moe_config(data, "model.init")


def llada2_config_for(
    init: ModelInit, *, vocab_size: int, mask_id: int, eos_id: int, pad_id: int, block_length: int
) -> DecoderConfig:
    """The full published configuration of a LLaDA2 made from scratch: one dense layer, experts in two groups.

    Raises:
        ModelError: the sizes of `model.init` do not fit together.
    """
    data = {
        "model_type": "llada2_moe",
        "architectures": ["LLaDA2MoeModelLM"],
        **_sizes(init, vocab_size),
        "head_dim": init.d_model // init.n_heads,
        "first_k_dense_replace": 1,
        "moe_intermediate_size": init.mlp_hidden_size,
        "num_experts": init.num_experts,
        "num_experts_per_tok": init.num_experts_per_tok,
        "num_shared_experts": 1,
        "n_group": 2,
        "topk_group": 1,
        "routed_scaling_factor": 2.5,
        "score_function": "sigmoid",
        "norm_topk_prob": True,
        "moe_router_enable_expert_bias": True,
        "router_dtype": "fp32",
        "partial_rotary_factor": 0.5,
        "use_qk_norm": True,
        "use_qkv_bias": False,
        "use_bias": False,
        "tie_word_embeddings": False,
        "block_length": block_length,
        **_ids(mask_id, eos_id, pad_id),
    }
    return read_llada2_config(data, "model.init")


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
