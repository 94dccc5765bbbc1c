"""The families of models that the toolkit implements, and how a config.json says which one it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rl4dlm.errors import ModelError
from rl4dlm.models.decoder import Decoder, initialise_decoder
from rl4dlm.models.dit import DiT, initialise_dit
from rl4dlm.models.llada import LLaDA, initialise_llada
from rl4dlm.models.network_config import ARCHITECTURES, MARK, NetworkConfig, read_config


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
    build: Callable[[NetworkConfig], nn.Module]
    initialise: Callable[[Any, torch.Generator], None]
    lora_targets: str
    """Regular expression on whole module paths; never matches the output head."""
    mask_tokens: tuple[str, ...]
    """Spellings of the mask token, where a tokenizer has it without declaring it."""
    stop_tokens: tuple[str, ...]
    """Tokens that end the text besides end-of-text, where the vocabulary has them."""
    mask_id: int | None = None
    """Of the released models, for a folder where neither config.json nor the tokenizer says it."""
    eos_id: int | None = None
    """Likewise."""
    tokenizer_class: str | None = None
    """Class of transformers that makes the tokenizer of vocab.json and merges.txt, where no tokenizer.json
    is."""

    def read_config(self, data: Mapping[str, Any], where: str) -> NetworkConfig:
        """See `rl4dlm.models.network_config.read_config`."""
        return read_config(self.name, data, where)


_DECODER_TARGETS = r".*\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
_DIT_TARGETS = r".*blocks\.\d+\.(attn_qkv|attn_out|mlp\.0|mlp\.2)"
_QWEN_STOPS = ("<|im_end|>", "<|endoftext|>")

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            name="llada",
            model_types=("llada",),
            architecture="LLaDAModelLM",
            published_code="GSAI-ML/LLaDA-8B-Instruct",
            build=LLaDA,
            initialise=initialise_llada,
            lora_targets=(
                r"model\.transformer\.blocks\.\d+\.(q_proj|k_proj|v_proj|attn_out|ff_proj|up_proj|ff_out)"
            ),
            mask_tokens=("<|mdm_mask|>",),
            stop_tokens=("<|eot_id|>",),
            mask_id=126336,
            eos_id=126081,
        ),
        Family(
            name="llada_moe",
            model_types=("llada_moe", "lladamoe"),
            architecture=None,
            published_code="inclusionAI/LLaDA-MoE-7B-A1B-Instruct",
            build=Decoder,
            initialise=initialise_decoder,
            lora_targets=r".*self_attn\.(q|k|v|o)_proj",
            mask_tokens=("<|mask|>",),
            stop_tokens=("<|role_end|>",),
            mask_id=156895,
            eos_id=156892,
        ),
        Family(
            name="llada2",
            model_types=("llada2_moe", "llada21_moe"),
            architecture="LLaDA2MoeModelLM",
            published_code="inclusionAI/LLaDA2.0-mini",
            build=Decoder,
            initialise=initialise_decoder,
            lora_targets=(
                r".*\.layers\.\d+\.(attention\.(query_key_value|dense)|"
                r"mlp\.(shared_experts\.)?(gate|up|down)_proj)"
            ),
            mask_tokens=("<|mask|>",),
            stop_tokens=("<|role_end|>",),
            mask_id=156895,
            eos_id=156892,
        ),
        Family(
            name="dream",
            model_types=("Dream", "dream"),
            architecture="DreamModel",
            published_code="Dream-org/Dream-v0-Instruct-7B",
            build=Decoder,
            initialise=initialise_decoder,
            lora_targets=_DECODER_TARGETS,
            mask_tokens=("<|mask|>",),
            stop_tokens=_QWEN_STOPS,
            mask_id=151666,
            eos_id=151643,
            tokenizer_class="Qwen2Tokenizer",
        ),
        Family(
            name="sdar",
            model_types=("sdar", "sdar_moe"),
            architecture=None,
            published_code="JetLM/SDAR-8B-Chat",
            build=Decoder,
            initialise=initialise_decoder,
            lora_targets=_DECODER_TARGETS,
            mask_tokens=("<|MASK|>", "<MASK>"),
            stop_tokens=_QWEN_STOPS,
            mask_id=151669,
            eos_id=151643,
            tokenizer_class="Qwen2Tokenizer",
        ),
        Family(
            name="a2d",
            model_types=("qwen2", "qwen3", "llama", "a2d-qwen2", "a2d-qwen3", "a2d-llama"),
            architecture=None,
            published_code=None,
            build=Decoder,
            initialise=initialise_decoder,
            lora_targets=_DECODER_TARGETS,
            mask_tokens=("<|mask|>",),
            stop_tokens=(*_QWEN_STOPS, "<|eot_id|>", "<|end_of_text|>"),
            tokenizer_class="Qwen2Tokenizer",
        ),
        Family(
            name="mdlm",
            model_types=("mdlm",),
            architecture="MDLM",
            published_code="kuleshov-group/mdlm-owt",
            build=DiT,
            initialise=initialise_dit,
            lora_targets=_DIT_TARGETS,
            mask_tokens=("<|mask|>",),
            stop_tokens=("<|endoftext|>",),
            tokenizer_class="GPT2Tokenizer",
        ),
        Family(
            name="bd3lm",
            model_types=("bd3lm",),
            architecture="BD3LM",
            published_code="kuleshov-group/bd3lm-owt-block_size4",
            build=DiT,
            initialise=initialise_dit,
            lora_targets=_DIT_TARGETS,
            mask_tokens=("<|mask|>",),
            stop_tokens=("<|endoftext|>",),
            tokenizer_class="GPT2Tokenizer",
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
    if found is FAMILIES["llada"] and data.get("num_experts"):
        found = FAMILIES["llada_moe"]  # published under LLaDA's own model_type
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


def skeleton(family: Family, config: NetworkConfig) -> nn.Module:
    """The network without storage."""
    with torch.device("meta"):
        return family.build(config)


def parameter_shapes(family: Family, config: NetworkConfig) -> dict[str, tuple[int, ...]]:
    """Published names and shapes of what is trained; a tied head has no entry."""
    module = skeleton(family, config)
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


def stored_buffers(module: nn.Module) -> dict[str, Tensor]:
    """What is stored with the weights and never trained: a router's bias, rotary frequencies of a DiT."""
    stored = module.state_dict().keys()
    return {name: buffer for name, buffer in module.named_buffers() if name in stored}


def tensor_shapes(family: Family, config: NetworkConfig) -> dict[str, tuple[int, ...]]:
    """Published names and shapes of all tensors that a checkpoint holds."""
    module = skeleton(family, config)
    tensors = {**dict(module.named_parameters()), **stored_buffers(module)}
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


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
