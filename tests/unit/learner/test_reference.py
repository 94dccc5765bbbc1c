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


@pytest.mark.parametrize(
    ("every", "per_update", "expected"),
    [
        (64, 1, [64, 128]),
        (64, 2, [32, 64, 96, 128]),  # coupled-GRPO: two passes over a batch
        (64, 6, [11, 22, 32, 43, 54, 64, 75, 86, 96, 107, 118, 128, 139]),  # 66 and 132 pass 64 and 128
        (5, 12, list(range(1, 141))),
    ],
)
def test_it_moves_after_the_update_in_which_the_optimizer_steps_pass_a_multiple(
    every: int, per_update: int, expected: list[int]
) -> None:
    config = CoupledGRPOConfig(beta=0.01, sync_ref_model=True, ref_model_sync_steps=every)
    assert [update for update in range(1, 141) if config.syncs_reference_at(update, per_update)] == expected


def test_it_stays_where_it_is_not_asked_to_follow() -> None:
    assert not any(GDPOConfig(beta=0.1).syncs_reference_at(update, 3) for update in range(1, 2000))
    assert not VRPOConfig().syncs_reference_at(512, 1)


@pytest.mark.parametrize(
    ("passes", "parts", "moves"), [(1, 1, [3, 6]), (3, 1, [1, 2, 3, 4, 5, 6]), (1, 2, [2, 3, 5, 6])]
)
def test_a_rank_counts_passes_times_minibatches(
    passes: int, parts: int, moves: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = [f"algorithm.num_iterations={passes}", f"trainer.num_minibatches={parts}", "algorithm.beta=0.1"]
    following = ["algorithm.sync_ref_model=true", "algorithm.ref_model_sync_steps=3"]
    rank = PolicyRank(load_recipe("quickstart", [*changes, *following]), PlainNetworks())
    rank._engine = PlainNetworks().train(linear(2.0, torch.float32), TrainerConfig())
    rank._frozen = PlainNetworks().freeze(linear(-1.0, torch.float32), TrainerConfig())
    moved: list[int] = []
    monkeypatch.setattr("rl4dlm.learner.rank.mix_reference", lambda *_: moved.append(update))
    for update in range(1, 7):
        rank._sync_reference(update)
    assert moved == moves


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
