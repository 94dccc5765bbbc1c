"""The published configurations, a table per released class: each field's spellings, type, bounds and default.

To support another spelling, write it into the field's aliases. A key that would change the network belongs
into `NEUTRAL`, with the values that leave it as it is; one that cannot, into `HARMLESS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rl4dlm.models.fields import REQUIRED, Field, Values

MARK = "diffusion"
"""Key in the config.json of a converted model that says how it attends."""

ARCHITECTURES = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}
"""Class of transformers that loads a converted model's weights, by `model_type`."""

# Far beyond any released model: what asks for more is damaged, and would fill the memory.
_WIDTH, _LAYERS, _HEADS, _EXPERTS, _ROWS, _POSITIONS = 2**17, 1024, 1024, 2048, 2**20, 2**27

_SET_MASK = (
    "set model.mask_token to the token that stands for a hidden position, or write mask_token_id into "
    "config.json"
)
_SET_BLOCK = "set model.block_length to the tokens of a block, or write block_size into config.json"


def _flag(key: str, only: bool | None = None, **options: Any) -> Field:
    """True or false; `only`: what the network here is made for."""
    return Field(key, kind="flag", only=() if only is None else (only,), **options)


def _fixed(key: str, *only: Any, **options: Any) -> Field:
    """A field of any type with the values that the network here is made for."""
    return Field(key, kind="any", only=only, **options)


def _free(key: str, **options: Any) -> Field:
    """A field that does not matter here, and that published code wants to find."""
    return Field(key, kind="any", default=None, **options)


def _number(key: str, *aliases: str, **options: Any) -> Field:
    return Field(key, aliases, kind="number", **options)


# Names on the left are ours: those of `NetworkConfig` where it has the field.

_IDS = {
    "mask_token_id": Field("mask_token_id", ("mask_id", "mask_index"), kind="id", remedy=_SET_MASK),
    "eos_token_ids": Field("eos_token_id", kind="ids", remedy="add the id that ends a text to config.json"),
    "pad_token_id": Field("pad_token_id", kind="id", default=lambda v: v["eos_token_ids"][0], blank=(-1,)),
}
_ROPE = {
    "rope": Field("rope_scaling", ("rope_parameters",), kind="any", default={}),
    "rope_theta": _number("rope_theta", "rope_parameters.rope_theta", "rope_scaling.rope_theta"),
}
_HF = {
    "hidden_size": Field("hidden_size", ("d_model", "hidden_dim", "n_embd"), most=_WIDTH),
    "num_hidden_layers": Field("num_hidden_layers", ("n_layers", "num_layers", "n_layer"), most=_LAYERS),
    "num_attention_heads": Field("num_attention_heads", ("n_heads", "num_heads", "n_head"), most=_HEADS),
    "num_key_value_heads": Field(
        "num_key_value_heads", ("n_kv_heads", "num_kv_heads"), most=_HEADS,
        default=lambda v: v["num_attention_heads"],
    ),
    "head_dim": Field(
        "head_dim", most=_WIDTH, default=lambda v: v["hidden_size"] // v["num_attention_heads"]
    ),
    "intermediate_size": Field("intermediate_size", ("mlp_hidden_size", "ffn_hidden_size"), most=8 * _WIDTH),
    "vocab_size": Field("vocab_size", most=_ROWS),
    "max_position_embeddings": Field(
        "max_position_embeddings", ("max_sequence_length", "max_seq_len", "n_positions"), most=_POSITIONS
    ),
    "rms_norm_eps": _number("rms_norm_eps", "layer_norm_eps", "rms_norm_epsilon", made=1e-6),
    **_ROPE,
    "tie_word_embeddings": _flag("tie_word_embeddings", default=False, made=False),
    "hidden_act": _fixed("hidden_act", "silu", "swish", default="silu"),
    "attention_dropout": _fixed("attention_dropout", 0, default=0),
    **_IDS,
}  # fmt: skip
_ROTATED = _number("partial_rotary_factor", "rope_parameters.partial_rotary_factor", default=1.0)
_BIAS = {"attention_bias": _flag("attention_bias", default=False, made=False)}
_QWEN3 = {**_HF, **_BIAS, "head_dim": replace(_HF["head_dim"], default=128)}
_BLOCKS = Field("block_size", ("block_length", "bd_size"), most=_POSITIONS, remedy=_SET_BLOCK)
_MARKED = {
    "attention": _fixed(f"{MARK}.attention", "full", "block_causal", default=None),
    "block_length": replace(
        _BLOCKS, key=f"{MARK}.block_length", aliases=("block_length", "block_size", "bd_size"), default=None
    ),
    "logit_shift": Field(f"{MARK}.logit_shift", default=0, least=0, most=1),
}


