"""Dream, SDAR and converted models against transformers' own classes, and what differs from those."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from family_toys import EOS, INIT, MASK, make_family
from torch import Tensor
from transformers import AutoModelForCausalLM

from rl4dlm.diffusion.blocks import doubled_layout, sequence_layout
from rl4dlm.models.base import previous_rows
from rl4dlm.models.decoder import Decoder, published_config
from rl4dlm.models.network_config import convert_config, made_config, read_config

IDS = torch.tensor([[3, 1, 13, 4, 13, 5, 9, 2, 13, 6, 13, 3], [0, 13, 8, 8, 13, 1, 2, 13, 13, 7, 1, 0]])


def theirs(module: Decoder, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """transformers' causal model of the same architecture, with the same weights."""
    published = published_config(module.config)
    for key, value in changes.items():
        setattr(published, key, value)
    model = AutoModelForCausalLM.from_config(published, attn_implementation="sdpa")
    missing, unexpected = model.load_state_dict(module.state_dict(), strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    return model.to(dtype).eval()


@torch.no_grad()
def their_logits(model: Any, mask: Tensor | None, position: Tensor, ids: Tensor = IDS) -> Tensor:
    logits = model(input_ids=ids, attention_mask=mask, position_ids=position, use_cache=False).logits
    return logits.float().index_fill(-1, torch.tensor([MASK]), float("-inf"))


@pytest.mark.parametrize("block_length", [4, 2, 5])
def test_sdar_is_qwen3_with_a_block_causal_mask(block_length):
    module = make_family("sdar", block_length).module
    layout = sequence_layout(torch.ones_like(IDS, dtype=torch.bool), block_length)
    expected = their_logits(theirs(module), layout.visible()[:, None], layout.position)
    with torch.no_grad():
        torch.testing.assert_close(module(IDS), expected, rtol=0, atol=1e-6)


def test_sdar_in_the_doubled_layout_is_qwen3_with_the_doubled_mask():
    module = make_family("sdar", 4).module
    layout = doubled_layout(torch.ones(2, 6, dtype=torch.bool), 4, copied=6)
    expected = their_logits(theirs(module), layout.visible()[:, None], layout.position)
    with torch.no_grad():
        torch.testing.assert_close(module(IDS, layout=layout), expected, rtol=0, atol=1e-6)


def test_dream_is_qwen2_attending_fully_with_logits_one_row_late():
    module = make_family("dream", None).module
    position = torch.arange(12).expand(2, 12)
    everything = torch.ones(2, 1, 12, 12, dtype=torch.bool)
    rows = their_logits(theirs(module), everything, position)
    with torch.no_grad():
        logits = module(IDS)
    torch.testing.assert_close(logits[:, 1:], rows[:, :-1], rtol=0, atol=1e-6)
    torch.testing.assert_close(logits[:, 0], rows[:, 0], rtol=0, atol=1e-6)


def test_a_converted_model_is_what_transformers_makes_of_the_config():
    """`is_causal` false in the configuration, and a two-dimensional padding mask."""
    module = make_family("a2d", None).module
    mask = torch.ones_like(IDS, dtype=torch.bool)
    mask[0, :4] = False
    position = (mask.long().cumsum(-1) - 1).clamp_min(0)
    model = theirs(module, is_causal=module.config.to_dict()["is_causal"])
    expected = their_logits(model, mask.long(), position)
    with torch.no_grad():
        torch.testing.assert_close(module(IDS, mask)[mask], expected[mask], rtol=0, atol=1e-6)


def test_in_bfloat16_the_layers_are_still_bit_equal_to_transformers():
    module = make_family("sdar", 4).module
    model = theirs(module, torch.bfloat16)
    fresh = published_config(module.config)  # a cast of the whole model degrades its buffer of frequencies
    model.model.rotary_emb = type(model.model.rotary_emb)(fresh)
    layout = sequence_layout(torch.ones_like(IDS, dtype=torch.bool), 4)
    expected = their_logits(model, layout.visible()[:, None], layout.position)
    with torch.no_grad():
        assert torch.equal(module.bfloat16()(IDS), expected)


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


@pytest.mark.parametrize("backbone", ["llama", "qwen2"])
@pytest.mark.parametrize("scaling", [None, LLAMA3, {"type": "linear", "factor": 2.0}])
@pytest.mark.parametrize("block_length", [None, 4])
def test_llama_and_qwen2_convert_with_their_rope_scaling(backbone, scaling, block_length):
    base = made_config(
        "a2d", INIT, vocab_size=14, mask_id=MASK, eos_id=EOS, pad_id=EOS, block_length=None
    ).to_dict()
    plain = {key: value for key, value in base.items() if key not in ("diffusion", "is_causal")}
    if backbone == "qwen2":
        del plain["head_dim"]
    data = {**plain, "model_type": backbone, "rope_scaling": scaling}
    config = read_config("a2d", convert_config(data, mask_id=MASK, block_length=block_length), "test")
    module = Decoder(config)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.3, 0.2)
    module.forbid([MASK])
    layout = sequence_layout(torch.ones_like(IDS, dtype=torch.bool), block_length)
    expected = their_logits(theirs(module), layout.visible()[:, None], layout.position)
    with torch.no_grad():
        torch.testing.assert_close(module(IDS), expected, rtol=0, atol=1e-5)


def test_a_row_is_scored_by_the_one_before_it_unless_a_sequence_begins_there():
    hidden = torch.arange(7.0)[None, :, None]
    position = torch.tensor([[0, 0, 1, 2, 0, 1, 5]])  # padding, a sequence, another, a jump
    assert previous_rows(hidden, position)[0, :, 0].tolist() == [0, 1, 1, 2, 4, 4, 6]


def test_the_row_of_the_padding_token_learns():
    """transformers' classes would freeze it, and it is the end-of-text token too (specs: models 5.2)."""
    module = make_family("dream", None).module
    ids = torch.tensor([[3, EOS, MASK, 4]])
    module(ids, labels=ids * 0 + 3).sum().backward()
    assert module.model.embed_tokens.weight.grad[EOS].abs().max() > 0
