"""Tokenizers that the package builds itself, in Hugging Face form, with LLaDA's names of special tokens; and
how a tokenizer's files are written."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rl4dlm.errors import DataError, ModelError

MASK_TOKEN = "<|mdm_mask|>"
EOS_TOKEN = "<|endoftext|>"
BOS_TOKEN = "<|startoftext|>"
CHAT_TOKENS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n{{ message['content'] | trim }}<|eot_id|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
"""LLaDA's chat layout: start of text once, then role header, blank line, trimmed content and end of turn."""


def build_char_tokenizer(characters: str) -> PreTrainedTokenizerFast:
    """One id per character, in the order given, then the special tokens.

    There is no unknown token: other characters raise, in `encode` with a message that names them.

    Args:
        characters: every character that prompts and completions may hold; repetitions are ignored.

    Raises:
        ModelError: no characters.
    """
    if not characters:
        raise ModelError(
            "a character tokenizer needs at least one character. Fix: check the texts of the task."
        )
    vocab = {character: i for i, character in enumerate(dict.fromkeys(characters))}
    backend = Tokenizer(models.WordLevel(vocab))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return _wrap(backend)


def build_bpe_tokenizer(
    texts: Iterable[str], vocab_size: int, *, chat_template: bool = False
) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on the texts; every text can be encoded and comes back unchanged.

    Args:
        texts: training texts; the same texts give the same tokenizer.
        vocab_size: aim, special tokens included; fewer tokens result where the texts give fewer merges.
        chat_template: add LLaDA's chat layout and its tokens.

    Raises:
        ModelError: `vocab_size` has no room for the 256 bytes and the special tokens.
    """
    specials = [MASK_TOKEN, EOS_TOKEN, BOS_TOKEN, *(CHAT_TOKENS if chat_template else ())]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    least = len(alphabet) + len(specials)
    if vocab_size < least:
        raise ModelError(
            f"model.init.tokenizer.vocab_size = {vocab_size} has no room for the {least} bytes and special "
            f"tokens. Fix: set it to at least {least}."
        )
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[_special(token) for token in specials],
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = _wrap(backend)
    if chat_template:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def encode(tokenizer: PreTrainedTokenizerBase, text: str, *, mask_id: int | None = None) -> tuple[int, ...]:
    """Ids of a text, with no special tokens added; those spelled out in the text keep their meaning.

    Args:
        mask_id: the mask, which no text may spell: a position that holds it counts as not yet written, and
            no model gives it a probability. None: it is not looked for.

    Raises:
        DataError: a character has no id, naming it and its place; or the text spells the mask.
    """
    ids = _ids(tokenizer, text)
    if ids is None:
        place = next((i for i, character in enumerate(text) if _ids(tokenizer, character) is None), 0)
        raise DataError(
            f"the tokenizer cannot represent {text[place : place + 1]!r} at character {place} of "
            f"{text[:80]!r}. Fix: remove it, or use a tokenizer that knows it (byte-level BPE knows all)."
        )
    if mask_id is not None and mask_id in ids:
        raise DataError(
            f"the text spells the mask token {tokenizer.convert_ids_to_tokens(mask_id)!r}, which stands for "
            "what is not written yet.\nFix: remove it from the text, or remove the row."
        )
    return tuple(ids)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int] | None:
    """None when some part of the text has no id."""
    try:
        ids = tokenizer.encode(text, add_special_tokens=False)
    except Exception as error:  # tokenizers has no exception type of its own
        if "UNK" not in str(error):
            raise
        return None
    unknown = tokenizer.unk_token_id
    return None if unknown is not None and unknown in ids else ids


SOURCE_CLASS = "tokenizer_class"
"""Key of a tokenizer's `init_kwargs` under which its folder's own class name is kept."""

_OF_ONE_VERSION = {"TokenizersBackend", "PythonBackend", "SentencePieceBackend", "MistralCommonBackend"}
"""Classes that transformers 5 writes and transformers 4 does not know."""

_OF_THIS_MACHINE = (
    *("backend", "is_local", "local_files_only", "files_loaded", "name_or_path", "auto_map", "device_map"),
    *("trust_remote_code", "cache_dir", "revision", "subfolder", "token", "use_auth_token", "proxies"),
    *("special_tokens_map_file", "tokenizer_file", "vocab_file", "merges_file", "_commit_hash"),
)
"""How a tokenizer was opened, which says nothing about it to whoever opens it next."""


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a tokenizer's files so that transformers 4 and 5 open them.

    tokenizer_config.json holds the chat template and a public class: that of the folder the tokenizer came
    from, or `PreTrainedTokenizerFast`.

    Raises:
        OSError: the disk refuses; the tokenizers library raises bare `Exception` then.
    """
    tokenizer.save_pretrained(str(folder), save_jinja_files=False)
    file = folder / "tokenizer_config.json"
    written = json.loads(file.read_text(encoding="utf-8"))
    config = {key: value for key, value in written.items() if key not in _OF_THIS_MACHINE}
    config["tokenizer_class"] = _public_class(tokenizer.init_kwargs.get(SOURCE_CLASS))
    # Transformers 5 has a list under this name, where transformers 4 takes nothing but a mapping.
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8")


def _public_class(name: object) -> str:
    """A class that every version of transformers has, as far as this one knows."""
    known = isinstance(name, str) and name not in _OF_ONE_VERSION
    if known and any(hasattr(transformers, f"{name}{ending}") for ending in ("", "Fast")):
        return str(name)
    return "PreTrainedTokenizerFast"


def _wrap(backend: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        mask_token=_special(MASK_TOKEN),
        eos_token=_special(EOS_TOKEN),
        pad_token=_special(EOS_TOKEN),
        bos_token=_special(BOS_TOKEN),
        clean_up_tokenization_spaces=False,
    )


def _special(token: str) -> AddedToken:
    return AddedToken(token, special=True, normalized=False)
