"""`rl4dlm export`: a checkpoint of any family as a folder that is loaded again, and its way to the hub."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch

from rl4dlm.commands.export import export
from rl4dlm.errors import ModelError
from rl4dlm.models import LoadedModel, build_char_tokenizer, create, load, save
from rl4dlm.recipe import load_recipe
from rl4dlm.recipe.sections import ModelInit
from rl4dlm.run.folder import CheckpointParts, RunFolder

SIZES = ModelInit(d_model=16, n_layers=2, n_heads=2, mlp_hidden_size=16, max_sequence_length=32)
FAMILIES = [("llada", None), ("llada_moe", None), ("llada2", 4), ("dream", None), ("sdar", 4), ("a2d", 4)]
IDS = torch.tensor([[3, 1, 13, 4, 13, 5]])


def finished(place: Path, model: LoadedModel) -> RunFolder:
    """A run of two updates whose checkpoint holds this model."""
    recipe = load_recipe("quickstart", [f"run.output_dir={place}", "run.name=mine"])
    run = RunFolder.of(recipe)
    run.create(recipe)
    row = {"update": 2, "eval/greedy_accuracy": 0.5, "decode": {"greedy": {"block_length": 8}}}
    (run.root / "evaluations.jsonl").write_text(json.dumps(row) + "\n")
    run.save_checkpoint(
        2, lambda folder: save(model, CheckpointParts(Path(folder)).model, model.tokenizer), {}, keep=2
    )
    return run


@pytest.mark.parametrize(("family", "block_length"), FAMILIES)
def test_a_checkpoint_of_any_family_becomes_a_folder_with_a_card(family, block_length, tmp_path):
    tokenizer = build_char_tokenizer("0123456789=")
    model = create(SIZES, tokenizer, 0, family=family, block_length=block_length)
    run = finished(tmp_path, model)
    target = export(run.root, tmp_path / "out")
    again = load(target)
    assert (again.family, again.spec) == (family, model.spec)
    assert torch.equal(again.module(IDS), model.module(IDS))
    card = (target / "README.md").read_text()
    assert "| greedy_accuracy | 0.5 | 0.5 |" in card and "| updates | 2 |" in card
    assert str(tmp_path) not in card


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return finished(tmp_path, create(SIZES, build_char_tokenizer("0123456789="), 0))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A hub that notes what it is given, and an account on it."""
    noted = SimpleNamespace(repositories=[], files=[], refuse=None)

    class Api:
        def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> str:
            if noted.refuse:
                raise noted.refuse
            noted.repositories.append((name, private, exist_ok))
            return f"address of {name}"

        def upload_folder(self, *, folder_path: str, repo_id: str, commit_message: str) -> None:
            noted.files += sorted(os.listdir(folder_path))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
    return noted


def test_the_hub_gets_weights_tokenizer_and_card_in_a_private_repository(run, hub, tmp_path):
    export(run.root, tmp_path / "out", push_to="me/mine")
    assert hub.repositories == [("me/mine", True, True)]
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= set(hub.files)
    export(run.root, tmp_path / "public", push_to="me/mine", private=False)
    assert hub.repositories[1] == ("me/mine", False, True)


def test_a_hub_that_refuses_leaves_the_folder(run, hub, tmp_path):
    hub.refuse = ConnectionError("no route")
    with pytest.raises(
        ModelError, match=r"did not take the model \(no route\).*is complete.*Fix: .*hf upload"
    ):
        export(run.root, tmp_path / "out", push_to="me/mine")
    assert load(tmp_path / "out").family == "llada"


@pytest.mark.parametrize(
    ("name", "token", "told"), [("mine", "t", "not a repository's name"), ("me/x", None, "HF_TOKEN")]
)
def test_a_push_that_cannot_work_is_refused_before_anything_is_written(
    run, hub, tmp_path, monkeypatch, name, token, told
):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: token)
    with pytest.raises(ModelError, match=told):
        export(run.root, tmp_path / "out", push_to=name)
    assert not (tmp_path / "out").exists() and hub.repositories == []
