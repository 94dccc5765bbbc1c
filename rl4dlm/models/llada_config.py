"""The configuration of LLaDA under its published field names, read strictly from JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rl4dlm.models.fields import Fields
from rl4dlm.recipe.sections import ModelInit

# The published class knows other architectures too, and its defaults are GPT-2's, so a field that is left out
# means something else than LLaDA: each must be there with this value.
_FIXED: dict[str, Any] = {
    "block_type": "llama",
    "block_group_size": 1,
    "activation_type": "silu",
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "bias_for_layer_norm": False,
    "attention_layer_norm": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "rope": True,
    "rope_full_precision": True,
    "alibi": False,
    "input_emb_norm": False,
    "scale_logits": False,
    "attention_dropout": 0,
    "residual_dropout": 0,
    "embedding_dropout": 0,
}

# Fields that published evaluation code wants to find and that do not shape the network.
_INERT: dict[str, Any] = {
    "alibi_bias_max": 8.0,
    "attention_layer_norm_with_affine": True,
    "flash_attention": False,
    "init_cutoff_factor": None,
    "init_device": "meta",
    "init_fn": "mitchell",
    "init_std": 0.02,
    "mlp_ratio": 4,
    "multi_query_attention": None,
    "precision": "amp_bf16",
    "use_cache": False,
}


@dataclass(frozen=True)
class LLaDAConfig:
    """What shapes a LLaDA network: fields have their published names, properties Hugging Face's usual ones.

    Example: `read_llada_config(json.loads(text), "config.json").hidden_size`.
    """

    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    """Heads of keys and values; each serves `n_heads / n_kv_heads` query heads."""
    mlp_hidden_size: int
    max_sequence_length: int
    vocab_size: int
    embedding_size: int
    """Rows of the embedding matrix and of the output head."""
    rms_norm_eps: float
    rope_theta: float
    weight_tying: bool
    """The output head is the embedding matrix and has no tensor of its own."""
    mask_token_id: int
    eos_token_id: int
    pad_token_id: int
    published: Mapping[str, Any]
    """The whole JSON object, for writing back."""
    family: str = "llada"
    """Key of `FAMILIES`."""
    block_length: int | None = None
    """None: every token sees every other."""
    logit_shift: int = 0
    """Row i of the logits scores token i."""

    @property
    def hidden_size(self) -> int:
        return self.d_model

    @property
    def num_hidden_layers(self) -> int:
        return self.n_layers

    @property
    def num_attention_heads(self) -> int:
        return self.n_heads

    @property
    def num_key_value_heads(self) -> int:
        return self.n_kv_heads

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads

    @property
    def intermediate_size(self) -> int:
        return self.mlp_hidden_size

    @property
    def active_mlp_width(self) -> int:
        return self.mlp_hidden_size

    @property
    def max_position_embeddings(self) -> int:
        return self.max_sequence_length

    def to_dict(self) -> dict[str, Any]:
        """The published JSON object."""
        return dict(self.published)


def _require_supported(fields: Fields) -> None:
    for key, expected in _FIXED.items():
        if fields.get(key) != expected:
            raise fields.wrong(key, f"is not supported: this implementation needs {expected!r}")
    if "num_experts" in fields.data:
        raise fields.wrong(
            "num_experts", "is not supported: mixture-of-experts LLaDA is another architecture"
        )
    if fields.data.get("multi_query_attention"):
        raise fields.wrong("multi_query_attention", "is not supported: n_kv_heads = 1 says the same")


def _require_heads_to_divide(fields: Fields) -> None:
    width, heads, kv_heads = (fields.integer(key) for key in ("d_model", "n_heads", "n_kv_heads"))
    if width % heads or (width // heads) % 2:
        raise fields.wrong("n_heads", f"does not split d_model = {width} into heads of even width")
    if heads % kv_heads:
        raise fields.wrong("n_kv_heads", f"does not divide n_heads = {heads}")


def read_llada_config(data: Mapping[str, Any], where: str) -> LLaDAConfig:
    """Check a published configuration and keep what shapes the network.

    Source: configuration of GSAI-ML/LLaDA-8B (specs: models 3.1). No field has a default here.

    Args:
        data: the JSON object of config.json.
        where: file or recipe key that messages name.

    Raises:
        ModelError: a key is missing, has the wrong type, or asks for another architecture.
    """
    fields = Fields(data, where, "LLaDA")
    _require_supported(fields)
    _require_heads_to_divide(fields)
    rows = fields.integer("embedding_size")
    if fields.integer("vocab_size") > rows:
        raise fields.wrong("vocab_size", f"exceeds embedding_size = {rows}")
    return LLaDAConfig(
        d_model=fields.integer("d_model"),
        n_layers=fields.integer("n_layers"),
        n_heads=fields.integer("n_heads"),
        n_kv_heads=fields.integer("n_kv_heads"),
        mlp_hidden_size=fields.integer("mlp_hidden_size"),
        max_sequence_length=fields.integer("max_sequence_length"),
        vocab_size=fields.integer("vocab_size"),
        embedding_size=rows,
        rms_norm_eps=fields.number("rms_norm_eps"),
        rope_theta=fields.number("rope_theta"),
        weight_tying=fields.flag("weight_tying"),
        mask_token_id=fields.token("mask_token_id", rows),
        eos_token_id=fields.token("eos_token_id", rows),
        pad_token_id=fields.token("pad_token_id", rows),
        published=dict(data),
    )


def llada_config_for(
    init: ModelInit, *, vocab_size: int, mask_id: int, eos_id: int, pad_id: int, block_length: None = None
) -> LLaDAConfig:
    """The full published configuration of a model made from scratch.

    Raises:
        ModelError: the sizes of `model.init` do not fit together.
    """
    sizes = ("d_model", "n_layers", "n_heads", "mlp_hidden_size", "max_sequence_length", "rope_theta")
    data = {
        "model_type": "llada",
        "architectures": ["LLaDAModelLM"],
        **_FIXED,
        **_INERT,
        **{key: getattr(init, key) for key in sizes},
        "n_kv_heads": init.n_kv_heads or init.n_heads,
        "vocab_size": vocab_size,
        "embedding_size": vocab_size,
        "rms_norm_eps": 1e-5,
        "weight_tying": False,
        "mask_token_id": mask_id,
        "eos_token_id": eos_id,
        "pad_token_id": pad_id,
    }
    return read_llada_config(data, "model.init")
