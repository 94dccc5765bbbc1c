"""What shapes a network of any family, and how it is read from a published configuration."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from torch import nn

from rl4dlm.errors import ModelError, ModelWarning
from rl4dlm.models.config_tables import (
    ARCHITECTURES,
    HARMLESS,
    MARK,
    NEUTRAL,
    Released,
    released,
)
from rl4dlm.models.fields import Reader, Values, write
from rl4dlm.models.moe import ExpertsConfig
from rl4dlm.recipe.sections import ModelInit


@dataclass(frozen=True)
class NetworkConfig:
    """A config.json as the networks read it, under Hugging Face's usual names.

    Example: `read_config("sdar", json.loads(text), "config.json").block_length`.
    """

    family: str
    """Key of `FAMILIES`."""
    backbone: str
    """Whose layers these are: `llada`, `qwen2`, `qwen3`, `llama`, `llada2` or `dit`."""
    hidden_size: int
    intermediate_size: int
    """Width of a dense MLP, or of one expert where no layer is dense."""
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    """Heads of keys and values; each serves `num_attention_heads / num_key_value_heads` query heads."""
    head_dim: int
    max_position_embeddings: int
    """Longest sequence, tokens."""
    vocab_size: int
    """Rows of the embedding matrix and of the output head."""
    mask_token_id: int
    eos_token_ids: tuple[int, ...]
    """Every id that the configuration ends a text with; the first is `eos_token_id`."""
    pad_token_id: int
    published: Mapping[str, Any] = field(default_factory=dict)
    """The whole JSON object, for writing back."""
    rms_norm_eps: float = 1e-5
    rope: Mapping[str, Any] = field(default_factory=dict)
    """`rope_theta` and `rope_type` with the type's parameters, as transformers 5 writes them."""
    rotary_dim: int = 0
    """Leading dimensions of a head that are rotated."""
    attention_bias: bool = False
    """Llama and Qwen3 alone: biases of all four projections. Qwen2 always has those of q, k and v."""
    tie_word_embeddings: bool = False
    """The output head is the embedding matrix and has no tensor of its own."""
    block_length: int | None = None
    """None: every token sees every other."""
    logit_shift: int = 0
    """1: row i - 1 of the network predicts token i (Dream; a converted model may); 0: row i does."""
    experts: ExpertsConfig | None = None
    """Sparse layers; None: every MLP is dense."""
    embedding_name: str = "embed_tokens"
    cond_dim: int = 0
    """Width of the vector that modulates the layers of a DiT."""
    adaln: bool = False
    """Layers of a DiT are modulated at all."""
    clipped_schedule: tuple[float, float] | None = None
    """Least and largest mask rate of BD3-LM's training, stored with the weights; None: not stored."""

    @property
    def eos_token_id(self) -> int:
        return self.eos_token_ids[0]

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


def config_of(module: nn.Module) -> NetworkConfig:
    """The configuration of a network of `FAMILIES`, also through adapters around it."""
    return cast(NetworkConfig, module.config)


_INIT = "model.init"