def _mlp_by_ratio(v: Values) -> Any:
    return REQUIRED if v["mlp_ratio"] is None else round(v["mlp_ratio"] * v["hidden_size"])


_LLADA = {
    "hidden_size": Field("d_model", ("hidden_size",), most=_WIDTH),
    "num_hidden_layers": Field("n_layers", ("num_hidden_layers",), most=_LAYERS),
    "num_attention_heads": Field("n_heads", ("num_attention_heads",), most=_HEADS),
    "num_key_value_heads": Field(
        "n_kv_heads", ("num_key_value_heads",), most=_HEADS, default=lambda v: v["num_attention_heads"]
    ),
    "mlp_ratio": _number("mlp_ratio", default=None, made=4),
    "intermediate_size": Field(
        "mlp_hidden_size", ("intermediate_size",), most=8 * _WIDTH, default=_mlp_by_ratio
    ),
    "max_position_embeddings": Field("max_sequence_length", ("max_position_embeddings",), most=_POSITIONS),
    "num_tokens": Field("vocab_size", most=_ROWS),
    "vocab_size": Field("embedding_size", most=_ROWS, default=lambda v: v["num_tokens"]),
    "rms_norm_eps": _number("rms_norm_eps", made=1e-5),
    **_ROPE,
    "tie_word_embeddings": _flag("weight_tying", made=False),
    **_IDS,
    # The released class knows other architectures too, and its defaults are GPT-2's, so that a field that is
    # left out means something else than LLaDA.
    "block_type": _fixed("block_type", "llama"),
    "block_group_size": _fixed("block_group_size", 1),
    "activation_type": _fixed("activation_type", "silu"),
    "layer_norm_type": _fixed("layer_norm_type", "rms"),
    "layer_norm_with_affine": _flag("layer_norm_with_affine", True),
    "bias_for_layer_norm": _flag("bias_for_layer_norm", False),
    "attention_layer_norm": _flag("attention_layer_norm", False),
    "include_bias": _flag("include_bias", False),
    "include_qkv_bias": _flag("include_qkv_bias", False),
    "rotates": _flag("rope", True),
    "rope_full_precision": _flag("rope_full_precision", True),
    "alibi": _flag("alibi", False),
    "input_emb_norm": _flag("input_emb_norm", False),
    "scale_logits": _flag("scale_logits", False),
    "attention_dropout": _fixed("attention_dropout", 0),
    "residual_dropout": _fixed("residual_dropout", 0),
    "embedding_dropout": _fixed("embedding_dropout", 0),
    "multi_query_attention": _fixed("multi_query_attention", None, default=None, blank=(False,)),
}

