"""What a folder may hold beside, or instead of, exactly the network's tensors and a tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from family_toys import make_family
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from rl4dlm import models
from rl4dlm.errors import ModelError

IDS = torch.tensor([[3, 1, 13, 4, 13, 5]])


@pytest.fixture
def tied(tmp_path: Path) -> Path:
    """A converted model whose head is the embedding."""
    loaded = make_family("a2d", 4)
    return models.save(loaded, tmp_path / "m", loaded.tokenizer)


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_tied_head_may_be_stored_a_second_time(tied):
    expected = models.load(tied).module(IDS)
    rewrite(tied, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    loaded = models.load(tied)
    assert torch.equal(loaded.module(IDS), expected)
    assert loaded.module.lm_head.weight is loaded.module.model.embed_tokens.weight
    assert models.inspect(tied).num_parameters == sum(p.numel() for p in loaded.module.parameters())


def test_a_tied_head_that_differs_is_refused(tied):
    rewrite(tied, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1}))
    with pytest.raises(ModelError, match="lm_head.weight differs from the embedding.*Fix: correct tie_word"):
        models.load(tied)


def test_stored_rotary_frequencies_are_not_needed(tied):
    expected = models.load(tied).module(IDS)
    rewrite(tied, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    assert torch.equal(models.load(tied).module(IDS), expected)
    rewrite(tied, lambda t: t.update({"model.layers.0.self_attn.rotary.inv": torch.ones(4)}))
    with pytest.raises(ModelError, match="rotary.inv is unexpected"):
        models.load(tied)


def test_a_tokenizer_may_come_as_vocabulary_and_merges(tmp_path):
    """Dream is published with its two files and a class of its own, which Qwen2's replaces."""
    from rl4dlm.models import build_bpe_tokenizer, create, encode, save
    from rl4dlm.recipe.sections import ModelInit

    tokenizer = build_bpe_tokenizer(["the quick brown fox jumps over the lazy dog"] * 4, 300)
    sizes = ModelInit(d_model=16, n_layers=1, n_heads=2, mlp_hidden_size=16, max_sequence_length=64)
    folder = save(create(sizes, tokenizer, 0, family="dream"), tmp_path / "m", tokenizer)
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.model.save(str(folder))
    (folder / "tokenizer.json").unlink()
    added = {
        str(tokenizer.convert_tokens_to_ids(token)): {"content": token, "special": True, "normalized": False}
        for token in (tokenizer.mask_token, tokenizer.eos_token, tokenizer.bos_token)
    }
    settings = {
        "tokenizer_class": "DreamTokenizer",
        "added_tokens_decoder": added,
        "mask_token": tokenizer.mask_token,
        "eos_token": tokenizer.eos_token,
        "pad_token": tokenizer.eos_token,
        "chat_template": "{{ messages[0]['content'] }}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    loaded = models.load(folder)
    assert loaded.tokenizer.mask_token_id == tokenizer.mask_token_id == loaded.spec.mask_id
    assert encode(loaded.tokenizer, "the lazy fox") == encode(tokenizer, "the lazy fox")
    assert loaded.tokenizer.chat_template == settings["chat_template"]


def test_a_family_whose_tokenizer_cannot_be_made_of_them_wants_tokenizer_json(tmp_path):
    loaded = make_family("llada2", 4)
    folder = models.save(loaded, tmp_path / "m", loaded.tokenizer)
    (folder / "tokenizer.json").rename(folder / "vocab.json")
    (folder / "merges.txt").write_text("")
    with pytest.raises(ModelError, match="tokenizer.json is missing. Fix: download"):
        models.load(folder)


def test_a_damaged_tokenizer_is_named(tied):
    (tied / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="the tokenizer cannot be read.*Fix: download the tokenizer files"):
        models.load(tied)


def test_the_mask_must_be_the_tokenizers(tmp_path):
    loaded = make_family("sdar", 4)
    folder = models.save(loaded, tmp_path / "m", loaded.tokenizer)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "mask_token_id": 5}))
    with pytest.raises(ModelError, match="mask_token_id = 5 in config.json, but the tokenizer gives"):
        models.load_tokenizer(folder)


def test_a_vocabulary_smaller_than_the_mask_id_is_refused(tmp_path):
    loaded = make_family("sdar", 4)
    folder = models.save(loaded, tmp_path / "m", loaded.tokenizer)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 13}))
    with pytest.raises(
        ModelError, match="mask_token_id = 13 lies beyond the 13 rows of the embedding matrix"
    ):
        models.inspect(folder)


def test_loading_reads_one_tensor_at_a_time_and_each_file_once(tmp_path, monkeypatch):
    from rl4dlm.models import weights

    loaded = make_family("sdar", 4)
    folder = models.save(loaded, tmp_path / "m", loaded.tokenizer, max_shard_bytes=20_000)
    files = []
    real = weights.safe_open
    monkeypatch.setattr(weights, "safe_open", lambda file, **kw: files.append(file) or real(file, **kw))
    assert torch.equal(models.load(folder).module(IDS), loaded.module(IDS))
    assert len(files) == len(set(files)) == len(list(folder.glob("*.safetensors"))) > 2
