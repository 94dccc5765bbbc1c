"""A value model: zero at first, one number per selected token, padding invisible, every family."""

from __future__ import annotations

import pytest
import torch
from family_toys import FAMILY_CASES, make_family

from rl4dlm.diffusion.blocks import sequence_layout
from rl4dlm.errors import ModelError
from rl4dlm.models import ValueModel, load_value_model, save

CASES = pytest.mark.parametrize(("family", "block_length"), FAMILY_CASES)
IDS = torch.tensor([[3, 1, 13, 4, 13, 5, 9, 2, 13, 6, 13, 3]])


def value_model(family: str, block_length: int | None) -> ValueModel:
    """With a head that is not zero."""
    model = ValueModel(make_family(family, block_length).module)
    with torch.no_grad():
        model.head.weight.normal_(generator=torch.Generator().manual_seed(1))
    return model


@CASES
def test_before_training_every_value_is_zero_and_the_head_alone_would_move(family, block_length, tmp_path):
    loaded = make_family(family, block_length)
    folder = save(loaded, tmp_path / "model", loaded.tokenizer)
    model = load_value_model(folder)
    values = model(IDS)
    assert values.shape == (1, 12) and values.dtype == torch.float32 and not values.any()
    values.sum().backward()
    assert model.head.weight.grad.abs().max() > 0
    assert all(not p.grad.any() for n, p in model.named_parameters() if n != "head.weight")


@CASES
def test_the_value_is_a_linear_readout_of_what_the_policys_head_reads(family, block_length):
    policy = make_family(family, block_length).module
    head = policy.head()
    row = head.weight[5].detach().clone()
    logits = policy(IDS)[..., 5] - (0.0 if head.bias is None else head.bias[5])
    model = ValueModel(policy)
    with torch.no_grad():
        model.head.weight.copy_(row[None])
    values = model(IDS)
    shift = 1 if family == "dream" else 0
    torch.testing.assert_close(values[:, : 12 - shift], logits[:, shift:], rtol=0, atol=1e-5)


@CASES
def test_padding_selection_and_layouts_mean_what_they_mean_for_the_policy(family, block_length):
    model = value_model(family, block_length)
    padded = torch.nn.functional.pad(IDS, (4, 2), value=7)
    mask = torch.zeros_like(padded, dtype=torch.bool)
    mask[:, 4:16] = True
    alone = model(IDS)
    torch.testing.assert_close(model(padded, mask, select=mask), alone[0], rtol=0, atol=1e-5)
    layout = sequence_layout(mask, block_length)
    torch.testing.assert_close(model(padded, select=mask, layout=layout), alone[0], rtol=0, atol=1e-5)


@CASES
def test_gradients_reach_every_parameter_with_and_without_checkpointing(family, block_length):
    gradients = []
    for recompute in (False, True):
        model = value_model(family, block_length)
        if recompute:
            model.gradient_checkpointing_enable()
        model(IDS).square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        assert gradient.abs().max() > 0 or ".experts." in name, name
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-5)


def test_the_projection_to_the_vocabulary_is_gone_unless_it_is_the_embedding():
    names = [name for name, _ in value_model("sdar", 4).named_parameters()]
    assert not [name for name in names if "lm_head" in name] and "head.weight" in names
    names = [name for name, _ in value_model("llada", None).named_parameters()]
    assert "backbone.model.transformer.ff_out.weight" not in names
    tied = value_model("a2d", None)
    assert "backbone.model.embed_tokens.weight" in dict(tied.named_parameters())


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match="config.json is missing"):
        load_value_model(tmp_path)
