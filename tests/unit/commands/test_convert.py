"""`rl4dlm convert`: GGUF files and folders become plain folders or diffusion models, or leave nothing."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rl4dlm import models
from rl4dlm.commands.convert import ConvertRequest, convert_model
from rl4dlm.errors import UserError

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from ar_toys import KINDS, tokenizer_without_mask, write_parent  # noqa: E402

gguf_needed = pytest.mark.skipif(
    importlib.util.find_spec("gguf") is None, reason="the optional package gguf is not installed"
)
TEMPLATE = "{% for message in messages %}{{ message['content'] }}={% endfor %}"
_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.": "blk.",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def as_stored(name: str, tensor: torch.Tensor, kind: str) -> tuple[str, np.ndarray]:
    """A tensor under llama.cpp's name; of Llama the rotated halves of a head are interleaved there."""
    heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])
    if kind == "llama" and heads is not None:
        tensor = tensor.view(heads, 2, 4, -1).transpose(1, 2).reshape(tensor.shape)
    for theirs, ours in _NAMES.items():
        name = name.replace(theirs, ours)
    return name, tensor.numpy()


def write_gguf(file: Path, parent: Path, kind: str, **changes: Any) -> Path:
    """The model of a folder as a GGUF file with a byte-level tokenizer of its own."""
    from gguf import GGUFWriter

    config = json.loads((parent / "config.json").read_text())
    writer = GGUFWriter(str(file), changes.get("architecture", kind))
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_key_length(8)
    writer.add_value_length(8)
    writer.add_rope_dimension_count(8)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(13)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([*"0123456789", "10", "<|endoftext|>", "<|start|>"])
    writer.add_token_types([1] * 11 + [3, 3])
    writer.add_token_merges(["1 0"])
    writer.add_eos_token_id(11)
    writer.add_bos_token_id(12)
    writer.add_chat_template(TEMPLATE)
    if "scaling" in changes:
        writer.add_string(f"{kind}.rope.scaling.type", changes["scaling"])
    for name, tensor in AutoModelForCausalLM.from_pretrained(parent).state_dict().items():
        if name == "lm_head.weight" and config["tie_word_embeddings"]:
            continue
        stored, values = as_stored(name, tensor, kind)
        if stored != changes.get("without"):
            writer.add_tensor(stored, values)
    if "more" in changes:
        writer.add_tensor(changes["more"], np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parent(tmp_path_factory.mktemp("llama") / "parent", "llama")


def refused(request: ConvertRequest, match: str) -> None:
    """One message, and nothing beside or under the name of the target."""
    before = sorted(request.folder.parent.iterdir())
    with pytest.raises(UserError, match=match) as caught:
        convert_model(request)
    assert "Fix: " in str(caught.value)
    assert sorted(request.folder.parent.iterdir()) == before


# --- GGUF ---


@gguf_needed
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_gguf_file_becomes_the_model_it_was_written_from(kind, tied, tmp_path):
    parent = write_parent(tmp_path / "parent", kind, tied=tied)
    text = convert_model(
        ConvertRequest(str(write_gguf(tmp_path / "m.gguf", parent, kind)), tmp_path / "plain")
    )
    assert text.startswith(f"wrote {tmp_path / 'plain'}: ") and text.endswith(" parameters, float32")
    source, ours = (AutoModelForCausalLM.from_pretrained(f) for f in (parent, tmp_path / "plain"))
    for name, tensor in source.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor, rtol=0, atol=0)
    ids = torch.tensor([[3, 1, 4, 1, 5, 9]])
    torch.testing.assert_close(ours(ids).logits, source(ids).logits, rtol=0, atol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "plain")
    assert tokenizer("3103").input_ids == [3, 1, 0, 3] and tokenizer.eos_token_id == 11
    assert tokenizer.chat_template == TEMPLATE
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())


@gguf_needed
def test_a_gguf_file_becomes_a_diffusion_model_straight_away(parent, tmp_path):
    file = write_gguf(tmp_path / "m.gguf", parent, "llama")
    text = convert_model(ConvertRequest(str(file), tmp_path / "made", "blocks", 1))
    assert "blocks of 1, logit_shift 1, mask token <|mask|> (id 13)" in text
    loaded = models.load(tmp_path / "made")
    ids = torch.tensor([[3, 1, 4, 1, 5, 9]])
    theirs = AutoModelForCausalLM.from_pretrained(parent)(ids).logits
    torch.testing.assert_close(loaded.module(ids)[:, 1:, :13], theirs[:, :-1], rtol=0, atol=1e-5)
    assert sorted(tmp_path.iterdir()) == [file, tmp_path / "made"]
    assert not (tmp_path / "made" / "unpacked").exists()


@gguf_needed
@pytest.mark.parametrize("keep", [0, 3, 20, 300, 0.5, 0.95, -1])
def test_a_truncated_gguf_file_is_refused(parent, tmp_path, keep):
    file = write_gguf(tmp_path / "m.gguf", parent, "llama")
    data = file.read_bytes()
    file.write_bytes(data[: int(keep * len(data)) if 0 < keep < 1 else keep])
    refused(ConvertRequest(str(file), tmp_path / "made"), "truncated or damaged|is no GGUF file")