_EXPERTS_OF = {
    "num_experts": Field("num_experts", ("n_routed_experts",), least=2, most=_EXPERTS),
    "num_chosen": Field("num_experts_per_tok", most=_EXPERTS),
}
_SDAR = {**_QWEN3, "block_length": _BLOCKS}
_SDAR_MOE = {
    **_SDAR,
    **_EXPERTS_OF,
    "expert_width": Field("moe_intermediate_size", most=_WIDTH),
    "renormalise": _flag("norm_topk_prob"),
    "sparse_step": _fixed("decoder_sparse_step", 1, default=1),
    "dense_layers": _fixed("mlp_only_layers", [], default=[]),
}
_LLADA_MOE = {
    **_HF,
    **_BIAS,
    **_EXPERTS_OF,
    "intermediate_size": Field("expert_intermediate_size", ("moe_intermediate_size",), most=_WIDTH),
    "dense_width": _free("dense_intermediate_size"),
    "rms_norm_eps": replace(_HF["rms_norm_eps"], made=1e-5),
    "rotated": replace(_ROTATED, only=(1.0,), made=1),
    "qk_norm": _flag("qk_layernorm", True, default=True),
    "sparse_layers": _fixed("moe_layer_freq", default=None, blank=([],)),
    "shared_width": _fixed("shared_expert_intermediate_size", None, default=None, blank=(-1, 0)),
    "clip_qkv": _fixed("clip_qkv", None, default=None),
    "expert_bias": _flag("moe_router_enable_expert_bias", False, default=False),
    "score": _fixed("moe_router_score_function", "softmax", default="softmax"),
    "router_scale": _fixed("routed_scaling_factor", 1, default=1),
    # The released code never renormalises, whatever this says.
    "renormalise": _free("norm_topk_prob", made=False),
    "router_groups": _free("router_num_group"),
    "kept_groups": _free("router_topk_group"),
}
_LLADA_MOE["sparse_layers"] = replace(
    _LLADA_MOE["sparse_layers"], only=lambda v: ([1] * v["num_hidden_layers"], 1)
)
_LLADA2 = {
    **_HF,
    **_EXPERTS_OF,
    # No released configuration states the block length, which is that of all of them.
    "block_length": replace(_BLOCKS, key="block_length", aliases=("block_size", "bd_size"), default=32),
    "expert_width": Field("moe_intermediate_size", most=_WIDTH),
    "num_shared": Field("num_shared_experts", least=0, most=_EXPERTS, default=0, made=1),
    "num_dense_layers": Field("first_k_dense_replace", least=0, most=_LAYERS, default=0, made=1),
    "num_groups": Field("n_group", most=_EXPERTS, default=8, made=2),
    "num_kept_groups": Field("topk_group", most=_EXPERTS, default=4, made=1),
    "router_scale": _number("routed_scaling_factor", default=2.5, made=2.5),
    "rotated": replace(_ROTATED, default=0.5, made=0.5),
    "score": _fixed("score_function", "sigmoid", default="sigmoid"),
    "renormalise": _flag("norm_topk_prob", True, default=True),
    "expert_bias": _flag("moe_router_enable_expert_bias", True, default=True),
    "qk_norm": _flag("use_qk_norm", True, default=True),
    "qkv_bias": _flag("use_qkv_bias", False, default=False),
    "bias": _flag("use_bias", False, default=False),
    "norm_head": _flag("norm_head", False, default=False),
    "router_dtype": _free("router_dtype", made="fp32"),
    # The released class has dropout by default; none is applied here, in training either.
    "attention_dropout": _free("attention_dropout", made=0.0),
    "embedding_dropout": _free("embedding_dropout", made=0.0),
    "output_dropout": _free("output_dropout", made=0.0),
}
_DIT = {
    "hidden_size": Field("hidden_dim", ("hidden_size",), most=_WIDTH),
    "num_hidden_layers": Field("n_blocks", ("num_hidden_layers", "n_layers"), most=_LAYERS),
    "num_attention_heads": Field("n_heads", ("num_attention_heads",), most=_HEADS),
    "cond_dim": Field("cond_dim", most=_WIDTH, made=32),
    "max_position_embeddings": Field("model_length", ("max_position_embeddings",), most=_POSITIONS),
    "vocab_size": Field("vocab_size", least=2, most=_ROWS),
    "time_conditioning": _flag("time_conditioning", False, default=False),
    "dropout": _free("dropout", made=0.0),
    **_IDS,
    # The released wrapper names no special ids: the mask is the last row, end of text the one before it.
    "mask_token_id": replace(_IDS["mask_token_id"], default=lambda v: v["vocab_size"] - 1),
    "eos_token_ids": replace(_IDS["eos_token_ids"], default=lambda v: (v["vocab_size"] - 2,)),
}
_BD3LM = {
    **_DIT,
    "block_length": _BLOCKS,
    "adaln": _flag("adaln", made=False),
    "attn_backend": _free("attn_backend", made="sdpa"),
    "causal": _flag("causal", False, default=False),
    "cross_attn": _flag("cross_attn", True, default=True),
    "var_min": _flag("var_min", made=True),
    "least_rate": _number("sampling_eps_min", default=None, made=1e-3),
    "largest_rate": _number("sampling_eps_max", default=None, made=0.999),
}


