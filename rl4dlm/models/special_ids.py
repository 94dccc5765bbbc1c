"""What a released config.json may leave unsaid: the mask, the end of text, the block length.

Each is looked for in config.json, in the recipe (`model.mask_token`, `model.block_length`), in the tokenizer,
in generation_config.json, and in the family's released models, in this order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from rl4dlm.errors import ModelError
from rl4dlm.models.conversion import add_mask_token
from rl4dlm.models.fields import REQUIRED, Field, value_at, whole
from rl4dlm.models.network_config import MARK, marked, released, warn_of
from rl4dlm.models.weights import read_json

if TYPE_CHECKING:
    from rl4dlm.models.families import Family

_MASK_SPELLINGS = (
    *("<|mask|>", "<|MASK|>", "<MASK>", "<mask>", "[MASK]", "<|mdm_mask|>", "<|dlm_mask|>", "|<MASK>|"),
)
"""What released tokenizers call the mask token, where none is declared and none is the family's own."""


@dataclass
class Folder:
    """A model folder whose config.json is being completed."""

    kind: Family
    file: Path
    """Its config.json."""
    data: dict[str, Any]
    read_tokenizer: Callable[[], PreTrainedTokenizerBase]
    tokenizer: PreTrainedTokenizerBase | None = None
    """Set where a mask token had to be added to it."""

    def field(self, name: str) -> Field | None:
        """The table's field of one of our names."""
        return released(self.kind.name, self.data).fields.get(name)

    def wrong(self, what: str, fix: str) -> ModelError:
        return ModelError(f"{self.file}: {what}. Fix: {fix}.")


def complete(folder: Folder, *, block_length: int | None, mask_token: str | None) -> None:
    """Write into the data what it leaves unsaid.

    Raises:
        ModelError: nothing says it, or the recipe contradicts config.json.
    """
    _complete_blocks(folder, block_length)
    _complete_mask(folder, mask_token)
    _complete_end(folder)


def _complete_blocks(folder: Folder, block_length: int | None) -> None:
    field = folder.field("block_length")
    stated = value_at(folder.data, f"{MARK}.attention") or (field and field.find(folder.data))
    if field is None or stated:
        return
    if block_length is not None:
        converted = folder.kind.name == "a2d"
        shift = value_at(folder.data, f"{MARK}.logit_shift") or 0
        put = marked(folder.data, block_length, shift) if converted else field.put(folder.data, block_length)
        folder.data = put
    elif folder.kind.name == "a2d":
        warn_of(
            str(folder.file),
            "nothing says whether this converted model attends in blocks, so every token sees every other. "
            "Fix: if it was trained in blocks (by BD3-LM's objective; 32 is usual), set model.block_length "
            "or write block_length into config.json",
        )


def _complete_mask(folder: Folder, mask_token: str | None) -> None:
    field = folder.field("mask_token_id")
    assert field is not None
    stated = field.find(folder.data)
    if mask_token is not None:
        chosen = _named(folder, mask_token)
        if stated and whole(stated[0][1]) != chosen:
            raise folder.wrong(
                f"{stated[0][0]} = {stated[0][1]}, and the recipe says model.mask_token = {mask_token!r}, "
                f"which is {chosen}",
                "leave model.mask_token out, or use another folder",
            )
        folder.data = field.put(folder.data, chosen)
    elif not stated:
        found = _mask_of(folder, field)
        if found is not None:
            folder.data = field.put(folder.data, found)


def _named(folder: Folder, mask_token: str) -> int:
    found = folder.read_tokenizer().get_vocab().get(mask_token)
    if found is None and mask_token.isdecimal():
        return int(mask_token)
    if found is None:
        raise folder.wrong(
            f"model.mask_token = {mask_token!r} is no token of the folder's tokenizer",
            "write a token of tokenizer.json, or the id of a row",
        )
    return found


def _mask_of(folder: Folder, field: Field) -> int | None:
    """The mask by the tokenizer, else by the family's released models; None: the table has a default."""
    tokenizer = _tokenizer_or_none(folder, must=field.default is REQUIRED and folder.kind.mask_id is None)
    vocab = {} if tokenizer is None else tokenizer.get_vocab()
    if tokenizer is not None and tokenizer.mask_token is not None:
        return vocab[tokenizer.mask_token]
    for spellings in (folder.kind.mask_tokens, _MASK_SPELLINGS):
        spelled = {vocab[token] for token in spellings if token in vocab}
        if len(spelled) == 1:
            return spelled.pop()
        if spelled:
            raise folder.wrong("the tokenizer has several mask tokens and declares none", field.remedy)
    default, rows = folder.kind.mask_id, whole(folder.data.get("vocab_size"))
    if default is not None and rows is not None and default < rows and default not in vocab.values():
        return default
    if tokenizer is not None and folder.kind.name == "a2d":
        return _added(folder, tokenizer)
    if field.default is not REQUIRED:
        return None
    raise folder.wrong("neither this file nor the tokenizer says which token is the mask", field.remedy)


def _added(folder: Folder, tokenizer: PreTrainedTokenizerBase) -> int:
    """A converted checkpoint gets the mask token that a fresh conversion gets."""
    add_mask_token(tokenizer)
    folder.tokenizer = tokenizer
    assert tokenizer.mask_token_id is not None
    warn_of(
        str(folder.file),
        f"neither this file nor the tokenizer has a mask token; {tokenizer.mask_token} was added with id "
        f"{tokenizer.mask_token_id}, as in a fresh conversion. Fix: set model.mask_token if the model was "
        "trained with another",
    )
    return int(tokenizer.mask_token_id)


def _complete_end(folder: Folder) -> None:
    field = folder.field("eos_token_ids")
    assert field is not None
    if field.find(folder.data):
        return
    found = _end_of(folder, must=field.default is REQUIRED)
    if found is not None:
        folder.data = field.put(folder.data, found)


def _end_of(folder: Folder, must: bool) -> Any:
    tokenizer = _tokenizer_or_none(folder, must=False)
    if tokenizer is not None and tokenizer.eos_token_id is not None:
        return tokenizer.eos_token_id
    generation = folder.file.with_name("generation_config.json")
    stated = read_json(generation).get("eos_token_id") if generation.is_file() else None
    for value in (stated, folder.data.get("pad_token_id") if must else None, folder.kind.eos_id):
        if value is not None and value != -1:
            return value
    return None


def _tokenizer_or_none(folder: Folder, *, must: bool) -> PreTrainedTokenizerBase | None:
    """The folder's tokenizer; None where it cannot be read and is not needed to know the ids."""
    if folder.tokenizer is not None:
        return folder.tokenizer
    try:
        return folder.read_tokenizer()
    except ModelError:
        if must:
            raise
        return None
