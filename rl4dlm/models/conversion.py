"""An autoregressive checkpoint opened as a diffusion model: a mask token, and a row of the embedding for it.

Source: the conversions of dllm (A2D) and Efficient-DLM, arXiv:2512.14067: the weights stay
as they are, and the attention is no longer causal. Those do not shift logits; with `logit_shift: 1` the row
before a token predicts it, as in Dream, arXiv:2508.15487, and Fast-dLLM v2, arXiv:2509.26328, so that a model
in blocks of one token is the autoregressive model. The mask's row starts as the mean of the tokens' rows,
which no source states.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rl4dlm.errors import ModelError
from rl4dlm.models.network_config import convert_config

MASK_TOKEN = "<|mask|>"
_MATRICES = ("model.embed_tokens.weight", "lm_head.weight")


_RESERVED = re.compile(r"[<\[]\|?(reserved|unused|extra|placeholder)[a-z_]*\d+\|?[>\]]", re.IGNORECASE)
"""Tokens that were kept for later use, such as `<|reserved_special_token_0|>` and `<unused5>`."""


def add_mask_token(tokenizer: PreTrainedTokenizerBase, token: str | None = None) -> None:
    """Give the tokenizer a mask token: the one that is named, else the one that it declares, else its first
    reserved token, else a new one after all others (an unused row of the embedding where that has more).

    Args:
        token: a token that the tokenizer has keeps its id; digits are the id of one.

    Raises:
        ModelError: the token begins or ends a text, or there is none with that id.
    """
    vocab = tokenizer.get_vocab()
    if token is not None and token.isdecimal() and token not in vocab:
        token = _token_of(vocab, int(token))
    if token is not None and token in (tokenizer.eos_token, tokenizer.bos_token):
        raise ModelError(
            f"the mask token {token!r} begins or ends a text. Fix: name a token that texts do not hold."
        )
    if token is None and tokenizer.mask_token is None:
        token = _reserved(vocab, str(tokenizer.chat_template)) or MASK_TOKEN
    if token is not None:
        tokenizer.add_special_tokens({"mask_token": token})


def _token_of(vocab: Mapping[str, int], number: int) -> str:
    found = next((token for token, id in vocab.items() if id == number), None)
    if found is None:
        raise ModelError(
            f"no token has the id {number} that is to be the mask. Fix: name a token, which is added where "
            "the tokenizer has not got it."
        )
    return found


def _reserved(vocab: Mapping[str, int], template: str) -> str | None:
    """The first reserved token that the chat template does not use."""
    free = (token for token in vocab if _RESERVED.fullmatch(token) and token not in template)
    return min(free, key=vocab.__getitem__, default=None)


def converted(
    data: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    block_length: int | None,
    logit_shift: int | None,
) -> dict[str, Any]:
    """The config.json of an autoregressive model as that of a diffusion model with this tokenizer.

    Args:
        logit_shift: None: 1 for a model in blocks, which with blocks of one token is then exactly its parent;
            0 with full attention, as in the published conversions.
    """
    if logit_shift is None:
        logit_shift = int(block_length is not None)
    return convert_config(
        data, mask_id=tokenizer.mask_token_id, block_length=block_length, logit_shift=logit_shift
    )


def stored_shapes(shapes: Mapping[str, tuple[int, ...]], rows: int) -> dict[str, tuple[int, ...]]:
    """The shapes before conversion: matrices over the vocabulary have as many rows as they came with."""
    return {name: (rows, *shape[1:]) if name in _MATRICES else shape for name, shape in shapes.items()}


@torch.no_grad()
def convert_tensor(name: str, tensor: Tensor, *, rows: int, tokens: int, mask_id: int, fresh: bool) -> Tensor:
    """A matrix over the vocabulary grows to `rows`; a mask's row that was never trained becomes the mean of
    those of all other tokens.

    Args:
        name, tensor: of the autoregressive model; other tensors come back as they are.
        rows: of the converted model.
        tokens: of the tokenizer, the mask included; rows beyond them belong to no token.
        mask_id: the mask's row.
        fresh: the checkpoint is autoregressive, so that the row is not the mask's even where it is there.
    """
    if name not in _MATRICES or (not fresh and mask_id < tensor.shape[0]):
        return tensor
    others = torch.cat((tensor[:mask_id], tensor[mask_id + 1 : tokens]))
    mean = others.float().mean(dim=0).to(tensor.dtype)
    grown = torch.cat((tensor, mean.expand(rows - tensor.shape[0], -1)))
    grown[mask_id] = mean
    return grown
