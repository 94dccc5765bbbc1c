"""Tiny autoregressive models as transformers writes them, with a tokenizer that has no mask token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase

TOKENS, START, EOS = 13, 11, 12
"""Eleven characters, start and end of text."""

KINDS = ("llama", "qwen2", "qwen3")


def tokenizer_without_mask(*more: str) -> PreTrainedTokenizerBase:
    """Eleven characters, end and start of text, and further special tokens."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({character: i for i, character in enumerate("0123456789=")}))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    names = ("<|endoftext|>", "<|start|>", *more)
    tokens = [AddedToken(token, special=True, normalized=False) for token in names]
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=tokens[0], bos_token=tokens[1])
    made.add_tokens(tokens[2:], special_tokens=True)
    return made


def write_parent(folder: Path, kind: str, *, tied: bool = True, rows: int = TOKENS, **changes: Any) -> Path:
    """A folder with an autoregressive model, every parameter random."""
    config = AutoConfig.for_model(
        kind,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        vocab_size=rows,
        tie_word_embeddings=tied,
        eos_token_id=EOS,
        bos_token_id=START,
        pad_token_id=None,
    )
    config.update(changes)
    model = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                parameter.normal_(0.0, 0.3, generator=generator)
            elif parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5, generator=generator)
            else:
                parameter.normal_(0.0, 0.2, generator=generator)
    model.save_pretrained(folder)
    tokenizer_without_mask().save_pretrained(folder)
    return folder