@gguf_needed
@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"architecture": "gemma3"}, "the architecture 'gemma3' cannot be converted"),
        ({"more": "rope_freqs.weight"}, "the tensor rope_freqs.weight would be lost"),
        ({"scaling": "yarn"}, "rotary angles scaled by 'yarn' would be lost"),
        ({"without": "blk.1.attn_q.weight"}, "model.layers.1.self_attn.q_proj.weight is missing"),
    ],
)
def test_a_gguf_file_that_would_become_another_model_is_refused(parent, tmp_path, changes, match):
    file = write_gguf(tmp_path / "m.gguf", parent, "llama", **changes)
    refused(ConvertRequest(str(file), tmp_path / "made"), match)


def test_without_the_package_the_message_names_the_extra(tmp_path, monkeypatch):
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF and more")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "gguf" else find(name, *rest)
    )
    refused(ConvertRequest(str(file), tmp_path / "made"), r"needs the package gguf.*rl4dlm\[gguf\]")


# --- Folders ---


def test_a_folder_is_written_again_without_what_is_no_part_of_the_model(parent, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for file in parent.iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    (source / "optimizer.pt").write_bytes(b"x")
    convert_model(ConvertRequest(str(source), tmp_path / "plain"))
    assert not (tmp_path / "plain" / "optimizer.pt").exists()
    ids = torch.tensor([[3, 1, 4]])
    one, two = (AutoModelForCausalLM.from_pretrained(f)(ids).logits for f in (parent, tmp_path / "plain"))
    assert torch.equal(one, two)


@pytest.mark.parametrize(("shift", "expected"), [(None, 1), (True, 1), (False, 0)])
def test_a_folder_becomes_a_model_in_blocks(parent, tmp_path, shift, expected):
    convert_model(ConvertRequest(str(parent), tmp_path / "made", "blocks", 4, shift))
    spec = models.load(tmp_path / "made").spec
    assert (spec.block_length, spec.logit_shift) == (4, expected)


def test_a_folder_becomes_a_model_with_full_attention(parent, tmp_path):
    convert_model(ConvertRequest(str(parent), tmp_path / "made", "full"))
    spec = models.load(tmp_path / "made").spec
    assert (spec.attention, spec.logit_shift) == ("full", 0)


@pytest.mark.parametrize(
    ("more", "named", "expected", "id"),
    [
        ((), None, "<|mask|>", 13),
        (("<|reserved_0|>", "<|reserved_1|>"), None, "<|reserved_0|>", 13),
        (("<|reserved_special_token_0|>",), "<|hidden|>", "<|hidden|>", 14),
        (("<unused7>", "<|im_start|>"), None, "<unused7>", 13),
        (("<|im_start|>",), "<|im_start|>", "<|im_start|>", 13),
        (("<|im_start|>",), "13", "<|im_start|>", 13),
    ],
)
def test_the_mask_is_the_named_token_else_a_reserved_one_else_a_new_one(tmp_path, more, named, expected, id):
    source = write_parent(tmp_path / "parent", "qwen3", rows=13 + len(more))
    tokenizer_without_mask(*more).save_pretrained(source)
    convert_model(ConvertRequest(str(source), tmp_path / "made", "blocks", 2, None, named))
    loaded = models.load(tmp_path / "made")
    assert (loaded.tokenizer.mask_token, loaded.spec.mask_id) == (expected, id)
    embedding = loaded.module.model.embed_tokens.weight
    before = AutoModelForCausalLM.from_pretrained(source).get_input_embeddings().weight
    others = torch.cat((before[:id], before[id + 1 :]))
    torch.testing.assert_close(embedding[id], others.mean(0), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"block_length": 4}, "--block-length is about a diffusion model"),
        ({"logit_shift": False}, "--shift is about a diffusion model"),
        ({"mask_token": "x"}, "--mask-token is about a diffusion model"),
        ({"to": "blocks"}, "--to blocks needs the length of a block"),
        ({"to": "full", "block_length": 4}, "--to full has no blocks"),
        ({"to": "full", "mask_token": "<|endoftext|>"}, "begins or ends a text"),
        ({"to": "full", "mask_token": "77"}, "no token has the id 77"),
    ],
)
def test_options_that_do_not_go_together_are_refused(parent, tmp_path, options, match):
    refused(ConvertRequest(str(parent), tmp_path / "made", **options), match)


def test_a_source_that_is_nothing_and_a_diffusion_model_are_refused(parent, tmp_path):
    refused(
        ConvertRequest(str(tmp_path / "nothing"), tmp_path / "made"), "is no GGUF file, model folder or hub"
    )
    convert_model(ConvertRequest(str(parent), tmp_path / "blocks", "blocks", 2))
    again = ConvertRequest(str(tmp_path / "blocks"), tmp_path / "made", "blocks", 4)
    refused(again, "is a diffusion model already")
    (tmp_path / "text.bin").write_text("no model")
    refused(ConvertRequest(str(tmp_path / "text.bin"), tmp_path / "made"), "is no GGUF file")


@pytest.mark.parametrize("to", [None, "blocks"])
def test_a_folder_of_another_architecture_is_refused(parent, tmp_path, to):
    source = tmp_path / "source"
    source.mkdir()
    for file in parent.iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    config = json.loads((source / "config.json").read_text()) | {"model_type": "gpt2"}
    (source / "config.json").write_text(json.dumps(config))
    length = None if to is None else 4
    refused(ConvertRequest(str(source), tmp_path / "made", to, length), "not a family that rl4dlm implements")


def test_a_target_that_is_not_empty_is_left_as_it_is(parent, tmp_path):
    target = tmp_path / "made"
    target.mkdir()
    (target / "mine.txt").write_text("mine")
    refused(ConvertRequest(str(parent), target), "already exists and is not empty")
    assert [file.name for file in target.iterdir()] == ["mine.txt"]
