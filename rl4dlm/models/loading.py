"""Models from folders, from the hub and from scratch, with their tokenizers and the facts both agree on."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from rl4dlm.diffusion.seeds import derive_seed
from rl4dlm.errors import ModelError
from rl4dlm.models.base import FamilyModel
from rl4dlm.models.families import FAMILIES, Family, skeleton
from rl4dlm.models.folder_facts import OpenFolder, open_folder
from rl4dlm.models.folders import find_folder, headers_of
from rl4dlm.models.memory import free_memory
from rl4dlm.models.network_config import NetworkConfig, config_of, made_config
from rl4dlm.models.quantise import Quantization, assemble_quantised, projections, require_quantisable
from rl4dlm.models.weights import read_headers
from rl4dlm.recipe.sections import ModelConfig, ModelInit
from rl4dlm.types import Denoiser, DenoiserSpec

Assemble = Callable[[Callable[[], nn.Module], Sequence[str], Callable[[str], Tensor]], nn.Module]
"""Makes a network of: what builds it, the names of its tensors, and what reads one of them."""


@dataclass(frozen=True)
class LoadedModel:
    """A network with its tokenizer and the ids that samplers, losses and ratios must agree on."""

    module: nn.Module
    """Callable as `rl4dlm.types.Denoiser` says; in eval mode."""
    tokenizer: PreTrainedTokenizerBase
    spec: DenoiserSpec
    family: str
    source: Path | None
    """Folder that the weights came from; None for a model made from scratch."""


@dataclass(frozen=True)
class ModelFacts:
    """What a dry run needs to know about a model; no weight is read for it."""

    family: str
    num_parameters: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_size: int
    vocab_size: int
    """Rows of the embedding matrix."""
    max_length: int
    """Longest prompt and completion together, tokens."""
    bytes_on_disk: int
    """Bytes of all tensors in their files; 0 for a model that has none."""
    dtype: str
    """The dtype that most bytes have: `bfloat16`, `float32`, ..."""
    adapted_width: int = 0
    """Inputs and outputs of all projections that adapters go on by default: LoRA trains r times as many."""
    num_experts: int = 0
    """Experts of a sparse layer; 0 for a dense model."""
    num_quantisable: int = 0
    """Parameters of the projections that `model.quantization` quantises."""


def load(
    path: str | Path,
    *,
    family: str = "auto",
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    trust_remote_code: bool = False,
    block_length: int | None = None,
    logit_shift: int | None = None,
    mask_token: str | None = None,
    max_length: int | None = None,
    quantization: Quantization = "none",
    assemble: Assemble | None = None,
) -> LoadedModel:
    """Load a model in Hugging Face layout; its tensors must be exactly those that config.json asks for.

    Names and shapes are checked from the files' headers before any weight is read; tensors are then read one
    by one, so that memory holds the model once.

    Args:
        path: local folder, or `owner/name` on the hub.
        family: a key of `FAMILIES`, or `auto` to follow `model_type` of config.json. `a2d` makes a diffusion
            model of an autoregressive checkpoint.
        dtype: of all parameters.
        device: where they go.
        trust_remote_code: let the tokenizer run code of the folder. The model itself never does.
        block_length: where config.json does not say it; None for full attention of a converted checkpoint.
        logit_shift: 1: a converted model reads a token off the row before it; None: as config.json says, and
            where a checkpoint is converted see `rl4dlm.models.conversion.converted`.
        mask_token: the token, or its id in digits, that stands for a hidden position, where neither
            config.json nor the tokenizer says it.
        max_length: tokens that positions must reach beyond those of config.json, by NTK-scaled rotary angles;
            None: as published.
        quantization: of the layers' projections, by bitsandbytes on a GPU; such a model cannot be saved.
        assemble: puts the tensors into the network in another way than whole on `device`.

    Raises:
        ModelError: anything is wrong with the folder, its configuration, tensors or tokenizer.
    """
    require_quantisable(quantization, device)
    folder = find_folder(path, weights=True, trust_remote_code=trust_remote_code)
    opened = open_folder(
        folder,
        family=family,
        block_length=block_length,
        logit_shift=logit_shift,
        mask_token=mask_token,
        max_length=max_length,
        trust_remote_code=trust_remote_code,
    )
    headers = read_headers(folder)
    opened = opened.told_by(headers)
    opened.require_tensors(headers)
    tokenizer = opened.tokenizer()
    spec = _spec_of(opened, tokenizer)
    reader = opened.reader(headers, device=device, dtype=dtype)
    if quantization != "none":
        assemble = assemble_quantised(quantization, device, dtype)
    module = (assemble or assemble_whole)(lambda: opened.kind.build(opened.config), reader.names, reader.read)
    cast(FamilyModel, module).forbid(spec.forbidden_ids)
    return LoadedModel(module.eval(), tokenizer, spec, opened.kind.name, folder)


def assemble_whole(
    build: Callable[[], nn.Module], names: Sequence[str], read: Callable[[str], Tensor]
) -> nn.Module:
    """The network with every tensor as it is read, and no storage before that."""
    with torch.device("meta"):
        module = build()
    for name in names:
        set_tensor(module, name, read(name))
    cast(FamilyModel, module).tie_weights()
    return module


def set_tensor(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Replace a parameter or buffer without storage."""
    owner, _, leaf = name.rpartition(".")
    holder = module.get_submodule(owner)
    setattr(holder, leaf, tensor if leaf in holder._buffers else nn.Parameter(tensor))


