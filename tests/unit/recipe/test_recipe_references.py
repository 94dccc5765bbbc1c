"""What a recipe takes from the environment is written nowhere: files, reports and messages show the
reference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rl4dlm.errors import CheckpointError, RecipeError
from rl4dlm.recipe import dump_resolved, load_recipe
from rl4dlm.recipe.references import references_of
from rl4dlm.run.folder import RunFolder

TOKEN = "tok-5f3a9e71"
TEXT = r"""
reward:
  functions:
    - path: sort
      kwargs: {api_key: "${oc.env:JUDGE_KEY}", header: "Bearer ${oc.env:JUDGE_KEY}", plain: "\\${oc.env:X}"}
tracking: {wandb_entity: "${reward.functions[0].kwargs.api_key}", wandb_project: "${run.name}"}
data: {system_prompt: "${oc.env:NOT_SET,fallback}"}
"""


@pytest.fixture
def path(write_recipe: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("JUDGE_KEY", TOKEN)
    return write_recipe(TEXT)


def test_the_run_gets_the_value_and_what_is_shown_the_reference(path: str, tmp_path: Path) -> None:
    recipe = load_recipe(["quickstart", path])
    assert recipe.reward.functions[0].kwargs["header"] == f"Bearer {TOKEN}"
    assert recipe.tracking.wandb_entity == TOKEN and recipe.tracking.wandb_project == "quickstart"
    shown = recipe.shown()
    assert TOKEN not in str(shown) and shown["data"]["system_prompt"] == "${oc.env:NOT_SET,fallback}"
    assert shown["reward"]["functions"][0]["kwargs"] == {
        "api_key": "${oc.env:JUDGE_KEY}",
        "header": "Bearer ${oc.env:JUDGE_KEY}",
        "plain": "${oc.env:X}",
    }
    assert shown["tracking"]["wandb_entity"] == "${reward.functions[0].kwargs.api_key}"
    assert shown["tracking"]["wandb_project"] == "quickstart"


def test_a_written_recipe_holds_no_secret_and_reads_back_equal(path: str, tmp_path: Path) -> None:
    recipe = load_recipe(["quickstart", path])
    dump_resolved(recipe, tmp_path / "recipe.yaml")
    assert TOKEN not in (tmp_path / "recipe.yaml").read_text()
    again = load_recipe(tmp_path / "recipe.yaml")
    assert again == recipe
    dump_resolved(again, tmp_path / "again.yaml")
    assert (tmp_path / "again.yaml").read_text() == (tmp_path / "recipe.yaml").read_text()


def test_a_variable_that_is_gone_is_named(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dump_resolved(load_recipe(["quickstart", path]), tmp_path / "recipe.yaml")
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(RecipeError, match="JUDGE_KEY"):
        load_recipe(tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    "override",
    [
        "trainer.max_steps=${oc.env:JUDGE_KEY}",
        "rollout.cache=${oc.env:JUDGE_KEY}",
        "trainer=${oc.env:JUDGE_KEY}",
    ],
)
def test_a_message_about_a_value_from_outside_shows_the_reference(path: str, override: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(["quickstart", path], [override])
    assert TOKEN not in str(caught.value) and "${oc.env:JUDGE_KEY} is not" in str(caught.value)


def test_a_refused_resume_shows_references(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(["quickstart", path], [f"run.output_dir={tmp_path}"])
    RunFolder.of(recipe).create(recipe)
    changed = load_recipe(
        ["quickstart", path],
        [f"run.output_dir={tmp_path}", "reward.functions=[{path: sort, kwargs: {api_key: ab}}]"],
    )
    with pytest.raises(CheckpointError) as caught:
        RunFolder.of(changed).require_same_run(changed)
    assert TOKEN not in str(caught.value) and "${oc.env:JUDGE_KEY}" in str(caught.value)


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"a": "${oc.env:X}"}, {("a",)}),
        (
            {"a": "x ${b} y", "b": "${c.d}", "c": {"d": "${oc.env:X}", "e": "${a.b}"}},
            {("a",), ("b",), ("c", "d"), ("c", "e")},
        ),
        ({"a": "${b}", "b": {"c": ["${oc.env:X}"]}}, {("a",), ("b", "c", 0)}),
        ({"a": {"b": "${.c}", "c": "${oc.env:X}"}}, {("a", "b"), ("a", "c")}),
        ({"a": {"b": "${..c}"}, "c": "${oc.env:X}"}, {("a", "b"), ("c",)}),
        ({"a": "${oc.decode:${oc.env:X}}", "b": "${oc.select:c,1}", "c": 1}, {("a",), ("b",)}),
        ({"a": "${b${c}}", "c": 1}, {("a",)}),
        ({"a": "${b}", "b": 1, "c": r"\${oc.env:X}", "d": r"\\${oc.env:X}"}, {("d",)}),
        ({"a": ["${oc.env:X}", "y"]}, {("a", 0)}),
        ("text", set()),
    ],
)
def test_what_comes_from_outside_is_found_through_every_reference(values: object, found: set) -> None:
    assert set(references_of(values)) == found
