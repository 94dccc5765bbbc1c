"""A reference policy that follows: when it moves, and to where."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rl4dlm.learner.engine import FrozenModule, PlainNetworks, mix_reference
from rl4dlm.learner.rank import PolicyRank
from rl4dlm.models import build_char_tokenizer, create
from rl4dlm.recipe import load_recipe
from rl4dlm.recipe.algorithms import CoupledGRPOConfig, GDPOConfig, VRPOConfig
from rl4dlm.recipe.sections import ModelInit, TrainerConfig


def linear(value: float, dtype: torch.dtype) -> torch.nn.Linear:
    module = torch.nn.Linear(3, 2).to(dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(value)
    return module


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-7), (torch.bfloat16, 4e-3)])
@pytest.mark.parametrize("alpha", [0.6, 1.0])
def test_it_becomes_a_share_of_the_policy_and_the_rest_of_itself(
    dtype: torch.dtype, tolerance: float, alpha: float
) -> None:
    policy, reference = linear(2.0, dtype), linear(-1.0, dtype)
    frozen = PlainNetworks().freeze(reference, TrainerConfig())
    places = [parameter.data_ptr() for parameter in reference.parameters()]
    mix_reference(PlainNetworks().train(policy, TrainerConfig()), frozen, alpha)
    for parameter, place in zip(reference.parameters(), places, strict=True):
        wanted = torch.full_like(parameter, 2.0 * alpha - (1 - alpha))
        torch.testing.assert_close(parameter, wanted, rtol=tolerance, atol=tolerance)
        assert parameter.dtype == dtype and not parameter.requires_grad and parameter.data_ptr() == place
    assert all(bool((parameter == 2.0).all()) for parameter in policy.parameters())


def test_it_moves_at_every_nth_update_where_it_is_asked_to() -> None:
    config = CoupledGRPOConfig(beta=0.01, sync_ref_model=True, ref_model_sync_steps=64)
    assert [update for update in range(1, 200) if config.syncs_reference_at(update)] == [64, 128, 192]
    assert not any(GDPOConfig(beta=0.1).syncs_reference_at(update) for update in range(1, 2000))
    assert not VRPOConfig().syncs_reference_at(512)


FAMILIES = [("llada", None), ("a2d", None), ("llada2", 4), ("mdlm", None)]


@pytest.mark.parametrize(("family", "block_length"), FAMILIES)
def test_a_checkpoint_keeps_it_whole_with_buffers_and_tied_matrices(
    family: str, block_length: int | None, tmp_path: Path
) -> None:
    init = ModelInit(d_model=16, n_layers=2, n_heads=2, mlp_hidden_size=32, max_sequence_length=32)
    characters = build_char_tokenizer("0123456789=")
    loaded, frozen = (
        create(init, characters, seed, family=family, block_length=block_length) for seed in (0, 1)
    )
    with torch.no_grad():
        for buffer in frozen.module.buffers():
            if buffer.is_floating_point():
                buffer.add_(0.25)
    recipe = load_recipe("quickstart", ["algorithm.beta=0.1", "algorithm.sync_ref_model=true"])
    rank = PolicyRank(recipe, PlainNetworks())
    rank._loaded, rank._frozen = loaded, FrozenModule(frozen.module)
    rank._save_reference(tmp_path / "reference")
    found = rank._reference_copy(str(tmp_path / "reference")).model.module
    wanted = frozen.module.state_dict()
    assert found.state_dict().keys() == wanted.keys()
    for name, tensor in found.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name
