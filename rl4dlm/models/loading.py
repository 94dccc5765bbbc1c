"""Models from folders, from the hub and from scratch, with their tokenizers and the facts both agree on."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rl4dlm.diffusion.seeds import derive_seed
from rl4dlm.errors import ModelError
from rl4dlm.models.conversion import add_mask_token, convert_tensors, converted, stored_shapes
from rl4dlm.models.families import (
    FAMILIES,
    Config,
    Family,
    find_family,
    is_autoregressive,
    parameter_shapes,
)
from rl4dlm.models.folders import find_folder, headers_of
from rl4dlm.models.weights import (
    TensorHeader,
    read_headers,
    read_json,
    require_same_tensors,
    stream_tensors,
)
from rl4dlm.recipe.sections import ModelInit
from rl4dlm.types import Denoiser, DenoiserSpec


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
    mlp_size: int
    vocab_size: int
    """Rows of the embedding matrix."""
    max_length: int
    """Longest prompt and completion together, tokens."""
    bytes_on_disk: int
    """Bytes of all tensors in their files; 0 for a model that has none."""
    dtype: str
    """The dtype that most bytes have: `bfloat16`, `float32`, ..."""


def load(
    path: str | Path,
    *,
    family: str = "auto",
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    trust_remote_code: bool = False,
    block_length: int | None = None,
) -> LoadedModel:
    """Load a model in Hugging Face layout; its tensors must be exactly those that config.json asks for.

    Names and shapes are checked from the files' headers before any weight is read; tensors are then streamed
    one by one, so that memory holds the model once.

    Args:
        path: local folder, or `owner/name` on the hub.
        family: a key of `FAMILIES`, or `auto` to follow `model_type` of config.json. `a2d` makes a diffusion
            model of an autoregressive checkpoint.
        dtype: of all parameters.
        device: where they go.
        trust_remote_code: let the tokenizer run code of the folder. The model itself never does.
        block_length: of a checkpoint that is converted, None for full attention; of any other block-causal
            model it must be what config.json says, or None.

    Raises:
        ModelError: anything is wrong with the folder, its configuration, tensors or tokenizer.
    """
    folder = find_folder(path, weights=True, trust_remote_code=trust_remote_code)
    opened = _open(folder, family, block_length, trust_remote_code)
    kind, config = opened.kind, opened.config
    headers = read_headers(folder)
    opened.require_bijection(headers)
    tokenizer = opened.tokenizer or _read_tokenizer(folder, trust_remote_code)
    spec = denoiser_spec(kind, config, tokenizer, str(folder))
    with torch.device("meta"):
        module = kind.build(config)
    _assign(module, opened.convert(stream_tensors(headers, device=device, dtype=dtype)))
    module.forbid(spec.forbidden_ids)
    return LoadedModel(module.eval(), tokenizer, spec, kind.name, folder)


def inspect(path: str | Path, *, family: str = "auto", block_length: int | None = None) -> ModelFacts:
    """Facts about a model folder from config.json and file headers, with the same errors as `load`.

    For a hub name only configuration and tokenizer files are downloaded. The tokenizer is opened only where a
    checkpoint is converted: `load_tokenizer` does that.

    Raises:
        ModelError: as `load`.
    """
    folder = find_folder(path, weights=False)
    opened = _open(folder, family, block_length, trust_remote_code=False)
    headers = headers_of(path, folder)
    opened.require_bijection(headers)
    by_dtype: Counter[torch.dtype] = Counter()
    for header in headers.values():
        by_dtype[header.torch_dtype] += header.num_bytes
    dtype = by_dtype.most_common(1)[0][0]
    return _facts(opened.kind, opened.config, bytes_on_disk=by_dtype.total(), dtype=dtype)


def describe(loaded: LoadedModel) -> ModelFacts:
    """The same facts about a model in memory; `bytes_on_disk` is 0."""
    dtype = next(loaded.module.parameters()).dtype
    return _facts(FAMILIES[loaded.family], loaded.module.config, bytes_on_disk=0, dtype=dtype)


def load_tokenizer(
    path: str | Path,
    *,
    family: str = "auto",
    trust_remote_code: bool = False,
    block_length: int | None = None,
) -> tuple[PreTrainedTokenizerBase, DenoiserSpec]:
    """Tokenizer and special ids of a model folder, checked against each other, without its weights.

    Raises:
        ModelError: the tokenizer cannot be read or disagrees with config.json.
    """
    folder = find_folder(path, weights=False, trust_remote_code=trust_remote_code)
    opened = _open(folder, family, block_length, trust_remote_code)
    tokenizer = opened.tokenizer or _read_tokenizer(folder, trust_remote_code)
    return tokenizer, denoiser_spec(opened.kind, opened.config, tokenizer, str(folder))


def create(
    init: ModelInit,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    *,
    family: str = "llada",
    block_length: int | None = None,
) -> LoadedModel:
    """A model from scratch, on the CPU in float32; the same seed gives the same weights.

    Args:
        init: sizes, from the recipe.
        tokenizer: with mask, end-of-text and padding tokens; its length is the number of embedding rows.
        seed: the run's seed.
        family: a key of `FAMILIES`.
        block_length: of a family that attends in blocks, tokens.

    Raises:
        ModelError: the sizes do not fit together, or the tokenizer lacks a special token.
    """
    for role in ("mask", "eos", "pad"):
        if getattr(tokenizer, f"{role}_token_id") is None:
            raise ModelError(f"the tokenizer has no {role} token. Fix: use one of rl4dlm.models.tokenizers.")
    kind = FAMILIES[family]
    config = kind.config_for(
        init,
        vocab_size=len(tokenizer),
        mask_id=tokenizer.mask_token_id,
        eos_id=tokenizer.eos_token_id,
        pad_id=tokenizer.pad_token_id,
        block_length=block_length,
    )
    spec = denoiser_spec(kind, config, tokenizer, "model.init")
    with torch.device("meta"):
        module = kind.build(config)
    module.to_empty(device="cpu").tie_weights()
    kind.initialise(module, torch.Generator().manual_seed(derive_seed(seed, "model-init")))
    module.forbid(spec.forbidden_ids)
    return LoadedModel(module.eval(), tokenizer, spec, kind.name, None)


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
    kind: Family, config: Config, tokenizer: PreTrainedTokenizerBase, where: str
) -> DenoiserSpec:
    """The ids of a model, from its configuration and its tokenizer, which must agree.

    Forbidden are the mask and every row of the embedding matrix that no token of the tokenizer uses.

    Raises:
        ModelError: the mask tokens differ, or the tokenizer has ids beyond the embedding matrix.
    """
    vocab = tokenizer.get_vocab()
    rows = config.embedding_size
    if max(vocab.values()) >= rows:
        raise ModelError(
            f"{where}: the tokenizer has ids up to {max(vocab.values())}, but embedding_size = {rows}. "
            "Fix: use the tokenizer that was published with the weights."
        )
    _require_mask_to_agree(kind, config, tokenizer, vocab, where)
    stops = [config.eos_token_id, tokenizer.eos_token_id, *(vocab.get(token) for token in kind.stop_tokens)]
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
    kind: Family, config: Config, tokenizer: PreTrainedTokenizerBase, vocab: dict[str, int], where: str
) -> None:
    declared = tokenizer.mask_token
    for token in (*([declared] if declared else []), *kind.mask_tokens):
        if vocab.get(token, config.mask_token_id) != config.mask_token_id:
            raise ModelError(
                f"{where}: mask_token_id = {config.mask_token_id} in config.json, but the tokenizer gives "
                f"{token} the id {vocab[token]}. Fix: use the tokenizer that was published with the weights."
            )


@dataclass(frozen=True)
class _Opened:
    """A folder whose configuration was read; no weight was."""

    folder: Path
    kind: Family
    config: Config
    tokenizer: PreTrainedTokenizerBase | None = None
    """Of a checkpoint that is converted, with its mask token."""
    stored_rows: int = 0
    """Rows of the matrices over the vocabulary in the files of a checkpoint that is converted."""

    def require_bijection(self, headers: dict[str, TensorHeader]) -> None:
        """The files hold exactly the network's tensors."""
        expected = parameter_shapes(self.kind, self.config)
        if self.tokenizer is not None:
            expected = stored_shapes(expected, self.stored_rows)
        found = {name: header.shape for name, header in headers.items()}
        files = {"": str(self.folder), **{name: header.file for name, header in headers.items()}}
        require_same_tensors(expected, found, files)

    def convert(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterable[tuple[str, Tensor]]:
        """The network's tensors, from those in the files."""
        if self.tokenizer is None:
            return tensors
        config = self.config
        return convert_tensors(tensors, rows=config.vocab_size, mask_id=config.mask_token_id)


def _open(folder: Path, family: str, block_length: int | None, trust_remote_code: bool) -> _Opened:
    file = folder / "config.json"
    data = read_json(file)
    kind = find_family(data, family, str(file))
    if is_autoregressive(data):
        tokenizer = _read_tokenizer(folder, trust_remote_code)
        add_mask_token(tokenizer)
        config = kind.read_config(converted(data, tokenizer, block_length), str(file))
        return _Opened(folder, kind, config, tokenizer, data["vocab_size"])
    config = kind.read_config(data, str(file))
    if block_length not in (None, config.block_length):
        raise ModelError(
            f"{file}: the model's block length is {config.block_length}, and the recipe says "
            f"model.block_length = {block_length}. Fix: leave model.block_length out, or use another folder."
        )
    return _Opened(folder, kind, config)


def _read_tokenizer(folder: Path, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """tokenizer.json as it is; `AutoTokenizer` only on demand: it may ask on the terminal to run code."""
    if not trust_remote_code and not (folder / "tokenizer.json").is_file():
        raise ModelError(
            f"{folder / 'tokenizer.json'} is missing. Fix: download the tokenizer files, or set "
            "model.trust_remote_code=true if the tokenizer comes as code that you trust."
        )
    reader = AutoTokenizer if trust_remote_code else PreTrainedTokenizerFast
    options = {"trust_remote_code": True} if trust_remote_code else {}
    try:
        return reader.from_pretrained(str(folder), local_files_only=True, **options)
    except Exception as error:  # the tokenizers library raises bare Exception for broken files
        raise ModelError(
            f"{folder}: the tokenizer cannot be read ({type(error).__name__}: {error}). "
            "Fix: download the tokenizer files again."
        ) from error


def _assign(module: nn.Module, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Replace parameters without storage by the given tensors."""
    for name, tensor in tensors:
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, nn.Parameter(tensor))
    module.tie_weights()


def _facts(kind: Family, config: Config, *, bytes_on_disk: int, dtype: torch.dtype) -> ModelFacts:
    return ModelFacts(
        family=kind.name,
        num_parameters=sum(math.prod(shape) for shape in parameter_shapes(kind, config).values()),
        hidden_size=config.hidden_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        mlp_size=config.intermediate_size,
        vocab_size=config.embedding_size,
        max_length=config.max_position_embeddings,
        bytes_on_disk=bytes_on_disk,
        dtype=str(dtype).removeprefix("torch."),
    )
