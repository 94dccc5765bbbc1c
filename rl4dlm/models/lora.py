"""LoRA by peft: adapters that are trained and synced instead of all weights; the base model is the reference.

Functions take the module itself (`engine.module` of a DeepSpeed engine). Under ZeRO-3 the caller gathers the
parameters around those that read or write them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from rl4dlm.diffusion.seeds import derive_seed
from rl4dlm.errors import ModelError, SyncError
from rl4dlm.models.families import FAMILIES, stored_buffers
from rl4dlm.models.folders import new_folder
from rl4dlm.models.scoring import OutputHead
from rl4dlm.recipe.sections import LoraSettings

if TYPE_CHECKING:
    from peft import PeftModel

    from rl4dlm.models.loading import LoadedModel


_ADAPTER_KEYS = {
    *("peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha", "lora_dropout", "bias"),
    *("target_modules", "inference_mode", "fan_in_fan_out", "init_lora_weights", "modules_to_save"),
}
"""What adapter_config.json says even where it is the default."""


def add_lora(module: nn.Module, settings: LoraSettings, family: str, *, seed: int = 0) -> nn.Module:
    """Put adapters around a model's projections; only they require gradients afterwards.

    The module is changed in place; the result is called exactly as before and gives the same values until the
    adapters are trained (B = 0). Adapters have the dtype of the weights they adapt.

    Args:
        module: a model of `FAMILIES`.
        family: its key; gives the default target modules.
        seed: the run's seed; the adapters' initial values derive from it.

    Raises:
        ModelError: `target_modules` is not a regular expression, matches nothing, or matches the output head.
    """
    from peft import LoraConfig, get_peft_model

    targets = settings.target_modules or FAMILIES[family].lora_targets
    _require_usable_targets(module, targets)
    config = LoraConfig(
        r=settings.r,
        lora_alpha=cast(int, settings.lora_alpha),  # peft divides it by r, and takes a fraction too
        lora_dropout=settings.lora_dropout,
        target_modules=targets,
        bias="none",
        task_type=None,
    )
    adapted = get_peft_model(module, config, autocast_adapter_dtype=False)
    _initialise(adapted, torch.Generator().manual_seed(derive_seed(seed, "lora-init")))
    return adapted.train(module.training)


def _require_usable_targets(module: nn.Module, targets: str) -> None:
    try:
        pattern = re.compile(targets)
    except re.error as error:
        raise ModelError(
            f"trainer.lora.target_modules = {targets!r} is not a regular expression ({error}). "
            "Fix: correct it, or leave it out."
        ) from None
    matched = {name: part for name, part in module.named_modules() if pattern.fullmatch(name)}
    wrong = [
        name
        for name, part in matched.items()
        if isinstance(part, OutputHead) or not isinstance(part, nn.Linear)
    ]
    if wrong:
        raise ModelError(
            f"trainer.lora.target_modules = {targets!r} matches {wrong[0]}, which cannot be adapted "
            "(only the projections inside the blocks can). Fix: match whole paths of these projections."
        )
    if not matched:
        example = next(name for name, part in module.named_modules() if type(part) is nn.Linear)
        raise ModelError(
            f"trainer.lora.target_modules = {targets!r} matches no module. Fix: let it match whole paths "
            f"such as {example}, or leave it out."
        )


@torch.no_grad()
def _initialise(adapted: nn.Module, generator: torch.Generator) -> None:
    """A uniform as peft draws it (Kaiming, a = sqrt(5)), but from our seed; B stays zero."""
    for name, parameter in adapted.named_parameters():
        if ".lora_A." in name:
            bound = 1 / math.sqrt(parameter.shape[1])
            parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))


def _is_adapter(name: str) -> bool:
    return ".lora_" in name


def has_adapters(module: nn.Module) -> bool:
    """Whether `add_lora` has been applied."""
    return any(_is_adapter(name) for name, _ in module.named_parameters())


def trainable_state(module: nn.Module) -> dict[str, Tensor]:
    """What training changes and sync sends: the adapters, or every parameter of a model without adapters.

    Returns:
        Detached tensors by parameter name; they share memory with the module.
    """
    adapters_only = has_adapters(module)
    return {
        name: parameter.detach()
        for name, parameter in module.named_parameters()
        if _is_adapter(name) or not adapters_only
    }


@torch.no_grad()
def load_trainable_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy what `trainable_state` of an equally built module gave, from any device or float dtype.

    Raises:
        SyncError: names or shapes differ.
    """
    own = trainable_state(module)
    if own.keys() != state.keys():
        odd = sorted(own.keys() ^ state.keys())
        raise SyncError(f"tensor {odd[0]} is on one side only ({len(odd)} such): the two models differ.")
    for name, tensor in own.items():
        if tensor.shape != state[name].shape:
            raise SyncError(
                f"tensor {name}: shape {list(state[name].shape)} came, {list(tensor.shape)} is here."
            )
        tensor.copy_(state[name])