@dataclass(frozen=True)
class Released:
    """A released class: its table, and what is true of all its models."""

    label: str
    """For messages."""
    backbone: str
    fields: Mapping[str, Field]
    written: Mapping[str, Any] = field(default_factory=dict)
    """Further keys of a configuration that is made from scratch."""
    logit_shift: int = 0
    embedding_name: str = "embed_tokens"


def _written(model_type: str, architecture: str, **more: Any) -> dict[str, Any]:
    return {"model_type": model_type, "architectures": [architecture], "use_cache": False, **more}


_NO_WINDOW = {"initializer_range": 0.02, "use_sliding_window": False, "sliding_window": None}
_INERT_IN_LLADA = {
    "alibi_bias_max": 8.0,
    "attention_layer_norm_with_affine": True,
    "flash_attention": False,
    "init_cutoff_factor": None,
    "init_device": "meta",
    "init_fn": "mitchell",
    "init_std": 0.02,
    "multi_query_attention": None,
    "precision": "amp_bf16",
}
_SPARSE_SDAR = Released("SDAR", "qwen3", _SDAR_MOE)
_CONVERTED = {
    "qwen2": Released("converted Qwen2", "qwen2", {**_HF, **_MARKED}),
    "qwen3": Released(
        "converted Qwen3",
        "qwen3",
        {**_QWEN3, **_MARKED, "tie_word_embeddings": replace(_QWEN3["tie_word_embeddings"], made=True)},
        _written("qwen3", ARCHITECTURES["qwen3"], is_causal=False, **_NO_WINDOW),
    ),
    "llama": Released(
        "converted Llama",
        "llama",
        {**_HF, **_BIAS, **_MARKED, "rope_theta": replace(_ROPE["rope_theta"], default=1e4)},
    ),
}
_RELEASED = {
    "llada": Released("LLaDA", "llada", _LLADA, _written("llada", "LLaDAModelLM", **_INERT_IN_LLADA)),
    "llada_moe": Released(
        "LLaDA-MoE",
        "qwen3",
        _LLADA_MOE,
        _written("llada", "LLaDAMoEModelLM", router_aux_loss_coef=0.01, **_NO_WINDOW),
    ),
    "llada2": Released(
        "LLaDA2",
        "llada2",
        _LLADA2,
        _written("llada2_moe", "LLaDA2MoeModelLM", **_NO_WINDOW),
        embedding_name="word_embeddings",
    ),
    "dream": Released(
        "Dream", "qwen2", _HF, _written("Dream", "DreamModel", use_mrope=False, **_NO_WINDOW), logit_shift=1
    ),
    "sdar": Released(
        "SDAR or TraDo",
        "qwen3",
        _SDAR,
        _written("sdar", "SDARForCausalLM", fuse_cross_entropy=False, **_NO_WINDOW),
    ),
    "mdlm": Released("MDLM", "dit", _DIT, _written("mdlm", "MDLM")),
    "bd3lm": Released("BD3-LM", "dit", _BD3LM, _written("bd3lm", "BD3LM")),
}


def released(family: str, data: Mapping[str, Any]) -> Released:
    """The released class that a configuration of a family is of.

    Args:
        family: a key of `FAMILIES`.
        data: the configuration; empty for one that is made from scratch.
    """
    model_type = str(data.get("model_type", ""))
    if family == "a2d":
        return _CONVERTED[model_type.removeprefix("a2d-") or "qwen3"]
    return _SPARSE_SDAR if model_type == "sdar_moe" else _RELEASED[family]


