"""An autoregressive folder opened as a diffusion model, saved, and opened again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from ar_toys import tokenizer_without_mask
from family_toys import EOS, INIT, TEXT
from transformers import AutoModelForCausalLM

from rl4dlm import models
from rl4dlm.errors import ModelError
from rl4dlm.models.decoder import published_config
from rl4dlm.models.network_config import made_config
from rl4dlm.recipe.sections import LoraSettings


@pytest.fixture(params=[13, 16])
def rows(request: pytest.FixtureRequest) -> int:
    """Embedding rows: none to spare, or three."""
    return request.param


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def folder(request: pytest.FixtureRequest, rows: int, tmp_path: Path) -> Path:
    """A Qwen3 as transformers writes it."""
    config = made_config("a2d", INIT, vocab_size=14, mask_id=13, eos_id=EOS, pad_id=EOS, block_length=None)
    published = published_config(config)
    published.update({"vocab_size": rows, "eos_token_id": EOS, "tie_word_embeddings": request.param})
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(published).save_pretrained(tmp_path / "ar")
    tokenizer_without_mask().save_pretrained(tmp_path / "ar")
    return tmp_path / "ar"


def test_the_mask_gets_the_first_free_row_which_starts_as_the_mean_of_the_tokens(folder, rows):
    loaded = models.load(folder, family="a2d", block_length=4)
    assert (loaded.spec.mask_id, loaded.spec.attention, loaded.spec.block_length) == (13, "block_causal", 4)
    assert loaded.spec.vocab_size == max(14, rows)
    assert set(range(13, max(14, rows))) == set(loaded.spec.forbidden_ids)
    original = AutoModelForCausalLM.from_pretrained(folder)
    embedding = loaded.module.model.embed_tokens.weight
    before = original.get_input_embeddings().weight
    torch.testing.assert_close(embedding[:13], before[:13], rtol=0, atol=0)
    torch.testing.assert_close(embedding[13], before[:13].mean(0), rtol=0, atol=1e-7)
    torch.testing.assert_close(embedding[14:], before[14:], rtol=0, atol=0)
    assert (loaded.module.lm_head.weight is embedding) == original.config.tie_word_embeddings


def test_the_converted_model_predicts_what_the_original_did_where_it_sees_the_same(folder):
    """With blocks of one token the attention is causal: until trained, only a prediction's place differs."""
    loaded = models.load(folder, family="a2d", block_length=1, logit_shift=0)
    original = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.randint(0, TEXT, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = loaded.module(ids)[..., :13], original(ids).logits[..., :13]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("block_length", [None, 4])
def test_a_saved_conversion_is_a_diffusion_model_of_its_own(folder, tmp_path, block_length):
    loaded = models.load(folder, family="a2d", block_length=block_length)
    saved = models.save(loaded, tmp_path / "saved", loaded.tokenizer)
    config = json.loads((saved / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("qwen3", ["Qwen3ForCausalLM"])
    assert config["is_causal"] is False and config["mask_token_id"] == 13
    again = models.load(saved)
    assert (again.spec, again.family) == (loaded.spec, "a2d")
    ids = torch.tensor([[3, 1, 13, 4, 13, 5]])
    assert torch.equal(again.module(ids), loaded.module(ids))
    assert models.inspect(saved).num_parameters == models.inspect(folder, family="a2d").num_parameters


def test_transformers_loads_a_saved_conversion_and_attends_fully(folder, tmp_path):
    loaded = models.load(folder, family="a2d")
    saved = models.save(loaded, tmp_path / "saved", loaded.tokenizer)
    theirs = AutoModelForCausalLM.from_pretrained(saved).eval()
    ids = torch.tensor([[3, 1, 13, 4, 13, 5]])
    with torch.no_grad():
        logits = theirs(ids).logits
        ours = loaded.module(ids)
    torch.testing.assert_close(ours[..., :13], logits[..., :13], rtol=0, atol=1e-5)


def test_tokenizer_and_facts_of_a_folder_to_convert_are_known_without_its_weights(folder, rows):
    tokenizer, spec = models.load_tokenizer(folder, family="a2d", block_length=4)
    assert spec == models.load(folder, family="a2d", block_length=4).spec
    assert tokenizer.mask_token == "<|mask|>"
    facts = models.inspect(folder, family="a2d", block_length=4)
    assert (facts.family, facts.vocab_size) == ("a2d", max(14, rows))


def test_an_autoregressive_folder_is_not_taken_for_a_diffusion_model(folder):
    with pytest.raises(ModelError, match="is an autoregressive model. Fix: set model.family=a2d"):
        models.load(folder)


def test_a_block_length_that_contradicts_the_folder_is_refused(folder, tmp_path):
    loaded = models.load(folder, family="a2d", block_length=4)
    saved = models.save(loaded, tmp_path / "saved", loaded.tokenizer)
    assert models.load(saved, block_length=4).spec.block_length == 4
    with pytest.raises(ModelError, match="block length is 4, and the recipe says model.block_length = 8"):
        models.load(saved, block_length=8)


def test_adapters_on_a_conversion_leave_its_embedding_alone(folder):
    loaded = models.load(folder, family="a2d", block_length=4)
    ids = torch.tensor([[3, 1, 13, 4, 13, 5]])
    before = loaded.module(ids)
    adapted = models.add_lora(loaded.module, LoraSettings(r=2), "a2d")
    assert torch.equal(adapted(ids), before)
    assert len(models.trainable_state(adapted)) == 2 * 7 * INIT.n_layers


@pytest.mark.parametrize(("block_length", "shift"), [(4, 1), (None, 0)])
def test_a_conversion_in_blocks_is_shifted_unless_told_otherwise(folder, tmp_path, block_length, shift):
    options = {"family": "a2d", "block_length": block_length}
    assert models.load(folder, **options).spec.logit_shift == shift
    for chosen in (0, 1):
        loaded = models.load(folder, **options, logit_shift=chosen)
        assert models.inspect(folder, **options, logit_shift=chosen).family == "a2d"
        saved = models.save(loaded, tmp_path / str(chosen), loaded.tokenizer)
        assert json.loads((saved / "config.json").read_text())["diffusion"]["logit_shift"] == chosen
        again = models.load(saved)
        assert again.spec == loaded.spec and again.spec.logit_shift == chosen
        ids = torch.tensor([[3, 1, 13, 4, 13, 5]])
        assert torch.equal(again.module(ids), loaded.module(ids))


@pytest.mark.parametrize("trained", [0, 1])
def test_a_shift_that_contradicts_the_folder_is_refused(folder, tmp_path, trained):
    loaded = models.load(folder, family="a2d", block_length=4, logit_shift=trained)
    saved = models.save(loaded, tmp_path / "saved", loaded.tokenizer)
    assert models.load(saved, logit_shift=trained).spec.logit_shift == trained
    message = f"trained with logit_shift = {trained}, and the recipe says model.logit_shift = {1 - trained}"
    for open_it in (models.load, models.inspect, models.load_tokenizer):
        with pytest.raises(ModelError, match=message):
            open_it(saved, logit_shift=1 - trained)


def test_a_folder_that_does_not_speak_of_a_shift_was_trained_without(folder, tmp_path):
    loaded = models.load(folder, family="a2d", block_length=4, logit_shift=0)
    saved = models.save(loaded, tmp_path / "saved", loaded.tokenizer)
    config = json.loads((saved / "config.json").read_text())
    del config["diffusion"]["logit_shift"]
    (saved / "config.json").write_text(json.dumps(config))
    assert models.load(saved).spec.logit_shift == 0
    with pytest.raises(ModelError, match="trained with logit_shift = 0"):
        models.load(saved, logit_shift=1)


@pytest.mark.parametrize("value", [2, -1, True, "1", [1]])
def test_a_folder_with_a_shift_that_is_none_is_refused(folder, tmp_path, value):
    loaded = models.load(folder, family="a2d", block_length=4)
    saved = models.save(loaded, tmp_path / "saved", loaded.tokenizer)
    config = json.loads((saved / "config.json").read_text())
    config["diffusion"]["logit_shift"] = value
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="diffusion.logit_shift = "):
        models.load(saved)


@pytest.mark.parametrize(("family", "shift"), [("llada", 0), ("dream", 1)])
def test_a_family_fixes_its_own_shift(family, shift, tmp_path):
    tokenizer = models.build_char_tokenizer("0123456789=")
    made = models.create(INIT, tokenizer, 0, family=family, logit_shift=shift)
    folder = models.save(made, tmp_path / "model", tokenizer)
    message = f"the family {family}, which always has logit_shift = {shift}"
    with pytest.raises(ModelError, match=message):
        models.load(folder, logit_shift=1 - shift)
    with pytest.raises(ModelError, match=message):
        models.create(INIT, tokenizer, 0, family=family, logit_shift=1 - shift)


def test_a_model_of_the_family_from_scratch_takes_a_shift():
    tokenizer = models.build_char_tokenizer("0123456789=")
    options = {"family": "a2d", "block_length": 4}
    made = models.create(INIT, tokenizer, 0, **options, logit_shift=1)
    assert made.spec.logit_shift == 1 and models.create(INIT, tokenizer, 0, **options).spec.logit_shift == 0
