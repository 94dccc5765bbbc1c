"""A model folder before its weights: what its files say the network is, and whether they hold its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rl4dlm.errors import ModelError
from rl4dlm.models.conversion import add_mask_token, convert_tensor, converted, stored_shapes
from rl4dlm.models.families import Family, find_family, is_autoregressive, skeleton, stored_buffers
from rl4dlm.models.fields import whole
from rl4dlm.models.network_config import NetworkConfig, released, require_shift
from rl4dlm.models.rope import lengthened
from rl4dlm.models.special_ids import Folder, complete
from rl4dlm.models.tokenizers import SOURCE_CLASS
from rl4dlm.models.weights import TensorHeader, TensorReader, read_json, require_same_tensors

_RECOMPUTED = re.compile(r".*\.rotary_emb\.inv_freq")
"""Rotary frequencies that older files store and that follow from the configuration."""

_HEAD = "lm_head.weight"


@dataclass(frozen=True)
class OpenFolder:
    """A folder whose configuration was read; no weight was."""

    path: Path
    kind: Family
    config: NetworkConfig
    trust_remote_code: bool = False
    tokenizer_to_convert: PreTrainedTokenizerBase | None = None
    """Of a checkpoint without a mask token, with the one that it is given."""
    stored_rows: int = 0
    """Rows of the matrices over the vocabulary in the files of a checkpoint that is converted."""
    fresh: bool = False
    """The checkpoint is autoregressive: the mask's row was never trained as such."""
    mask_is_named: bool = False
    """The recipe says which token is the mask."""

    @cached_property
    def skeleton(self) -> nn.Module:
        """The network without storage."""
        return skeleton(self.kind, self.config)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the network's tensors; a tied head has none."""
        tensors = {**dict(self.skeleton.named_parameters()), **stored_buffers(self.skeleton)}
        return {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    @cached_property
    def aliases(self) -> dict[str, str]:
        """Names under which a tied matrix may be stored a second time, with the name it has here."""
        names = {id(parameter): name for name, parameter in self.skeleton.named_parameters()}
        twice = self.skeleton.named_parameters(remove_duplicate=False)
        return {name: names[id(p)] for name, p in twice if names[id(p)] != name}

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The folder's tokenizer, with a mask token where one had to be added.

        Raises:
            ModelError: it cannot be read.
        """
        return self.tokenizer_to_convert or read_tokenizer(self.path, self.kind, self.trust_remote_code)

    def told_by(self, headers: Mapping[str, TensorHeader]) -> OpenFolder:
        """The folder as its files say where config.json does not: a head that is not stored is tied."""
        published = self.config.published
        tie = released(self.kind.name, published).fields.get("tie_word_embeddings")
        if tie is None or tie.find(published) or _HEAD in headers:
            return self
        published = tie.put(published, True)
        return replace(self, config=replace(self.config, tie_word_embeddings=True, published=published))

    def require_tensors(self, headers: Mapping[str, TensorHeader]) -> None:
        """The files hold exactly the network's tensors; a tied matrix may be there twice.

        Raises:
            ModelError: naming the first tensor that is missing, misshapen or unexpected.
        """
        self._require_enough(headers)
        expected = dict(self.shapes)
        expected |= {alias: expected[name] for alias, name in self.aliases.items() if alias in headers}
        if self.tokenizer_to_convert is not None:
            expected = stored_shapes(expected, self.stored_rows)
        found = {
            name: header.shape
            for name, header in headers.items()
            if name in expected or not _RECOMPUTED.fullmatch(name)
        }
        files = {"": str(self.path), **{name: header.file for name, header in headers.items()}}
        require_same_tensors(expected, found, files)

    def _require_enough(self, headers: Mapping[str, TensorHeader]) -> None:
        """Every layer and every expert has a tensor: what the files cannot hold is not worth building."""
        config, experts = self.config, self.config.experts
        sparse = 0 if experts is None else config.num_hidden_layers - experts.num_dense_layers
        parts = max(config.num_hidden_layers, 0 if experts is None else sparse * experts.num_experts)
        if len(headers) < parts:
            what = "layers" if experts is None else "layers and experts"
            raise ModelError(
                f"{self.path}: config.json asks for {parts} {what}, and the files hold {len(headers)} "
                "tensors. Fix: use weights and config.json of the same model."
            )

    def reader(self, headers: Mapping[str, TensorHeader], *, device: str, dtype: torch.dtype) -> OpenReader:
        """What reads the network's tensors one by one."""
        exact = frozenset(stored_buffers(self.skeleton))
        return OpenReader(self, TensorReader(headers, device=device, dtype=dtype, exact=exact))


@dataclass(frozen=True)
class OpenReader:
    """Tensors of a folder under the network's names."""

    folder: OpenFolder
    stored: TensorReader

    @property
    def names(self) -> list[str]:
        """In the order of the files, so that each is opened once."""
        shapes = self.folder.shapes
        return [name for name in self.stored.headers if name in shapes]

    def read(self, name: str) -> Tensor:
        """One tensor, converted where the checkpoint is.

        Raises:
            ModelError: the file cannot be read, or holds a tied matrix twice with different values.
        """
        tensor = self.stored.read(name)
        for alias, original in self.folder.aliases.items():
            if original == name and alias in self.stored.headers:
                self._require_equal(tensor, alias)
        config = self.folder.config
        if self.folder.tokenizer_to_convert is None:
            return tensor
        return convert_tensor(
            name,
            tensor,
            rows=config.vocab_size,
            tokens=len(self.folder.tokenizer_to_convert),
            mask_id=config.mask_token_id,
            fresh=self.folder.fresh,
        )

    def _require_equal(self, tensor: Tensor, alias: str) -> None:
        if not torch.equal(tensor, self.stored.read(alias)):
            raise ModelError(
                f"{self.stored.headers[alias].file}: tensor {alias} differs from the embedding, to which "
                "config.json ties it. Fix: correct tie_word_embeddings, or download the model again."
            )


def open_folder(
    path: Path,
    *,
    family: str,
    block_length: int | None,
    logit_shift: int | None,
    mask_token: str | None,
    max_length: int | None,
    trust_remote_code: bool,
) -> OpenFolder:
    """Read what a folder says about its model; see `load` for the arguments.

    Raises:
        ModelError: the configuration cannot be used, or the recipe contradicts it.
    """
    file = path / "config.json"
    data = read_json(file)
    kind = find_family(data, family, str(file))
    if is_autoregressive(data):
        tokenizer = read_tokenizer(path, kind, trust_remote_code)
        add_mask_token(tokenizer, mask_token)
        config = kind.read_config(converted(data, tokenizer, block_length, logit_shift), str(file))
        config = lengthened(config, max_length, str(file))
        return OpenFolder(path, kind, config, trust_remote_code, tokenizer, data["vocab_size"], fresh=True)
    folder = Folder(kind, file, data, lambda: read_tokenizer(path, kind, trust_remote_code))
    complete(folder, block_length=block_length, mask_token=mask_token)
    rows = whole(data.get("vocab_size")) or 0
    if folder.tokenizer is not None:
        folder.data["vocab_size"] = max(rows, len(folder.tokenizer))
    config = kind.read_config(folder.data, str(file))
    if block_length not in (None, config.block_length):
        raise ModelError(
            f"{file}: the model's block length is {config.block_length}, and the recipe says "
            f"model.block_length = {block_length}. Fix: leave model.block_length out, or use another folder."
        )
    require_shift(config, logit_shift, str(file))
    config = lengthened(config, max_length, str(file))
    named = mask_token is not None
    return OpenFolder(path, kind, config, trust_remote_code, folder.tokenizer, rows, mask_is_named=named)


def read_tokenizer(path: Path, kind: Family, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """tokenizer.json as it is, or the two files it can be made from.

    `AutoTokenizer` only on demand: it may ask on the terminal to run code.

    Raises:
        ModelError: there are no such files, or they cannot be read.
    """
    options = {"trust_remote_code": True} if trust_remote_code else {}
    try:
        tokenizer = _tokenizer_class(path, kind, trust_remote_code).from_pretrained(
            str(path), local_files_only=True, **options
        )
    except ModelError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception for broken files
        raise ModelError(
            f"{path}: the tokenizer cannot be read ({type(error).__name__}: {error}). "
            "Fix: download the tokenizer files again."
        ) from error
    tokenizer.init_kwargs[SOURCE_CLASS] = _class_in(path)
    return tokenizer


def _class_in(path: Path) -> Any:
    """`tokenizer_class` of a folder's tokenizer_config.json, which has been read without complaint."""
    file = path / "tokenizer_config.json"
    return read_json(file).get("tokenizer_class") if file.is_file() else None


def _tokenizer_class(path: Path, kind: Family, trust_remote_code: bool) -> Any:
    if trust_remote_code:
        return AutoTokenizer
    if (path / "tokenizer.json").is_file():
        return PreTrainedTokenizerFast
    if kind.tokenizer_class and (path / "vocab.json").is_file() and (path / "merges.txt").is_file():
        import transformers

        return getattr(transformers, kind.tokenizer_class)
    raise ModelError(
        f"{path / 'tokenizer.json'} is missing. Fix: download the tokenizer files, or set "
        "model.trust_remote_code=true if the tokenizer comes as code that you trust."
    )
