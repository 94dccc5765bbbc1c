"""The families of models that the toolkit implements, and how a config.json says which one it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rl4dlm.errors import ModelError
from rl4dlm.models.decoder import Decoder, initialise_decoder
from rl4dlm.models.decoder_config import (
    ARCHITECTURES,
    MARK,
    DecoderConfig,
    a2d_config_for,
    dream_config_for,
    read_a2d_config,
    read_dream_config,
    read_sdar_config,
    sdar_config_for,
)
from rl4dlm.models.llada import LLaDA, initialise_llada
from rl4dlm.models.llada_config import LLaDAConfig, llada_config_for, read_llada_config

Config = LLaDAConfig | DecoderConfig
"""What a family's reader returns: sizes and special ids under their usual Hugging Face names."""


@dataclass(frozen=True)
class Family:
    """Everything that differs between architectures; to add one, write its module and a row in `FAMILIES`."""

    name: str
    """Key of `FAMILIES`, and the name in `model.family`."""
    model_types: tuple[str, ...]
    """`model_type` in config.json."""
    architecture: str | None
    """Class name that published code loads the weights with; None: what the folder's config.json says."""
    published_code: str | None
    """Hub repository with that class, for `auto_map` entries that name a file without its repository."""
    read_config: Callable[[Mapping[str, Any], str], Config]
    config_for: Callable[..., Config]
    """From a recipe's `model.init` and the tokenizer's ids."""
    build: Callable[[Config], nn.Module]
    initialise: Callable[[Any, torch.Generator], None]
    lora_targets: str
    """Regular expression on whole module paths; never matches the output head."""
    mask_tokens: tuple[str, ...]
    """Spellings of the mask token, where a tokenizer has it without declaring it."""
    stop_tokens: tuple[str, ...]
    """Tokens that end the text besides end-of-text, where the vocabulary has them."""


_DECODER_TARGETS = r".*\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
_QWEN_STOPS = ("<|im_end|>", "<|endoftext|>")

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            name="llada",
            model_types=("llada",),
            architecture="LLaDAModelLM",
            published_code="GSAI-ML/LLaDA-8B-Instruct",
            read_config=read_llada_config,
            config_for=llada_config_for,
            build=LLaDA,
            initialise=initialise_llada,
            lora_targets=(
                r"model\.transformer\.blocks\.\d+\.(q_proj|k_proj|v_proj|attn_out|ff_proj|up_proj|ff_out)"
            ),
            mask_tokens=("<|mdm_mask|>",),
            stop_tokens=("<|eot_id|>",),
        ),
        Family(
            name="dream",
            model_types=("Dream",),
            architecture="DreamModel",
            published_code="Dream-org/Dream-v0-Instruct-7B",
            read_config=read_dream_config,
            config_for=dream_config_for,
            build=Decoder,
            initialise=initialise_decoder,
            lora_targets=_DECODER_TARGETS,
            mask_tokens=("<|mask|>",),
            stop_tokens=_QWEN_STOPS,
        ),
        Family(
            name="sdar",
            model_types=("sdar",),
            architecture="SDARForCausalLM",
            published_code="JetLM/SDAR-8B-Chat",
            read_config=read_sdar_config,
            config_for=sdar_config_for,
            build=Decoder,
            initialise=initialise_decoder,
            lora_targets=_DECODER_TARGETS,
            mask_tokens=("<|MASK|>", "<MASK>"),
            stop_tokens=_QWEN_STOPS,
        ),
        Family(
            name="a2d",
            model_types=("qwen2", "qwen3", "llama", "a2d-qwen2", "a2d-qwen3", "a2d-llama"),
            architecture=None,
            published_code=None,
            read_config=read_a2d_config,
            config_for=a2d_config_for,
            build=Decoder,
            initialise=initialise_decoder,
            lora_targets=_DECODER_TARGETS,
            mask_tokens=("<|mask|>",),
            stop_tokens=(*_QWEN_STOPS, "<|eot_id|>", "<|end_of_text|>"),
        ),
    )
}
_BY_MODEL_TYPE = {kind: family for family in FAMILIES.values() for kind in family.model_types}


def find_family(data: Mapping[str, Any], family: str, where: str) -> Family:
    """The family that a config.json belongs to.

    Args:
        data: the JSON object.
        family: a key of `FAMILIES`, or `auto` to follow `model_type`.
        where: file that messages name.

    Raises:
        ModelError: the type is missing or unknown, is not the family that the recipe names, or is an
            autoregressive model that nobody asked to convert.
    """
    model_type = data.get("model_type")
    found = _BY_MODEL_TYPE.get(model_type) if isinstance(model_type, str) else None
    if found is None:
        known = ", ".join(sorted(FAMILIES))
        raise ModelError(
            f"{where}: model_type = {model_type!r} is not a family that rl4dlm implements ({known}). "
            "Fix: use a checkpoint of one of these families."
        )
    if family not in ("auto", found.name):
        raise ModelError(
            f"{where}: model_type = {model_type!r}, but the recipe says model.family = {family!r}. "
            f"Fix: set model.family to auto or {found.name}."
        )
    if family == "auto" and is_autoregressive(data):
        raise ModelError(
            f"{where}: model_type = {model_type!r} is an autoregressive model. Fix: set model.family=a2d to "
            "make a diffusion model of it (which must be trained before it is of use), or use another folder."
        )
    return found


def is_autoregressive(data: Mapping[str, Any]) -> bool:
    """Whether a config.json of the family `a2d` is that of a model that was not converted yet."""
    return data.get("model_type") in ARCHITECTURES and MARK not in data


def parameter_shapes(family: Family, config: Config) -> dict[str, tuple[int, ...]]:
    """Published tensor names and shapes, from a network without storage; a tied head has no entry."""
    with torch.device("meta"):
        module = family.build(config)
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


def parameter_count(data: Mapping[str, Any]) -> int:
    """Parameters of the network that a config.json describes.

    Args:
        data: the JSON object with its published fields.

    Raises:
        ModelError: the configuration cannot be used.
    """
    family = find_family(data, "auto", "config.json")
    shapes = parameter_shapes(family, family.read_config(data, "config.json"))
    return sum(torch.Size(shape).numel() for shape in shapes.values())
