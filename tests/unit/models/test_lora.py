"""Adapters: nothing changes until they are trained, the Denoiser contract holds, merging only rounds."""

from __future__ import annotations

import json
import os

import pytest
import torch

from rl4dlm import models
from rl4dlm.errors import ModelError, StorageError, SyncError
from rl4dlm.recipe.sections import LoraSettings

SETTINGS = LoraSettings(r=4, lora_alpha=8)


@pytest.fixture
def adapted(tiny):
    """A model with adapters whose B is no longer zero."""

    def build(seed: int = 1, **changes):
        module = models.add_lora(tiny(**changes), SETTINGS, "llada")
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, tensor in models.trainable_state(module).items():
                if ".lora_B." in name:
                    tensor.normal_(0, 0.1, generator=generator)
        return module

    return build


def call(module, tokens):
    return module(tokens, None, select=tokens == 20, labels=tokens % 19, temperature=0.8)


def test_fresh_adapters_change_nothing(tiny, tokens):
    expected = call(tiny(), tokens)
    assert torch.equal(call(models.add_lora(tiny(), SETTINGS, "llada"), tokens), expected)


def test_adapters_sit_on_all_projections_of_the_blocks_and_never_on_the_head(tiny):
    names = list(models.trainable_state(models.add_lora(tiny(), SETTINGS, "llada")))
    assert len(names) == 2 * 7 * 2  # layers x projections x (A, B)
    assert all(".blocks." in name for name in names)
    assert not [name for name in names if "transformer.ff_out" in name]


def test_only_adapters_are_trained(adapted, tokens):
    module = adapted()
    call(module, tokens).sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.requires_grad == (".lora_" in name)
        assert (parameter.grad is not None) == (".lora_" in name)


def test_the_reference_is_the_base_model_and_the_adapters_come_back(adapted, tiny, tokens):
    module, base = adapted(), call(tiny(), tokens)
    policy = call(module, tokens)
    assert (policy - base).abs().max() > 0.05
    with models.reference(module):
        assert torch.equal(call(module, tokens), base)
    assert torch.equal(call(module, tokens), policy)
    assert all(p.requires_grad == (".lora_" in name) for name, p in module.named_parameters())


def test_a_model_without_adapters_has_no_reference_inside(tiny):
    with pytest.raises(ValueError, match="no reference"):
        models.reference(tiny())


def test_merged_weights_have_published_names_and_agree_to_rounding(adapted, tiny, tokens):
    module, plain = adapted(), tiny()
    before = [parameter.clone() for parameter in module.parameters()]
    state = models.merged_state_dict(module)
    assert set(state) == {name for name, _ in plain.named_parameters()}
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    plain.load_state_dict(state)
    torch.testing.assert_close(call(plain, tokens), call(module, tokens), atol=1e-5, rtol=0)


def test_merging_a_model_without_adapters_gives_its_own_weights(tiny):
    module = tiny(weight_tying=True)
    state = models.merged_state_dict(module)
    assert state.keys() == dict(module.named_parameters()).keys()
    assert all(torch.equal(state[name], parameter) for name, parameter in module.named_parameters())


def test_merging_into_bfloat16_rounds_once(tiny):
    module = models.add_lora(tiny().bfloat16(), SETTINGS, "llada")
    layer = module.base_model.model.model.transformer["blocks"][0].q_proj
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    a, b = (getattr(layer, name)["default"].weight for name in ("lora_A", "lora_B"))
    assert a.dtype == b.dtype == torch.bfloat16
    exact = layer.base_layer.weight.double() + 2.0 * b.double() @ a.double()  # alpha / r = 2
    merged = models.merged_state_dict(module)["model.transformer.blocks.0.q_proj.weight"]
    # half a unit in the last of 8 significand bits
    assert ((merged.double() - exact).abs() <= exact.abs() * 2.0**-8).all()