NEUTRAL: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("use_sliding_window", "use_mrope", "mlp_bias", "alibi", "norm_head"), (False,)),
    **dict.fromkeys(("use_bias", "use_qkv_bias", "qkv_bias", "attention_out_bias", "include_bias"), (False,)),
    **dict.fromkeys(("parallel_attn", "use_parallel_residual", "parallel_residual"), (False,)),
    **dict.fromkeys(("add_cross_attention", "is_encoder_decoder", "scale_embeddings"), (False,)),
    **dict.fromkeys(("rope_interleave", "rope_interleaved", "use_alibi", "scale_logits"), (False,)),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "num_shared_experts"), (0,)),
    **dict.fromkeys(("num_nextn_predict_layers", "first_k_dense_replace", "mtp_num_layers"), (0,)),
    **dict.fromkeys(("residual_multiplier", "embedding_multiplier", "logit_scale", "logits_scaling"), (1,)),
    **dict.fromkeys(("partial_rotary_factor", "rotary_pct", "rope_partial_factor", "scale_emb"), (1,)),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping", "logit_softcapping"), ()),
    **dict.fromkeys(("attn_logit_softcap", "final_logit_softcap", "query_pre_attn_scalar"), ()),
    **dict.fromkeys(("attention_multiplier", "scale_depth", "dim_model_base", "clip_qkv"), ()),
    **dict.fromkeys(("no_rope_layers", "no_rope_layer_interval", "attention_chunk_size"), ()),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "qk_rope_head_dim", "per_layer_input_size"), ()),
    **dict.fromkeys(("vision_config", "text_config", "audio_config", "image_token_offset"), ()),
    **dict.fromkeys(("quantization_config", "compression_config", "quantization"), ()),
    **dict.fromkeys(("rope_scaling", "rope_parameters", "pruned_heads"), ({},)),
}
"""Keys of other architectures, with the values that leave the network as it is. None always does, and in a
configuration whose table has the key the table decides."""

HARMLESS = frozenset(
    """
    architectures auto_map model_type torch_dtype dtype transformers_version transformers_js_config
    _name_or_path name_or_path _attn_implementation attn_implementation _attn_implementation_autoset
    attn_backend use_cache initializer_range bos_token_id cls_token_id sep_token_id unk_token_id
    decoder_start_token_id forced_bos_token_id forced_eos_token_id bad_words_ids suppress_tokens
    begin_suppress_tokens chunk_size_feed_forward task_specific_params problem_type id2label label2id
    num_labels return_dict output_attentions output_hidden_states output_router_logits output_scores
    return_dict_in_generate remove_invalid_values encoder_no_repeat_ngram_size no_repeat_ngram_size
    router_aux_loss_coef router_z_loss_coef router_dtype max_window_layers sliding_window layer_types
    pretraining_tp gradient_checkpointing prefix finetuning_task torchscript tf_legacy_loss use_bfloat16
    tokenizer_class is_decoder is_causal causal temperature top_k top_p typical_p do_sample num_beams
    num_beam_groups num_return_sequences diversity_penalty early_stopping length_penalty repetition_penalty
    exponential_decay_length_penalty max_length min_length max_new_tokens cross_attention_hidden_size
    tie_encoder_decoder tie_word_embeddings alibi_bias_max attention_layer_norm_with_affine flash_attention
    use_flash_attention init_cutoff_factor init_device init_fn init_std precision fuse_cross_entropy
    fuse_swiglu fuse_norm debug ep_size micro_forward skip_checkpoint use_deepep moe_backend dropout
    resid_dropout embd_dropout hidden_dropout dense_intermediate_size intermediate_size mlp_ratio head_dim
    attention_bias norm_topk_prob diffusion unsloth_version unsloth_fixed vocab_file
    time_conditioning loss_type mlp_hidden_size hidden_act eos_token_id pad_token_id mask_token_id
    """.split()
)
"""Keys that do not change what a network computes, where its table has not got them."""
