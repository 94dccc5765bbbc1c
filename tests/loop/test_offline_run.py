"""A run that learns from recorded pairs: nothing is sampled or scored but for evaluations."""

from __future__ import annotations

import json
from pathlib import Path

import launch
import pytest

from rl4dlm.errors import DataError
from rl4dlm.loops.train import train
from rl4dlm.models import build_char_tokenizer, create, save
from rl4dlm.recipe import Recipe, load_recipe
from rl4dlm.recipe.sections import ModelInit
from rl4dlm.run.preflight import preflight


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    model = create(ModelInit(**launch.TINY["model"]["init"]), build_char_tokenizer("0123456789="), seed=3)
    return save(model, folder, model.tokenizer)


def recipe_of(base: Path, output: Path, rows: list[dict[str, str]], *overrides: str) -> Recipe:
    """Preferences of the tiny model, by a file."""
    (output / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = [
        f"run.output_dir={output}",
        "model.init=null",
        f"model.path={base}",
        "warm_start=null",
        "data.task=null",
        f"data.train={output / 'pairs.jsonl'}",
        "data.max_prompt_length=8",
        "algorithm={type: vrpo, num_nodes: 2, beta: 1.0, num_iterations: 2}",
    ]
    return load_recipe(launch.write_recipe(output), [*settings, *overrides])


def pairs(num: int) -> list[dict[str, str]]:
    digits = [f"{number:04d}" for number in range(num)]
    answers = ["".join(sorted(text)) for text in digits]
    return [
        {"prompt": f"{text}=", "chosen": answer, "rejected": answer[::-1], "answer": answer}
        for text, answer in zip(digits, answers, strict=True)
    ]


@pytest.mark.slow
def test_a_run_learns_to_prefer_what_was_chosen_and_samples_for_evaluations_alone(base, tmp_path) -> None:
    run = train(recipe_of(base, tmp_path, pairs(30), "trainer.max_steps=4", "trainer.learning_rate=1e-2"))
    metrics = launch.rows(run.root / "metrics.jsonl")
    assert len(metrics) == 4 and not run.rollouts.exists()
    assert all("reward" not in row and row["pairs/overlong"] == 0 for row in metrics)
    # Evaluated and synced after updates 2 and 4 only.
    assert [row.get("sync/version") for row in metrics] == [None, 2, None, 4]
    assert [row["update"] for row in launch.rows(run.root / "evaluations.jsonl")] == [0, 2, 4]
    assert metrics[-1]["rewards/margins"] > 0.1
    assert launch.weights_digest(run.model) != launch.weights_digest(base)


def test_rows_without_a_rejected_completion_are_refused_before_the_start(base, tmp_path) -> None:
    rows = [{name: row[name] for name in ("prompt", "chosen", "answer")} for row in pairs(30)]
    with pytest.raises(DataError, match="row [0-9]+: no column `rejected`; columns there are: .*`chosen`"):
        preflight(recipe_of(base, tmp_path, rows))


def test_pairs_of_which_none_fits_the_canvas_are_refused_before_the_start(base, tmp_path) -> None:
    rows = [{**row, "chosen": row["chosen"] + "0"} for row in pairs(30)]
    with pytest.raises(DataError, match="none of the first update's pairs .*max_completion_length = 4"):
        preflight(recipe_of(base, tmp_path, rows))