@torch.no_grad()
def merged_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """All weights under their published names, adapters merged in; the module itself is not changed.

    Returns:
        Detached tensors: those without an adapter share memory with the module; merged ones are new, added in
        float32 and rounded once to the weight's dtype.
    """
    state = {
        _published_name(name): parameter.detach()
        for name, parameter in module.named_parameters()
        if not _is_adapter(name)
    }
    state |= {_published_name(name): buffer.detach() for name, buffer in stored_buffers(module).items()}
    for path, layer in _adapted_layers(module):
        name = _published_name(f"{path}.weight")
        state[name] = _merge(layer, state[name])
    return state


def merge_into(
    loaded: LoadedModel, adapters: Mapping[str, Tensor], settings: LoraSettings
) -> dict[str, Tensor]:
    """Weights with adapters merged in that were trained on a quantised copy of the same model.

    Args:
        loaded: the model, not quantised; it is changed.
        adapters: as `trainable_state` gives them.
        settings: the adapters'.

    Raises:
        SyncError: the adapters are not of this model.
    """
    adapted = add_lora(loaded.module, settings, loaded.family)
    load_trainable_state(adapted, adapters)
    return merged_state_dict(adapted)


def _published_name(name: str) -> str:
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def _adapted_layers(module: nn.Module) -> Iterator[tuple[str, Any]]:
    return ((name, part) for name, part in module.named_modules() if hasattr(part, "lora_A"))


def _merge(layer: Any, weight: Tensor) -> Tensor:
    total = weight.float()
    for adapter in layer.active_adapters:
        update = layer.lora_B[adapter].weight.float() @ layer.lora_A[adapter].weight.float()
        total = total + layer.scaling[adapter] * update
    return total.to(weight.dtype)


def reference(module: nn.Module) -> AbstractContextManager[None]:
    """A context in which adapters are disabled: the model is its frozen base.

    Raises:
        ValueError: the model has no adapters (full fine-tuning needs a second model as reference).
    """
    if not has_adapters(module):
        raise ValueError("a model without adapters has no reference inside itself")
    return cast("PeftModel", module).disable_adapter()


def save_adapter(module: nn.Module, folder: str | Path) -> Path:
    """Write the adapters in peft's format (adapter_config.json, adapter_model.safetensors).

    Args:
        folder: must not exist, or be empty.

    Raises:
        ModelError: the folder is not empty.
        StorageError: the disk is full or refuses.
    """
    target = Path(folder).expanduser()
    with new_folder(target) as partial:
        cast("PeftModel", module).save_pretrained(str(partial), save_embedding_layers=False)
        (partial / "README.md").unlink(missing_ok=True)  # peft's form, with nothing filled in
        _make_public(partial / "adapter_config.json")
    return target


def _make_public(file: Path) -> None:
    """Leave in adapter_config.json what says something and what any version of peft reads.

    peft records the Python class of the base model, which is nobody else's, and every option of its own
    version, which older ones refuse.
    """
    from peft import LoraConfig

    defaults = LoraConfig().to_dict()
    written = json.loads(file.read_text(encoding="utf-8"))
    kept = {key: v for key, v in written.items() if key in _ADAPTER_KEYS or v != defaults.get(key)}
    kept.pop("auto_mapping", None)
    file.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")