def read_config(family: str, data: Mapping[str, Any], where: str) -> NetworkConfig:
    """Check a published configuration and keep what shapes the network.

    Source: the released configurations of LLaDA (arXiv:2502.09992), LLaDA-MoE (2509.24389), LLaDA2
    (2512.15745), Dream (2508.15487), SDAR (2510.06303), TraDo (2509.06949), MDLM (2406.07524), BD3-LM
    (2503.09573), and transformers' Qwen2, Qwen3 and Llama.

    Args:
        family: a key of `FAMILIES`.
        data: the JSON object of config.json.
        where: file or recipe key that messages name.

    Raises:
        ModelError: a key is missing, has the wrong type or size, or asks for another architecture.
    """
    source = released(family, data)
    folder = f"use a {source.label} checkpoint with its published config.json, or "
    reader = Reader(data, where, "" if where == _INIT else folder)
    values = reader.read(source.fields)
    _require_neutral(reader, source)
    if source.backbone == "dit":
        values |= _of_dit(values, family)
    values.setdefault("head_dim", values["hidden_size"] // values["num_attention_heads"])
    values.setdefault("logit_shift", source.logit_shift)
    _require_sizes(reader, source, values)
    names = {field.name for field in dataclasses.fields(NetworkConfig)} & values.keys()
    return NetworkConfig(
        **{name: values[name] for name in names if name not in ("rope", "block_length")},
        family=family,
        backbone=source.backbone,
        published=dict(data),
        rope=_rope(reader, source, values),
        rotary_dim=round(values["head_dim"] * values.get("rotated", 1.0)),
        block_length=_block_length(reader, source, values),
        experts=_experts(reader, values),
        embedding_name=source.embedding_name,
    )


def _of_dit(values: Values, family: str) -> Values:
    clipped = None
    if values.get("var_min"):
        clipped = (values["least_rate"], values["largest_rate"])
    return {
        "num_key_value_heads": values["num_attention_heads"],
        "intermediate_size": 4 * values["hidden_size"],
        "adaln": values.get("adaln", family == "mdlm"),
        "clipped_schedule": clipped,
    }


def _require_sizes(reader: Reader, source: Released, values: Values) -> None:
    """Heads share the width, queries share keys and values, and the matrices have a row for every token."""
    width, heads, kv_heads = (
        values[name] for name in ("hidden_size", "num_attention_heads", "num_key_value_heads")
    )
    key = source.fields["num_attention_heads"].key
    stated = "head_dim" in source.fields and source.fields["head_dim"].find(reader.data)
    if (not stated and width % heads) or values["head_dim"] % 2:
        name = source.fields["hidden_size"].key
        raise reader.wrong(key, f"does not split {name} = {width} into heads of even width")
    if heads % kv_heads:
        raise reader.wrong(source.fields["num_key_value_heads"].key, f"does not divide {key} = {heads}")
    rows = values["vocab_size"]
    if values.get("num_tokens", rows) > rows:
        raise reader.wrong("vocab_size", f"exceeds embedding_size = {rows}")


def _experts(reader: Reader, values: Values) -> ExpertsConfig | None:
    if "num_experts" not in values:
        return None
    width: int = values["expert_width"] if "expert_width" in values else values["intermediate_size"]
    experts = ExpertsConfig(
        num_experts=values["num_experts"],
        num_chosen=values["num_chosen"],
        width=width,
        renormalise=bool(values["renormalise"]) and not _is_alone(values),
        shared_width=width * values.get("num_shared", 0),
        num_dense_layers=values.get("num_dense_layers", 0),
        num_groups=values.get("num_groups", 0),
        num_kept_groups=values.get("num_kept_groups", 0),
        scale=float(values.get("router_scale", 1.0)),
    )
    _require_experts(reader, experts, values["num_hidden_layers"])
    return experts


def _is_alone(values: Values) -> bool:
    """LLaDA2's released router leaves the weight of a single chosen expert as it is; Qwen3's makes it 1."""
    return bool("num_groups" in values and values["num_chosen"] == 1)


_MOST_EXPERTS = 2**16
"""In all layers together, far beyond any released model."""


def _require_experts(reader: Reader, experts: ExpertsConfig, layers: int) -> None:
    groups = experts.num_groups
    if experts.num_chosen > experts.num_experts:
        raise reader.wrong("num_experts_per_tok", f"exceeds num_experts = {experts.num_experts}")
    if experts.num_experts * layers > _MOST_EXPERTS:
        raise reader.wrong("num_experts", f"in {layers} layers is more than {_MOST_EXPERTS:,} experts")
    if not groups:
        return
    if experts.num_experts % groups or experts.num_experts < 2 * groups:
        what = f"does not split {experts.num_experts} experts into groups of two or more"
        raise reader.wrong("n_group", what)
    if experts.num_kept_groups > groups:
        raise reader.wrong("topk_group", f"exceeds n_group = {groups}")
    if experts.num_chosen > experts.num_kept_groups * (experts.num_experts // groups):
        raise reader.wrong("num_experts_per_tok", "exceeds the experts of the groups that are kept")


_ROPE_PARAMETERS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor",),
}
"""Supported rotary scalings, with the parameters that each needs."""


def _rope(reader: Reader, source: Released, values: Values) -> dict[str, Any]:
    """Rotary parameters of either spelling: `rope_theta` with `rope_scaling`, or `rope_parameters`."""
    if "rope" not in source.fields:
        return {}
    found = source.fields["rope"].find(reader.data)
    key, stated = found[0] if found else ("rope_scaling", {})
    if not isinstance(stated, Mapping):
        raise reader.wrong(key, "is not an object")
    rope = {name: value for name, value in stated.items() if value is not None}
    rope.setdefault("rope_type", rope.pop("type", "default"))
    rope.pop("type", None)
    known = list(_ROPE_PARAMETERS)[: 1 if source.backbone == "llada" else None]
    if rope["rope_type"] not in known:
        raise reader.wrong(key, f"is not one of the supported types {', '.join(known)}")
    if "rotated" not in values and rope.get("partial_rotary_factor", 1) != 1:
        raise reader.wrong(key, "is not supported: this implementation needs partial_rotary_factor = 1")
    rope.pop("partial_rotary_factor", None)
    for name in _ROPE_PARAMETERS[rope["rope_type"]]:
        if not isinstance(rope.get(name), int | float) or not rope[name] > 0:
            raise reader.wrong(key, f"has no positive {name}, which this type needs")
    return {**rope, "rope_theta": values["rope_theta"]}


def _block_length(reader: Reader, source: Released, values: Values) -> int | None:
    block_length: int | None = values.get("block_length")
    if "attention" not in values:
        return block_length
    if values["attention"] == "block_causal" and block_length is None:
        raise reader.missing(source.fields["block_length"])
    return None if values["attention"] == "full" else block_length


def _require_neutral(reader: Reader, source: Released) -> None:
    """Keys of other architectures leave the network as it is; unknown ones are named.

    Raises:
        ModelError: one does not.
    """
    read = {spelling for field in source.fields.values() for spelling in field.spellings}
    unknown = []
    for key, value in reader.data.items():
        if key == "layer_types" and value and set(map(str, value)) != {"full_attention"}:
            raise reader.wrong(
                key, "is not supported: this implementation needs full_attention in all layers"
            )
        if key in read or value is None:
            continue
        if key in NEUTRAL:
            if value not in NEUTRAL[key]:
                needed = NEUTRAL[key][0] if NEUTRAL[key] else None
                raise reader.wrong(key, f"is not supported: this implementation needs {needed!r}")
        elif key not in HARMLESS and value not in (False, 0, "", [], {}):
            unknown.append(key)
    if unknown:
        warn_of(
            reader.where,
            f"{', '.join(unknown)}: rl4dlm does not know what this means and ignores it. Fix: compare the "
            "model's outputs with those of its released code, or remove the key from config.json if it does "
            "not change the network.",
        )


def warn_of(where: str, message: str) -> None:
    """Say once, about a file, what is unusual and must not pass without a word."""
    warnings.warn_explicit(f"{where}: {message}", ModelWarning, filename=where, lineno=0, registry=_said)


_said: dict[Any, Any] = {}


def made_config(
    family: str,
    init: ModelInit,
    *,
    vocab_size: int,
    mask_id: int,
    eos_id: int,
    pad_id: int,
    block_length: int | None = None,
    logit_shift: int | None = None,
) -> NetworkConfig:
    """The full published configuration of a model made from scratch.

    Args:
        init: sizes, from the recipe; experts are as wide as the MLP would be.
        block_length: of a family that attends in blocks, tokens.
        logit_shift: of a family that has the choice (`a2d`); None: the family's.

    Raises:
        ModelError: the sizes of `model.init` do not fit together.
    """
    source = released(family, {})
    values = {
        "hidden_size": init.d_model,
        "num_hidden_layers": init.n_layers,
        "num_attention_heads": init.n_heads,
        "num_key_value_heads": init.n_kv_heads or init.n_heads,
        "head_dim": init.d_model // init.n_heads,
        "intermediate_size": init.mlp_hidden_size,
        "dense_width": init.mlp_hidden_size,
        "expert_width": init.mlp_hidden_size,
        "num_experts": init.num_experts,
        "num_chosen": init.num_experts_per_tok,
        "max_position_embeddings": init.max_sequence_length,
        "rope_theta": init.rope_theta,
        "num_tokens": vocab_size,
        "vocab_size": vocab_size,
        "mask_token_id": mask_id,
        "eos_token_ids": eos_id,
        "pad_token_id": pad_id,
        "attention": "full" if block_length is None else "block_causal",
        "block_length": block_length,
        "logit_shift": logit_shift,
    }
    config = read_config(family, {**source.written, **write(source.fields, values)}, _INIT)
    require_shift(config, logit_shift, _INIT)
    return config


def require_shift(config: NetworkConfig, logit_shift: int | None, where: str) -> None:
    """A recipe does not read a model's rows in another way than the model was trained with.

    Raises:
        ModelError: it says so.
    """
    if logit_shift in (None, config.logit_shift):
        return
    reason = (
        "was trained with"
        if MARK in config.published
        else f"is of the family {config.family}, which always has"
    )
    raise ModelError(
        f"{where}: the model {reason} logit_shift = {config.logit_shift}, and the recipe says "
        f"model.logit_shift = {logit_shift}. Fix: leave model.logit_shift out, or use another folder."
    )


def convert_config(
    data: Mapping[str, Any], *, mask_id: int, block_length: int | None, logit_shift: int = 0
) -> dict[str, Any]:
    """The config.json of an autoregressive model, marked as a diffusion model.

    `model_type` stays, so that transformers loads the folder with its own class; `is_causal` false makes that
    class attend fully, as a model without blocks does.

    Args:
        mask_id: row of the embedding that stands for a hidden token.
        block_length: None: full attention.
        logit_shift: 1: a token is read off the row before it, as the autoregressive model was trained.
    """
    kind = str(data["model_type"]).removeprefix("a2d-")
    return {
        **marked(data, block_length, logit_shift),
        "model_type": kind,
        "architectures": [ARCHITECTURES[kind]],
        "is_causal": False,
        "mask_token_id": mask_id,
        "vocab_size": max(data["vocab_size"], mask_id + 1),
    }


def marked(data: Mapping[str, Any], block_length: int | None, logit_shift: int) -> dict[str, Any]:
    """A config.json that says how a converted model attends (None: fully) and which row predicts a token."""
    blocks = {"attention": "block_causal", "block_length": block_length}
    attention = {"attention": "full"} if block_length is None else blocks
    return {**data, MARK: {**attention, "logit_shift": logit_shift}}
