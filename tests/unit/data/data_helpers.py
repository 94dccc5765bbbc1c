"""A tokenizer whose lengths can be counted by eye."""

from __future__ import annotations

from typing import Any

from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rl4dlm.data import TextFormat
from rl4dlm.errors import DataError

MASK = "\u03e7"
"""Character 999: the mask of the tests' models."""

CHATML = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


class CharTokenizer:
    """One token per character, ids are code points below 1000: lengths in tests can be counted by eye."""

    def __init__(self, chat_template: str | None = None) -> None:
        split = pre_tokenizers.Split(Regex("."), behavior="isolated")
        vocabulary = {chr(code): code for code in range(1000)}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="\x00"))
        tokenizer.pre_tokenizer = split
        self.hf = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
        self.hf.chat_template = chat_template

    def encode(self, text: str) -> tuple[int, ...]:
        if MASK in text:
            raise DataError(f"the text spells the mask token {MASK!r}.\nFix: remove it.")
        return tuple(map(ord, text))

    def texts(self, **options: Any) -> TextFormat:
        """How texts become ids; `>` ends a turn of the chat template, 7 any text."""
        return TextFormat(self.hf, self.encode, stop_ids=(7, ord(">")), **options)
