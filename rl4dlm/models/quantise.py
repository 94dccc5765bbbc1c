"""Projections of the layers in 8 or 4 bits by bitsandbytes: rollouts, and the frozen base of adapters.

Source: LLM.int8 (arXiv:2208.07339); NF4 with double quantisation, as d1 trains LLaDA (arXiv:2504.12216).
Embedding, head, norms, routers and what a DiT modulates with stay as they are. Quality on
diffusion models is not published for either, and was not measured here.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from rl4dlm.errors import ModelError
from rl4dlm.models.base import FamilyModel

Quantization = Literal["none", "8bit", "4bit"]
_KEPT = re.compile(r".*(adaLN_modulation|sigma_map).*")


def projections(module: nn.Module) -> dict[str, nn.Linear]:
    """What is quantised, by path: plain linear layers, which the head is not."""
    return {
        name: part
        for name, part in module.named_modules()
        if type(part) is nn.Linear and not _KEPT.fullmatch(name)
    }


def require_quantisable(quantization: Quantization, device: str) -> None:
    """bitsandbytes is here, and a GPU to run its kernels.

    Raises:
        ModelError: one is not.
    """
    if quantization == "none":
        return
    if device == "cpu":
        raise ModelError(
            f"model.quantization = {quantization} needs a GPU, and the model goes on the CPU. "
            "Fix: set cluster.gpus_per_trainer and cluster.gpus_per_rollout_worker, or "
            "model.quantization=none."
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            f"model.quantization = {quantization} needs the package bitsandbytes, which is not installed. "
            "Fix: `pip install bitsandbytes`, or set model.quantization=none."
        )


def assemble_quantised(
    quantization: Quantization, device: str, dtype: torch.dtype
) -> Callable[..., nn.Module]:
    """How `load` puts tensors into a network whose projections are quantised as they are read.

    Args:
        device: where the model goes.
        dtype: of what is not quantised, and of the products.
    """

    def assemble(
        build: Callable[[], nn.Module], names: Sequence[str], read: Callable[[str], Tensor]
    ) -> nn.Module:
        with torch.device("meta"):
            module = build()
            small = {name: _replace(module, name, quantization, dtype) for name in projections(module)}
        for name in names:
            owner, _, leaf = name.rpartition(".")
            if owner in small and leaf == "weight":
                small[owner].weight = _quantised(read(name), quantization, small[owner], device)
                continue
            holder, tensor = module.get_submodule(owner), read(name)
            setattr(holder, leaf, tensor if leaf in holder._buffers else nn.Parameter(tensor))
        cast(FamilyModel, module).tie_weights()
        return module

    return assemble


def _replace(module: nn.Module, name: str, quantization: Quantization, dtype: torch.dtype) -> Any:
    import bitsandbytes as bnb

    plain = module.get_submodule(name)
    sizes, bias = (plain.in_features, plain.out_features), plain.bias is not None
    if quantization == "4bit":
        small = bnb.nn.Linear4bit(*sizes, bias=bias, compute_dtype=dtype, quant_type="nf4")
    else:
        small = bnb.nn.Linear8bitLt(*sizes, bias=bias, has_fp16_weights=False)
    owner, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(owner), leaf, small)
    return small


def _quantised(weight: Tensor, quantization: Quantization, small: Any, device: str) -> nn.Parameter:
    """Quantised when it moves to the device: from the CPU, as bitsandbytes expects it."""
    import bitsandbytes as bnb

    weight = weight.cpu()
    if quantization == "4bit":
        packed = bnb.nn.Params4bit(
            weight, requires_grad=False, quant_type="nf4", compress_statistics=True, module=small
        )
    else:
        packed = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    return packed.to(device)
