"""Quantised projections: refused without a GPU, and what they are where bitsandbytes is installed."""

from __future__ import annotations

import pytest
import torch
from family_toys import FAMILY_CASES, make_family

from rl4dlm import models
from rl4dlm.errors import ModelError
from rl4dlm.models import quantise
from rl4dlm.models.quantise import projections, require_quantisable
from rl4dlm.models.scoring import OutputHead
from rl4dlm.recipe.sections import LoraSettings

IDS = torch.tensor([[3, 1, 13, 4, 13, 5, 9, 2]])


def test_a_model_on_the_cpu_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(ModelError, match="model.quantization = 4bit needs a GPU.*Fix: set cluster.gpus"):
        models.load(tmp_path / "nothing", quantization="4bit")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(quantise.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="needs the package bitsandbytes.*pip install bitsandbytes"):
        require_quantisable("8bit", "cuda")
    require_quantisable("none", "cpu")


@pytest.mark.parametrize(("family", "block_length"), FAMILY_CASES)
def test_embedding_head_router_and_modulation_are_not_quantised(family, block_length):
    module = make_family(family, block_length).module
    chosen = projections(module)
    assert chosen and not any(isinstance(part, OutputHead) for part in chosen.values())
    kept = [name for name, p in module.named_parameters() if name.rpartition(".")[0] not in chosen]
    matrices = [name for name in kept if module.get_parameter(name).dim() == 2]
    assert all(
        any(
            word in name
            for word in ("embed", "wte", "head", "ff_out", "gate.weight", "adaLN", "sigma", "output")
        )
        for name in matrices
    ), matrices
    assert models.describe(make_family(family, block_length)).num_quantisable == sum(
        part.weight.numel() for part in chosen.values()
    )


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
@pytest.mark.parametrize(("family", "block_length"), [("llada", None), ("sdar", 4), ("llada_moe", None)])
def test_a_quantised_model_is_near_the_model_and_carries_adapters(
    family, block_length, quantization, tmp_path, monkeypatch
):
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(
        models.loading, "require_quantisable", lambda *_: None
    )  # its kernels run on a CPU, too
    loaded = make_family(family, block_length, d_model=64, mlp_hidden_size=128)
    folder = models.save(loaded, tmp_path / "m", loaded.tokenizer)
    small = models.load(folder, quantization=quantization)
    size = sum(p.numel() * p.element_size() for p in small.module.parameters())
    assert size < sum(p.numel() * p.element_size() for p in loaded.module.parameters()) / 2
    with torch.no_grad():
        near, exact = small.module(IDS)[..., :13], loaded.module(IDS)[..., :13]
    apart = (near - exact).norm() / exact.norm()
    assert 1e-4 < apart < (0.1 if quantization == "8bit" else 0.5)
    settings = LoraSettings(r=2, lora_alpha=4)
    adapted = models.add_lora(small.module, settings, family, seed=1)
    before = adapted(IDS, labels=IDS.clamp_max(10))
    before.sum().backward()
    state = models.trainable_state(adapted)
    assert all(".lora_" in name for name in state)
    with torch.no_grad():
        for name, tensor in state.items():
            if ".lora_B." in name:
                tensor.fill_(0.05)
    merged = models.merge_into(models.load(folder), state, settings)
    exact_adapted = models.add_lora(models.load(folder).module, settings, family)
    models.load_trainable_state(exact_adapted, state)
    expected = models.merged_state_dict(exact_adapted)
    assert merged.keys() == expected.keys()
    assert all(torch.equal(merged[name], expected[name]) for name in merged)
    saved = models.save(loaded, tmp_path / "merged", loaded.tokenizer, state_dict=merged)
    assert models.load(saved).family == family
