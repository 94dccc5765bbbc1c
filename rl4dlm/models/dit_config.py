"""Configurations of MDLM and BD3-LM under their published field names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rl4dlm.models.fields import Fields
from rl4dlm.recipe.sections import ModelInit


@dataclass(frozen=True)
class DiTConfig:
    """What shapes a DiT over tokens: fields have their published names, properties Hugging Face's usual ones.

    Example: `read_bd3lm_config(json.loads(text), "config.json").block_length`.
    """

    family: str
    """`mdlm` or `bd3lm`."""
    hidden_dim: int
    n_blocks: int
    n_heads: int
    cond_dim: int
    """Width of the vector that modulates the layers."""
    model_length: int
    """Longest sequence, tokens."""
    vocab_size: int
    """Rows of the embedding and of the projection; the last one is the mask."""
    adaln: bool
    """Layers are modulated at all."""
    clipped_schedule: tuple[float, float] | None
    """Least and largest mask rate of BD3-LM's training, stored with the weights; None: not stored."""
    mask_token_id: int
    eos_token_id: int
    pad_token_id: int
    block_length: int | None
    """None: every token sees every other (MDLM)."""
    published: Mapping[str, Any]
    """The whole JSON object, for writing back."""
    logit_shift: int = 0
    """Row i of the logits scores token i."""
    tie_word_embeddings: bool = False

    @property
    def hidden_size(self) -> int:
        return self.hidden_dim

    @property
    def num_hidden_layers(self) -> int:
        return self.n_blocks

    @property
    def num_attention_heads(self) -> int:
        return self.n_heads

    @property
    def num_key_value_heads(self) -> int:
        return self.n_heads

    @property
    def head_dim(self) -> int:
        return self.hidden_dim // self.n_heads

    @property
    def active_mlp_width(self) -> int:
        return 4 * self.hidden_dim

    @property
    def max_position_embeddings(self) -> int:
        return self.model_length

    @property
    def embedding_size(self) -> int:
        return self.vocab_size

    def to_dict(self) -> dict[str, Any]:
        """The published JSON object."""
        return dict(self.published)


def read_mdlm_config(data: Mapping[str, Any], where: str) -> DiTConfig:
    """MDLM: full attention, always modulated.

    Source: arXiv:2406.07524 and its published wrapper (specs: models 7), which names no special ids: the mask
    is the last row, end of text the one before it.

    Raises:
        ModelError: a key is missing, has the wrong type, or asks for another architecture.
    """
    fields = Fields(data, where, "MDLM")
    return _read(fields, "mdlm", block_length=None, adaln=True, clipped=None)


def read_bd3lm_config(data: Mapping[str, Any], where: str) -> DiTConfig:
    """BD3-LM: attention in blocks of `block_size`, modulated or not.

    Source: arXiv:2503.09573 and its published wrapper (specs: models 7).

    Raises:
        ModelError: as `read_mdlm_config`.
    """
    fields = Fields(data, where, "BD3-LM")
    fields.require({"causal": False, "cross_attn": True})
    clipped = None
    if fields.flag("var_min"):
        clipped = (fields.number("sampling_eps_min"), fields.number("sampling_eps_max"))
    block_length = fields.integer("block_size")
    return _read(fields, "bd3lm", block_length=block_length, adaln=fields.flag("adaln"), clipped=clipped)


def _read(
    fields: Fields,
    family: str,
    *,
    block_length: int | None,
    adaln: bool,
    clipped: tuple[float, float] | None,
) -> DiTConfig:
    fields.require({"time_conditioning": False})
    width, rows = fields.integer("hidden_dim"), fields.integer("vocab_size")
    heads = fields.integer("n_heads")
    if width % heads or width // heads % 2:
        raise fields.wrong("n_heads", f"does not split hidden_dim = {width} into heads of even width")
    defaults = {"mask_token_id": rows - 1, "eos_token_id": rows - 2}
    ids = Fields({**defaults, **fields.data}, fields.where, fields.label)
    eos = ids.token("eos_token_id", rows)
    return DiTConfig(
        family=family,
        hidden_dim=width,
        n_blocks=fields.integer("n_blocks"),
        n_heads=heads,
        cond_dim=fields.integer("cond_dim"),
        model_length=fields.integer("model_length"),
        vocab_size=rows,
        adaln=adaln,
        clipped_schedule=clipped,
        mask_token_id=ids.token("mask_token_id", rows),
        eos_token_id=eos,
        pad_token_id=ids.token("pad_token_id", rows) if ids.data.get("pad_token_id") is not None else eos,
        block_length=block_length,
        published=dict(fields.data),
    )


def _sizes(init: ModelInit, vocab_size: int) -> dict[str, Any]:
    """Fields that both share, from a recipe's `model.init`; the MLP is four times the width."""
    return {
        "hidden_dim": init.d_model,
        "n_blocks": init.n_layers,
        "n_heads": init.n_heads,
        "cond_dim": 32,
        "model_length": init.max_sequence_length,
        "vocab_size": vocab_size,
        "dropout": 0.0,
        "time_conditioning": False,
    }


def mdlm_config_for(
    init: ModelInit, *, vocab_size: int, mask_id: int, eos_id: int, pad_id: int, block_length: None = None
) -> DiTConfig:
    """The configuration of an MDLM made from scratch.

    Raises:
        ModelError: the sizes of `model.init` do not fit together.
    """
    ids = {"mask_token_id": mask_id, "eos_token_id": eos_id, "pad_token_id": pad_id}
    data = {"model_type": "mdlm", "architectures": ["MDLM"], **_sizes(init, vocab_size), **ids}
    return read_mdlm_config(data, "model.init")


def bd3lm_config_for(
    init: ModelInit, *, vocab_size: int, mask_id: int, eos_id: int, pad_id: int, block_length: int
) -> DiTConfig:
    """The configuration of a BD3-LM made from scratch, without modulation, as the OpenWebText models are.

    Raises:
        ModelError: the sizes of `model.init` do not fit together.
    """
    data = {
        "model_type": "bd3lm",
        "architectures": ["BD3LM"],
        **_sizes(init, vocab_size),
        "block_size": block_length,
        "adaln": False,
        "attn_backend": "sdpa",
        "causal": False,
        "cross_attn": True,
        "var_min": True,
        "sampling_eps_min": 1e-3,
        "sampling_eps_max": 0.999,
        "mask_token_id": mask_id,
        "eos_token_id": eos_id,
        "pad_token_id": pad_id,
    }
    return read_bd3lm_config(data, "model.init")