def test_a_model_with_adapters_is_saved_merged(adapted, tokens, tmp_path):
    tokenizer = models.build_char_tokenizer("0123456789+-*/=()")
    module = adapted(mask_token_id=19, eos_token_id=18, pad_token_id=18)
    plain = models.load(models.save(module, tmp_path / "m", tokenizer)).module
    ids = tokens.clamp_max(19)
    torch.testing.assert_close(plain(ids)[..., :19], module(ids)[..., :19], atol=1e-5, rtol=0)


def test_the_adapter_state_travels_to_an_equal_model(adapted, tiny, tokens):
    source = adapted()
    state = {name: tensor.clone() for name, tensor in models.trainable_state(source).items()}
    target = models.add_lora(tiny(), SETTINGS, "llada", seed=9)
    models.load_trainable_state(target, state)
    assert torch.equal(call(target, tokens), call(source, tokens))


def test_without_adapters_the_whole_state_travels(tiny, tokens):
    source, target = tiny(0), tiny(1)
    models.load_trainable_state(target, models.trainable_state(source))
    assert torch.equal(call(target, tokens), call(source, tokens))


def test_a_state_of_another_model_is_refused(adapted, tiny):
    state = models.trainable_state(adapted())
    with pytest.raises(SyncError, match="on one side only"):
        models.load_trainable_state(tiny(), state)
    narrow = models.add_lora(tiny(), LoraSettings(r=2), "llada")
    with pytest.raises(SyncError, match="shape"):
        models.load_trainable_state(narrow, state)


def test_the_seed_decides_the_initial_adapters_and_nothing_else_does(tiny):
    def state(seed: int):
        return models.trainable_state(models.add_lora(tiny(), SETTINGS, "llada", seed=seed))

    torch.manual_seed(1)
    first = state(0)
    torch.manual_seed(2)
    again, other = state(0), state(1)
    for name in first:
        assert torch.equal(first[name], again[name])
        assert torch.equal(first[name], other[name]) == (".lora_B." in name)


def test_gradient_checkpointing_works_through_the_adapters(adapted, tokens):
    plain, frugal = adapted(), adapted()
    frugal.gradient_checkpointing_enable()
    gradients = []
    for module in (plain, frugal):
        call(module, tokens).sum().backward()
        gradients.append([p.grad for p in module.parameters() if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ("q_proj", "matches no module"),
        (".*ff_out", "matches model.transformer.ff_out, which cannot be adapted"),
        (".*norm", "cannot be adapted"),
        ("(", "is not a regular expression"),
    ],
)
def test_target_modules_that_cannot_work_are_refused(tiny, targets, words):
    with pytest.raises(ModelError, match=rf"trainer.lora.target_modules = .*{words}.*Fix:"):
        models.add_lora(tiny(), LoraSettings(target_modules=targets), "llada")


def test_chosen_target_modules_are_used(tiny):
    settings = LoraSettings(r=2, target_modules=r".*blocks\.1\.(q|v)_proj")
    names = models.trainable_state(models.add_lora(tiny(), settings, "llada"))
    assert len(names) == 2 * 2


def test_saved_adapters_load_with_peft(adapted, tiny, tokens, tmp_path):
    from peft import PeftModel

    module = adapted()
    folder = models.save_adapter(module, tmp_path / "adapter")
    assert set(os.listdir(folder)) == {"adapter_config.json", "adapter_model.safetensors"}
    config = json.loads((folder / "adapter_config.json").read_text())
    assert "rl4dlm" not in json.dumps(config) and "auto_mapping" not in config
    assert {"peft_type", "r", "lora_alpha", "target_modules"} <= set(config)
    assert len(config) <= 13  # options of one version of peft are refused by others
    again = PeftModel.from_pretrained(tiny(), str(folder))
    assert torch.equal(call(again, tokens), call(module, tokens))


def test_adapters_on_a_full_disk_are_a_storage_error(adapted, tmp_path, monkeypatch):
    module = adapted()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(module), "save_pretrained", full)
    with pytest.raises(StorageError, match="No space left"):
        models.save_adapter(module, tmp_path / "adapter")
    assert os.listdir(tmp_path) == []
