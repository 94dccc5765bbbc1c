"""`rl4dlm estimate`: what it reads, what it prints, and that the same question has the same answer."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from tiny import tiny_rollout

from rl4dlm import cli
from rl4dlm.commands.estimate.sources import assemble, read_file
from rl4dlm.errors import DataError
from rl4dlm.likelihood.elbo import ElboSettings, elbo, plan_corruptions
from rl4dlm.models import LoadedModel, build_char_tokenizer, create, denoiser, load, save
from rl4dlm.recipe.sections import ModelInit
from rl4dlm.rollout.record import to_table, write_parquet
from rl4dlm.types import Prompt, RolloutGroup

ROWS = [{"prompt": f"{i}{i + 1}=", "completion": "1234"[: 1 + i % 4]} for i in range(6)]
FEW = ("--forwards", "1,2", "--repeats", "20")


def made(place: Path, seed: int) -> Path:
    tokenizer = build_char_tokenizer("0123456789=")
    init = ModelInit(d_model=16, n_layers=1, n_heads=2, mlp_hidden_size=16, max_sequence_length=24)
    return save(create(init, tokenizer, seed=seed), place, tokenizer)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("models") / "a", 0)


@pytest.fixture(scope="module")
def model(folder: Path) -> LoadedModel:
    return load(folder)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """`rl4dlm estimate ARGUMENTS`, which must succeed; returns what it printed on stdout."""

    def call(*arguments: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", ["rl4dlm", "estimate", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        printed = capsys.readouterr()
        assert stop.value.code == 0, printed.err
        return printed.out

    return call


def plain(found: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key != "seconds"}


# --- The command ---


def test_json_is_one_object_with_every_figure(run, folder, texts):
    found = json.loads(run(texts, "--model", folder, "--json", *FEW))
    assert found["completions"] == 6 and found["positions"] == [2, 5] and found["scope"] == "until_eos"
    assert found["model"] == str(folder) and found["against"] is None and found["seed"] == 0
    assert found["reference"]["kind"] == "exact" and found["reference"]["se"] == 0
    assert found["reference"]["mean"] == pytest.approx(np.mean(found["reference"]["values"]))
    assert found["log_ratio"] == [] and found["log_ratio_reference"] is None
    names = [(entry["estimator"], entry["forwards"]) for entry in found["estimators"]]
    assert ("sdmc/round_half", 2) in names and ("coupled", 2) in names and ("one_step", 1) in names
    assert ("coupled", 1) not in names and len(set(names)) == len(names)
    keys = {"estimator", "estimates", "forwards", "repeats", "bias", "bias_se", "std", "std_se", "rmse"}
    assert all(set(entry) == keys for entry in found["estimators"])
    # All subsets of 5 positions, and 20 draws of one step with a masked prompt and 2 of plain one step.
    assert found["states_read"] == 6 * (2**5 + 20 + 2)


def test_the_same_question_has_the_same_answer_and_another_seed_another(run, folder, texts):
    command = (texts, "--model", folder, "--json", *FEW)
    first, again = (plain(json.loads(run(*command))) for _ in range(2))
    other = plain(json.loads(run(*command, "--seed", "1")))
    assert first == again
    assert other["reference"] == first["reference"] and other["estimators"] != first["estimators"]


def test_long_completions_have_a_sampled_reference_near_the_exact_one(run, folder, texts):
    command = (texts, "--model", folder, "--json", "--estimators", "stratified", *FEW)
    exact, sampled = (json.loads(run(*command, *more))["reference"] for more in ((), ("--exact-up-to", "4")))
    assert sampled["kind"] == "stratified" and sampled["se"] > 0
    assert abs(sampled["mean"] - exact["mean"]) < 4 * sampled["se"]


def test_draws_that_cost_nothing_are_many_and_what_has_no_noise_is_drawn_twice(run, folder, texts):
    command = (texts, "--model", folder, "--json", "--num-completions", "2", "--forwards", "1")
    names = ("--estimators", "stratified,one_step")
    exact, sampled = (json.loads(run(*command, *names, *more)) for more in ((), ("--exact-up-to", "0")))
    assert [entry["repeats"] for entry in exact["estimators"]] == [2000, 2]
    assert [entry["repeats"] for entry in sampled["estimators"]] == [64, 2]


def test_two_models_are_compared_on_shared_and_on_independent_masks(run, folder, texts, tmp_path):
    other = made(tmp_path / "b", 1)
    command = (texts, "--json", "--estimators", "stratified,one_step", *FEW)
    found = json.loads(run(*command, "--model", folder, "--against", other))
    one, two = (json.loads(run(*command, "--model", path))["reference"] for path in (folder, other))
    assert found["log_ratio_reference"]["mean"] == pytest.approx(one["mean"] - two["mean"], abs=1e-9)
    entries = {(entry["estimator"], entry["forwards"]): entry for entry in found["log_ratio"]}
    assert set(entries) == {("stratified", 1), ("stratified", 2), ("one_step", 1)}
    assert entries["one_step", 1]["independent"]["std"] == 0
    itself = json.loads(run(*command, "--model", folder, "--against", folder))["log_ratio"][0]
    assert itself["shared"]["std"] == 0 < itself["independent"]["std"]


def test_tables_name_every_estimator_and_the_plot_is_a_picture(run, folder, texts, tmp_path):
    plot = tmp_path / "curves.svg"
    printed = run(texts, "--model", folder, "--against", folder, "--plot", plot, *FEW)
    for part in ("6 completions of 2 to 5 positions", "exact", "random_order", "one_step/prompt_masked"):
        assert part in printed
    assert printed.count("sdmc/floor_release") == 6  # three tables, and three of log-ratios
    assert "Log-ratio, shared masks" in printed and "no bound of the likelihood" in printed
    drawn = "".join(ElementTree.fromstring(plot.read_text()).itertext())
    headings = ("Standard deviation", "Root mean squared error", "shared masks", "independent masks")
    assert all(drawn.count(heading) == 1 for heading in headings)


def test_a_recipe_gives_its_model_and_what_its_data_demonstrates(run):
    command = ("quickstart", "model.init.d_model=16", "model.init.mlp_hidden_size=16", "--json", *FEW)
    found = json.loads(run(*command, "--num-completions", "3", "--estimators", "stratified"))
    assert found["model"] == "model.init (random weights)" and found["completions"] == 3
    assert found["positions"] == [7, 7]  # six digits and one end-of-text
    canvas = json.loads(run(*command, "--estimators", "stratified", "--scope", "canvas"))
    assert canvas["positions"] == [8, 8]


# --- Where completions come from ---


def rollouts(path: Path, model: LoadedModel, *, completion_len: int | None = None) -> Path:
    """Two rollouts of canvas 6 that end after 3 tokens, as a run writes them."""
    eos = model.spec.eos_id
    drawn = tuple(tiny_rollout([3, 4], [5, 6, eos, eos, eos, eos], sample=i, eos_id=eos) for i in range(2))
    write_parquet(to_table([RolloutGroup(Prompt(0, "p", "p", (3, 4)), drawn)], None, update=1), path)
    return path


def test_rollouts_are_read_as_ids_without_fillers(model, tmp_path):
    samples = read_file(rollouts(tmp_path / "r.parquet", model), model, "canvas", 8)
    assert len(samples) == 2 and samples[0].prompt_ids.tolist() == [3, 4]
    assert samples[0].completion_ids.tolist() == [5, 6, *[model.spec.eos_id] * 4]
    assert samples[0].action.tolist() == [True] * 3 + [False] * 3


def test_texts_end_with_one_end_of_text_and_are_spread_over_the_file(model, texts):
    samples = read_file(texts, model, "until_eos", 3)
    assert [sample.where.rpartition(" ")[2] for sample in samples] == ["0", "2", "4"]
    assert samples[1].completion_ids[-1] == model.spec.eos_id and len(samples[1].completion_ids) == 4


def test_shorter_completions_are_filled_and_the_filler_is_not_estimated(model, texts):
    completions = assemble(read_file(texts, model, "until_eos", 8), model.spec, None)
    assert completions.completion_ids.shape == (6, 5)
    assert completions.loss_mask.sum(1).tolist() == [2, 3, 4, 5, 2, 3]
    assert completions.completion_ids[0, 1:].tolist() == [model.spec.eos_id] * 4
    assert completions.decoded[0].tolist() == [0, 0, 0, 1, 1]  # half of five positions, rounded up


def test_text_and_ids_of_one_completion_are_estimated_alike(model, texts, tmp_path):
    sample = read_file(texts, model, "until_eos", 1)[0]
    row = {"prompt_ids": sample.prompt_ids.tolist(), "completion_ids": sample.completion_ids.tolist()}
    path = tmp_path / "ids.jsonl"
    path.write_text(json.dumps(row) + "\n")
    again = read_file(path, model, "until_eos", 1)[0]
    settings = ElboSettings("stratified", 4, 1, "round_half")
    values = []
    for one in (sample, again):
        plan = plan_corruptions(np.array([1]), one.action[None], 0, settings)
        with torch.no_grad():
            values.append(elbo(denoiser(model), [one.prompt_ids], one.completion_ids[None], plan).item())
    assert values[0] == values[1]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"prompt": "1="}, ["row 0", "neither", "Fix: "]),
        ({"prompt": "x=", "completion": "1"}, ["row 0", "'x'"]),
        ({"prompt": "", "completion": "1"}, ["row 0", "prompt is empty"]),
        ({"prompt_ids": [1], "completion_ids": [999]}, ["row 0", "`completion_ids`", "cannot write"]),
        ({"prompt_ids": [1], "completion_ids": "abc"}, ["row 0", "`completion_ids`", "no list"]),
        ({"prompt_ids": [], "completion_ids": [1]}, ["row 0", "`prompt_ids`", "no list"]),
    ],
)
def test_a_row_that_cannot_be_used_is_named(model, tmp_path, row, told):
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError) as refusal:
        read_file(path, model, "until_eos", 8)
    assert [part for part in told if part not in str(refusal.value)] == []


def test_completions_that_exceed_the_positions_or_hold_nothing_are_named(model, tmp_path):
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"prompt": "1=", "completion": "1" * 30}) + "\n")
    with pytest.raises(DataError, match=r"row 0: a prompt of 2 tokens and a canvas of 31 exceed .* 24 pos"):
        assemble(read_file(path, model, "until_eos", 8), model.spec, None)
    row = {"prompt_ids": [1], "completion_ids": [2, 3], "completion_len": 0}
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match="row 0: nothing to estimate"):
        assemble(read_file(path, model, "until_eos", 8), model.spec, None)
