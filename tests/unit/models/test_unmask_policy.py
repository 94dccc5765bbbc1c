"""The network that decides what to unmask: what it may depend on, and its folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rl4dlm.decoding import PolicyFeatures, register_policy
from rl4dlm.decoding.learned import find_policy
from rl4dlm.errors import ModelError
from rl4dlm.models import UnmaskNet, UnmaskNetConfig, load_policy, new_policy, open_policy, save_policy


def features(rows: int = 3, length: int = 8, seed: int = 0) -> PolicyFeatures:
    generator = torch.Generator().manual_seed(seed)
    eligible = torch.rand(rows, length, generator=generator) < 0.7
    confidence = torch.where(eligible, torch.rand(rows, length, generator=generator), 0.0)
    return PolicyFeatures(confidence, eligible, torch.rand(rows, generator=generator))


def trained(seed: int = 0) -> UnmaskNet:
    """A network whose every weight matters."""
    net = new_policy(UnmaskNetConfig(), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return net


def test_the_published_sizes_make_about_300_thousand_parameters() -> None:
    # 2*128+128 in, 128^2+128 time, 128*768+768 modulation, 4 * (128^2+128) attention, 2*128*512+512+128 MLP,
    # 2*128 norm, 128+1 head.
    count = sum(parameter.numel() for parameter in UnmaskNet().parameters())
    assert count == 384 + 16512 + 99072 + 66048 + 131712 + 256 + 129


def test_before_training_positions_are_committed_with_the_bias_over_tau() -> None:
    logits = new_policy(UnmaskNetConfig(tau=0.5), 0)(features())
    assert logits.shape == (3, 8) and logits.dtype == torch.float32
    assert logits.mean().item() == pytest.approx(-4.0, abs=0.5)


def test_before_training_the_block_passes_its_input_on() -> None:
    net, given = new_policy(UnmaskNetConfig(), 0), features()
    seen = torch.stack([given.confidence, given.eligible.float()], dim=-1)
    assert torch.equal(net(given), net.head(net.norm(net.inputs(seen))).squeeze(-1))


def test_a_row_does_not_depend_on_other_rows() -> None:
    net, given = trained(), features()
    alone = net(PolicyFeatures(given.confidence[1:2], given.eligible[1:2], given.time[1:2]))
    torch.testing.assert_close(net(given)[1:2], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("what", ["confidence", "eligible", "time", "position"])
def test_a_logit_depends_on_everything_that_the_network_sees(what: str) -> None:
    net, given = trained(), features()
    confidence, eligible, time = given.confidence.clone(), given.eligible.clone(), given.time.clone()
    if what == "confidence":
        confidence[0, 7] += 0.5
    if what == "eligible":
        eligible[0, 7] ^= True
    if what == "time":
        time[0] += 0.3
    if what == "position":  # two neighbours change places
        confidence[0, 6:], eligible[0, 6:] = confidence[0, 6:].flip(0), eligible[0, 6:].flip(0)
    before, after = net(given)[0], net(PolicyFeatures(confidence, eligible, time))[0]
    assert (after - before)[0].abs() > 1e-4


def test_a_seed_makes_the_same_network_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    first = new_policy(UnmaskNetConfig(), 7).head.weight
    here = torch.rand(1)
    torch.manual_seed(3)
    assert here == torch.rand(1)
    assert torch.equal(first, new_policy(UnmaskNetConfig(), 7).head.weight)
    assert not torch.equal(first, new_policy(UnmaskNetConfig(), 8).head.weight)


def test_a_saved_network_is_the_same_when_it_is_opened_by_its_folder(tmp_path: Path) -> None:
    net = trained()
    folder = str(save_policy(net, tmp_path / "policy"))
    opened = open_policy(folder)
    assert find_policy(folder) is opened
    assert torch.equal(opened(features()), net(features()))


def test_a_registered_policy_is_taken_by_its_name() -> None:
    register_policy("mine", lambda features: features.confidence)
    assert torch.equal(open_policy("mine")(features()), features().confidence)


def change(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "cannot be read"),
        (lambda folder: (folder / "config.json").write_text("[1]"), "holds no unmasking policy"),
        (lambda folder: change(folder, model_type="llada"), "holds no unmasking policy"),
        (lambda folder: change(folder, layers=2), "other settings"),
        (lambda folder: change(folder, hidden="wide"), "cannot be read"),
        (lambda folder: change(folder, hidden=64), "cannot be read"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), "cannot be read"),
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot be read"),
    ],
)
def test_a_folder_that_holds_no_policy_is_refused_with_a_remedy(tmp_path: Path, damage, message: str) -> None:
    folder = save_policy(new_policy(UnmaskNetConfig(), 0), tmp_path / "policy")
    damage(folder)
    with pytest.raises(ModelError, match=rf"{message}[\s\S]*Fix: give rollout.policy"):
        load_policy(folder)


def test_a_folder_in_use_is_not_overwritten(tmp_path: Path) -> None:
    folder = save_policy(trained(), tmp_path / "policy")
    with pytest.raises(ModelError, match="not empty"):
        save_policy(trained(1), folder)
