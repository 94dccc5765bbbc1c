"""An autoregressive checkpoint opened as a diffusion model: a mask token, and a row of the embedding for it.

Source: the conversions of dllm (A2D) and Efficient-DLM, arXiv:2512.14067: the weights stay
as they are, and the attention is no longer causal. Those do not shift logits; with `logit_shift: 1` the row
before a token predicts it, as in Dream, arXiv:2508.15487, and Fast-dLLM v2, arXiv:2509.26328, so that a model
in blocks of one token is the autoregressive model. The mask's row starts as the mean of the tokens' rows,
which no source states.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rl4dlm.models.network_config import convert_config

MASK_TOKEN = "<|mask|>"
_MATRICES = ("model.embed_tokens.weight", "lm_head.weight")


def add_mask_token(tokenizer: PreTrainedTokenizerBase, token: str | None = None) -> None:
    """Give the tokenizer a mask token, after all its other tokens, unless it declares one.

    Args:
        token: the mask in place of the declared one; a token that it has already keeps its id.
    """
    if token is not None or tokenizer.mask_token is None:
        tokenizer.add_special_tokens({"mask_token": token or MASK_TOKEN})


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
def convert_tensor(name: str, tensor: Tensor, *, rows: int, mask_id: int, fresh: bool) -> Tensor:
    """A matrix over the vocabulary grows to `rows`; a mask's row that was never trained becomes the mean of
    those before it.

    Args:
        name, tensor: of the autoregressive model; other tensors come back as they are.
        rows: of the converted model.
        mask_id: the mask's row.
        fresh: the checkpoint is autoregressive, so that the row is not the mask's even where it is there.
    """
    if name not in _MATRICES or (not fresh and mask_id < tensor.shape[0]):
        return tensor
    mean = tensor[:mask_id].float().mean(dim=0).to(tensor.dtype)
    grown = torch.cat((tensor, mean.expand(rows - tensor.shape[0], -1)))
    grown[mask_id] = mean
    return grown