def inspect(
    path: str | Path,
    *,
    family: str = "auto",
    trust_remote_code: bool = False,
    block_length: int | None = None,
    logit_shift: int | None = None,
    mask_token: str | None = None,
    max_length: int | None = None,
) -> ModelFacts:
    """Facts about a model folder from config.json and file headers, with the same errors as `load`.

    For a hub name only configuration and tokenizer files are downloaded. The tokenizer is opened only where a
    checkpoint is converted: `load_tokenizer` does that.

    Raises:
        ModelError: as `load`.
    """
    folder = find_folder(path, weights=False, trust_remote_code=trust_remote_code)
    opened = open_folder(
        folder,
        family=family,
        block_length=block_length,
        logit_shift=logit_shift,
        mask_token=mask_token,
        max_length=max_length,
        trust_remote_code=trust_remote_code,
    )
    headers = headers_of(path, folder)
    opened = opened.told_by(headers)
    opened.require_tensors(headers)
    by_dtype: Counter[torch.dtype] = Counter()
    for header in headers.values():
        by_dtype[header.torch_dtype] += header.num_bytes
    dtype = by_dtype.most_common(1)[0][0]
    return _facts(opened.kind, opened.skeleton, bytes_on_disk=by_dtype.total(), dtype=dtype)


def describe(loaded: LoadedModel) -> ModelFacts:
    """The same facts about a model in memory; `bytes_on_disk` is 0."""
    dtype = next(loaded.module.parameters()).dtype
    return _facts(FAMILIES[loaded.family], loaded.module, bytes_on_disk=0, dtype=dtype)


def load_tokenizer(
    path: str | Path,
    *,
    family: str = "auto",
    trust_remote_code: bool = False,
    block_length: int | None = None,
    logit_shift: int | None = None,
    mask_token: str | None = None,
    max_length: int | None = None,
) -> tuple[PreTrainedTokenizerBase, DenoiserSpec]:
    """Tokenizer and special ids of a model folder, checked against each other, without its weights.

    Raises:
        ModelError: the tokenizer cannot be read or disagrees with config.json.
    """
    folder = find_folder(path, weights=False, trust_remote_code=trust_remote_code)
    opened = open_folder(
        folder,
        family=family,
        block_length=block_length,
        logit_shift=logit_shift,
        mask_token=mask_token,
        max_length=max_length,
        trust_remote_code=trust_remote_code,
    )
    tokenizer = opened.tokenizer()
    return tokenizer, _spec_of(opened, tokenizer)


def _spec_of(opened: OpenFolder, tokenizer: PreTrainedTokenizerBase) -> DenoiserSpec:
    named = opened.mask_is_named
    return denoiser_spec(opened.kind, opened.config, tokenizer, str(opened.path), mask_is_named=named)


def create(
    init: ModelInit,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    *,
    family: str = "llada",
    block_length: int | None = None,
    logit_shift: int | None = None,
) -> LoadedModel:
    """A model from scratch, on the CPU in float32; the same seed gives the same weights.

    Args:
        init: sizes, from the recipe.
        tokenizer: with mask, end-of-text and padding tokens; its length is the number of embedding rows.
        seed: the run's seed.
        family: a key of `FAMILIES`.
        block_length: of a family that attends in blocks, tokens.
        logit_shift: of a family that has the choice (`a2d`); None: the family's.

    Raises:
        ModelError: the sizes do not fit together or into the memory, or the tokenizer lacks a special token.
    """
    kind, config, spec = _from_scratch(init, tokenizer, family, block_length, logit_shift)
    _require_memory(skeleton(kind, config))
    with torch.random.fork_rng(devices=[]):
        module = kind.build(config)  # torch's own initialisation, which is overwritten
    kind.initialise(module, torch.Generator().manual_seed(derive_seed(seed, "model-init")))
    cast(FamilyModel, module).forbid(spec.forbidden_ids)
    return LoadedModel(module.eval(), tokenizer, spec, kind.name, None)


def plan(
    init: ModelInit,
    tokenizer: PreTrainedTokenizerBase,
    *,
    family: str = "llada",
    block_length: int | None = None,
    logit_shift: int | None = None,
) -> tuple[ModelFacts, DenoiserSpec]:
    """What `create` would make, for a dry run: no weight is made.

    Raises:
        ModelError: as `create`, but for the memory.
    """
    kind, config, spec = _from_scratch(init, tokenizer, family, block_length, logit_shift)
    return _facts(kind, skeleton(kind, config), bytes_on_disk=0, dtype=torch.float32), spec


