"""Plain Hugging Face folders: published tensor names and configuration, safetensors, tokenizer files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from rl4dlm.models.families import FAMILIES, Family, stored_buffers, tensor_shapes
from rl4dlm.models.folders import new_folder
from rl4dlm.models.loading import LoadedModel
from rl4dlm.models.lora import merged_state_dict
from rl4dlm.models.network_config import NetworkConfig, config_of
from rl4dlm.models.tokenizers import save_tokenizer
from rl4dlm.models.weights import require_same_tensors, write_shards


def save(
    model: LoadedModel | nn.Module,
    folder: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    state_dict: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> Path:
    """Write a folder that `load` and published evaluation code read; loading gives bit-equal logits.

    The folder is written beside its place and renamed when complete. Adapters are merged into the weights.

    Args:
        model: the model, its module, or a PeftModel around it (`engine.module` of a DeepSpeed engine).
        folder: must not exist, or be empty.
        state_dict: tensors by published name, where the module's own are sharded; None: the module's.
        dtype: of the files; None: as the tensors are.
        max_shard_bytes: largest file; a single larger tensor still has one file.

    Raises:
        ModelError: the folder is not empty, or `state_dict` is not that of this model.
        StorageError: the disk is full or refuses.
    """
    module = model.module if isinstance(model, LoadedModel) else model
    config = config_of(module)
    family = FAMILIES[config.family]
    tensors = dict(merged_state_dict(module) if state_dict is None else state_dict)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    require_same_tensors(tensor_shapes(family, config), shapes, {"": "state_dict"})
    if dtype is not None:
        exact = stored_buffers(module)
        tensors = {name: t if name in exact else t.to(dtype) for name, t in tensors.items()}
    target = Path(folder).expanduser()
    with new_folder(target) as partial:
        write_shards(tensors, partial, max_shard_bytes=max_shard_bytes)
        save_tokenizer(tokenizer, partial)
        saved_dtype = next(iter(tensors.values())).dtype
        _write_json(partial / "config.json", _published_config(family, config.to_dict(), saved_dtype))
        _write_json(partial / "generation_config.json", _generation_config(config, tokenizer))
    return target


def _published_config(family: Family, data: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    if family.architecture is not None:
        data["architectures"] = [family.architecture]
    data["torch_dtype"] = str(dtype).removeprefix("torch.")
    data.pop("dtype", None)  # the newer spelling of the same field
    data.pop("_name_or_path", None)  # where somebody had the model
    if "auto_map" in data:
        data["auto_map"] = _reachable(data["auto_map"], family.published_code)
    return data


def _reachable(auto_map: Mapping[str, str], repository: str | None) -> dict[str, str]:
    """Entries that say which repository has their Python files, as the folder holds none; others are left
    out where no repository is known."""
    named = {
        role: target if "--" in target else f"{repository}--{target}" for role, target in auto_map.items()
    }
    return {role: target for role, target in named.items() if repository or "--" in auto_map[role]}


def _generation_config(config: NetworkConfig, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    ends = config.eos_token_ids
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": ends[0] if len(ends) == 1 else list(ends),
        "pad_token_id": config.pad_token_id,
    }
    return {name: value for name, value in ids.items() if value is not None}


def _write_json(file: Path, data: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")
