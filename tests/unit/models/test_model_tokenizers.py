"""Tokenizers built by the package: exact round trips, saved and loaded, no silent loss."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rl4dlm import models
from rl4dlm.errors import DataError, ModelError
from rl4dlm.models.tokenizers import build_bpe_tokenizer, build_char_tokenizer, encode
from rl4dlm.recipe.sections import ModelInit

CHARACTERS = "0123456789+-=, \n\\"
TEXTS = ["Natalia sold 48 clips in April.", "How many clips did she sell?", "  indented\n\tlines\n\n"] * 3
CHAR = build_char_tokenizer(CHARACTERS)
BPE = build_bpe_tokenizer(TEXTS, 300)


def reloaded(tokenizer, folder):
    tokenizer.save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return [reloaded(tokenizer, tmp_path_factory.mktemp("tokenizer")) for tokenizer in (CHAR, BPE)]


@settings(max_examples=50, deadline=None)
@given(text=st.text(alphabet=CHARACTERS, max_size=30))
def test_every_text_over_the_characters_comes_back_one_id_each(text):
    ids = encode(CHAR, text)
    assert ids == tuple(CHARACTERS.index(character) for character in text)
    assert CHAR.decode(ids) == text


@settings(max_examples=50, deadline=None)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=30))
def test_every_text_comes_back_from_byte_level_bpe(text):
    assert BPE.decode(encode(BPE, text)) == text


def test_saved_tokenizers_encode_and_decode_alike(saved):
    for original, again, text in zip((CHAR, BPE), saved, ("12 +\n3=", "clips é \n 文"), strict=True):
        assert type(again) is type(original)
        assert again.get_vocab() == original.get_vocab()
        assert encode(again, text) == encode(original, text)
        assert again.decode(encode(again, text)) == text
        for role in ("mask", "eos", "pad", "bos"):
            token = getattr(original, f"{role}_token_id")
            assert token is not None and getattr(again, f"{role}_token_id") == token


def test_special_tokens_have_lladas_names_and_end_of_text_pads():
    for tokenizer in (CHAR, BPE):
        assert (tokenizer.mask_token, tokenizer.eos_token) == ("<|mdm_mask|>", "<|endoftext|>")
        assert (tokenizer.pad_token, tokenizer.bos_token) == ("<|endoftext|>", "<|startoftext|>")
        assert tokenizer.unk_token is None
        ids = {tokenizer.mask_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id}
        assert len(ids) == 3 and max(tokenizer.get_vocab().values()) == len(tokenizer) - 1


def test_special_tokens_in_a_text_keep_their_meaning_and_none_are_added():
    assert encode(CHAR, "1<|endoftext|>") == (1, CHAR.eos_token_id)
    assert CHAR.decode([1, CHAR.eos_token_id, CHAR.mask_token_id], skip_special_tokens=True) == "1"
    assert BPE.eos_token_id not in encode(BPE, "clips")


def test_a_character_without_an_id_is_named_with_its_place():
    with pytest.raises(DataError, match=r"cannot represent 'x' at character 2 of '1\+x'.*Fix:"):
        encode(CHAR, "1+x")


def test_a_tokenizer_with_an_unknown_token_is_held_to_the_same():
    from tokenizers import Tokenizer, models, pre_tokenizers

    backend = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="?")
    assert encode(tokenizer, "aa") == (0, 0)
    with pytest.raises(DataError, match="cannot represent 'b' at character 1"):
        encode(tokenizer, "ab")


def test_repeated_characters_count_once_and_none_is_refused():
    assert len(build_char_tokenizer("0110")) == 2 + 3
    with pytest.raises(ModelError, match="at least one character"):
        build_char_tokenizer("")


def test_bpe_training_merges_is_deterministic_and_keeps_to_its_size():
    again = build_bpe_tokenizer(iter(TEXTS), 300)
    assert again.get_vocab() == BPE.get_vocab()
    assert 259 < len(BPE) <= 300
    assert len(encode(BPE, "clips")) < 5


def test_bpe_refuses_a_size_without_room_for_all_bytes():
    with pytest.raises(
        ModelError, match=r"vocab_size = 258 has no room for the 259.*Fix: set it to at least 259"
    ):
        build_bpe_tokenizer(TEXTS, 258)


def test_the_chat_template_gives_lladas_layout(tmp_path):
    tokenizer = reloaded(build_bpe_tokenizer(TEXTS, 300, chat_template=True), tmp_path)
    messages = [{"role": "user", "content": " 1+1? "}, {"role": "assistant", "content": "2"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|startoftext|><|start_header_id|>user<|end_header_id|>\n\n1+1?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n2<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    ids = encode(tokenizer, text)
    assert ids.count(tokenizer.convert_tokens_to_ids("<|eot_id|>")) == 2
    assert tokenizer.decode(ids) == text


def test_there_is_no_chat_template_unless_asked_for():
    assert CHAR.chat_template is None and BPE.chat_template is None


PRIVATE = ("TokenizersBackend", "is_local", "local_files_only", "backend", "auto_map", "name_or_path")


@pytest.mark.parametrize(
    ("found", "written"),
    [
        (None, "PreTrainedTokenizerFast"),
        ("TokenizersBackend", "PreTrainedTokenizerFast"),
        ("DreamTokenizer", "PreTrainedTokenizerFast"),  # of code that the export does not hold
        ("Qwen2Tokenizer", "Qwen2Tokenizer"),
        ("Qwen2TokenizerFast", "Qwen2TokenizerFast"),
    ],
)
def test_a_saved_tokenizer_names_a_class_that_every_transformers_has(found, written, tmp_path):
    made = build_bpe_tokenizer(["one two three"] * 3, 300, chat_template=True)
    made.add_special_tokens({"additional_special_tokens": ["<|role_end|>"]})
    sizes = ModelInit(d_model=16, n_layers=1, n_heads=2, mlp_hidden_size=16, max_sequence_length=32)
    first = models.save(models.create(sizes, made, 0), tmp_path / "first", made)
    file = first / "tokenizer_config.json"
    config = {**json.loads(file.read_text()), "tokenizer_class": found, "name_or_path": str(tmp_path)}
    config["auto_map"] = {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]}
    file.write_text(json.dumps(config))
    loaded = models.load(first)
    second = models.save(loaded, tmp_path / "second", loaded.tokenizer)
    text = (second / "tokenizer_config.json").read_text()
    assert json.loads(text)["tokenizer_class"] == written
    assert [word for word in (*PRIVATE, str(tmp_path)) if word in text] == []
    # transformers 4 reads a list of tokens under this name alone, and no chat_template.jinja before 4.50
    assert json.loads(text)["additional_special_tokens"] == ["<|role_end|>"]
    assert json.loads(text)["chat_template"] == made.chat_template
    opened = AutoTokenizer.from_pretrained(second)
    assert opened("one two<|role_end|>")["input_ids"] == made("one two<|role_end|>")["input_ids"]
    assert (opened.mask_token_id, opened.chat_template) == (made.mask_token_id, made.chat_template)
    assert "<|role_end|>" in opened.all_special_tokens