def _from_scratch(
    init: ModelInit,
    tokenizer: PreTrainedTokenizerBase,
    family: str,
    block_length: int | None,
    logit_shift: int | None,
) -> tuple[Family, NetworkConfig, DenoiserSpec]:
    for role in ("mask", "eos", "pad"):
        if getattr(tokenizer, f"{role}_token_id") is None:
            raise ModelError(f"the tokenizer has no {role} token. Fix: use one of rl4dlm.models.tokenizers.")
    config = made_config(
        family,
        init,
        vocab_size=len(tokenizer),
        mask_id=tokenizer.mask_token_id,
        eos_id=tokenizer.eos_token_id,
        pad_id=tokenizer.pad_token_id,
        block_length=block_length,
        logit_shift=logit_shift,
    )
    kind = FAMILIES[family]
    return kind, config, denoiser_spec(kind, config, tokenizer, "model.init")


def _require_memory(module: nn.Module) -> None:
    """The weights of a network without storage fit into what the machine has left."""
    needed, free = sum(4 * parameter.numel() for parameter in module.parameters()), free_memory()
    if free is not None and needed > free:
        raise ModelError(
            f"model.init asks for {needed / 2**30:,.1f} GiB of float32 weights, and this machine has "
            f"{free / 2**30:,.1f} GiB of memory left. Fix: lower model.init.d_model or model.init.n_layers."
        )


def denoiser(
    loaded: LoadedModel, model: Callable[..., Tensor] | None = None, device: str = "cpu"
) -> Denoiser:
    """The model as everything above `models/` sees it.

    Args:
        model: what is called: a DeepSpeed engine or a PeftModel around `loaded.module`; None: the module.
        device: where it lies.
    """
    return Denoiser(model=loaded.module if model is None else model, spec=loaded.spec, device=device)


def denoiser_spec(
    kind: Family,
    config: NetworkConfig,
    tokenizer: PreTrainedTokenizerBase,
    where: str,
    *,
    mask_is_named: bool = False,
) -> DenoiserSpec:
    """The ids of a model, from its configuration and its tokenizer, which must agree.

    Forbidden are the mask and every row of the embedding matrix that no token of the tokenizer uses.

    Args:
        mask_is_named: the recipe says which token is the mask, whatever others the tokenizer has.

    Raises:
        ModelError: the mask tokens differ, or the tokenizer has ids beyond the embedding matrix.
    """
    vocab = tokenizer.get_vocab()
    rows = config.vocab_size
    if max(vocab.values()) >= rows:
        raise ModelError(
            f"{where}: the tokenizer has ids up to {max(vocab.values())}, but embedding_size = {rows}. "
            "Fix: use the tokenizer that was published with the weights."
        )
    if not mask_is_named:
        _require_mask_to_agree(kind, config, tokenizer, vocab, where)
    stops = [*config.eos_token_ids, tokenizer.eos_token_id, *(vocab.get(token) for token in kind.stop_tokens)]
    unused = set(range(rows)).difference(vocab.values())
    return DenoiserSpec(
        mask_id=config.mask_token_id,
        pad_id=config.pad_token_id,
        eos_id=config.eos_token_id,
        stop_ids=tuple(dict.fromkeys(stop for stop in stops if stop is not None)),
        vocab_size=rows,
        forbidden_ids=tuple(sorted(unused | {config.mask_token_id})),
        attention="full" if config.block_length is None else "block_causal",
        block_length=config.block_length,
        max_length=config.max_position_embeddings,
        logit_shift=config.logit_shift,
    )


def _require_mask_to_agree(
    kind: Family, config: NetworkConfig, tokenizer: PreTrainedTokenizerBase, vocab: dict[str, int], where: str
) -> None:
    declared = tokenizer.mask_token
    for token in (*([declared] if declared else []), *kind.mask_tokens):
        if vocab.get(token, config.mask_token_id) != config.mask_token_id:
            raise ModelError(
                f"{where}: mask_token_id = {config.mask_token_id} in config.json, but the tokenizer gives "
                f"{token} the id {vocab[token]}. Fix: use the tokenizer that was published with the weights."
            )


def options_of(model: ModelConfig) -> dict[str, Any]:
    """What a recipe says about opening its model, for `load`, `inspect` and `load_tokenizer`."""
    return {
        "family": model.family,
        "trust_remote_code": model.trust_remote_code,
        "block_length": model.block_length,
        "logit_shift": model.logit_shift,
        "mask_token": model.mask_token,
        "max_length": model.max_length,
    }


def _facts(kind: Family, module: nn.Module, *, bytes_on_disk: int, dtype: torch.dtype) -> ModelFacts:
    config = config_of(module)
    experts = config.experts
    adapted = [m for name, m in module.named_modules() if re.fullmatch(kind.lora_targets, name)]
    return ModelFacts(
        family=kind.name,
        num_parameters=sum(parameter.numel() for parameter in module.parameters()),
        hidden_size=config.hidden_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        mlp_size=config.active_mlp_width,
        vocab_size=config.vocab_size,
        max_length=config.max_position_embeddings,
        bytes_on_disk=bytes_on_disk,
        dtype=str(dtype).removeprefix("torch."),
        adapted_width=sum(part.in_features + part.out_features for part in adapted),
        num_experts=0 if experts is None else experts.num_experts,
        num_quantisable=sum(part.weight.numel() for part in projections(module).values()),
    )
