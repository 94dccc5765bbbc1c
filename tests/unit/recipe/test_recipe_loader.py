"""Layering, overrides, what YAML makes of numbers, and the resolved copy."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from rl4dlm.errors import RecipeError
from rl4dlm.recipe import dump_resolved, find_recipe, list_recipes, load_recipe
from rl4dlm.recipe.loader import check

Write = Callable[..., str]


def test_later_files_override_earlier_ones_key_by_key(write_recipe: Write) -> None:
    first = write_recipe("trainer: {max_steps: 7, warmup_steps: 2}\nreward: {functions: [a, b]}\n", "1.yaml")
    second = write_recipe("trainer: {max_steps: 9}\nreward: {functions: [format]}\n", "2.yaml")

    recipe = load_recipe(["quickstart", first, second])

    assert (recipe.trainer.max_steps, recipe.trainer.warmup_steps) == (9, 2)
    assert recipe.trainer.learning_rate == 2e-4  # of quickstart: neither layer sets it
    assert recipe.reward.functions == ["format"]  # a list is replaced as a whole


def test_overrides_come_after_all_files_and_the_last_one_counts(write_recipe: Write) -> None:
    layer = write_recipe("trainer: {max_steps: 7, warmup_steps: 2}\n")
    overrides = ["trainer.max_steps=8", "trainer.max_steps=20", "data.task={num_digits: 3}"]

    recipe = load_recipe(["quickstart", layer], overrides)

    assert (recipe.trainer.max_steps, recipe.trainer.warmup_steps) == (20, 2)
    assert recipe.data.task is not None and recipe.data.task.name == "sort"
    assert recipe.data.task.model_dump() == {"name": "sort", "num_digits": 3}


def test_a_section_of_another_kind_does_not_inherit_keys_of_the_old_kind() -> None:
    recipe = load_recipe("quickstart", ["data.task.name=countdown", "data.task.num_numbers=3"])

    assert recipe.data.task is not None
    assert recipe.data.task.model_dump()["num_numbers"] == 3


@pytest.mark.parametrize("text", ["1e-6", "1.0e-6", "0.000001", "'1e-6'"])
def test_a_number_is_a_number_however_yaml_reads_it(
    text: str, quickstart: dict[str, Any], write_recipe: Write
) -> None:
    # PyYAML follows YAML 1.1, for which 1e-6 has no point and is text.
    assert yaml.safe_load("1e-6") == "1e-6"
    quickstart["trainer"]["learning_rate"] = yaml.safe_load(text)

    assert check(quickstart).trainer.learning_rate == 1e-6
    layer = write_recipe(f"trainer: {{learning_rate: {text}}}\n")
    assert load_recipe(["quickstart", layer]).trainer.learning_rate == 1e-6
    assert load_recipe("quickstart", [f"trainer.learning_rate={text}"]).trainer.learning_rate == 1e-6


def test_a_key_may_refer_to_another_one() -> None:
    recipe = load_recipe("quickstart", ["rollout.diffusion_steps=${rollout.max_completion_length}"])
    assert recipe.rollout.diffusion_steps == recipe.rollout.max_completion_length == 8


@pytest.mark.parametrize("name", list_recipes())
def test_the_resolved_copy_of_a_shipped_recipe_reads_back_equal(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    dump_resolved(recipe, tmp_path / "recipe.yaml")

    assert load_recipe(tmp_path / "recipe.yaml") == recipe
    placement = yaml.safe_load((tmp_path / "recipe.yaml").read_text())["cluster"]["placement"]
    assert placement == recipe.cluster.placement


TEXTS = [
    "",
    "null",
    "yes",
    "1e-6",
    "12e4567",
    "0x10",
    "1:30",
    "${oc.env:HOME}",
    "\x85",
    "a\u2028b",
    r"\${x}",
    "a: b\n- c #",
    "é\t\x85",
]


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(TEXTS) | st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_the_resolved_copy(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    recipe = load_recipe("quickstart")
    data = recipe.data.model_copy(update={"system_prompt": text})
    changed = recipe.model_copy(update={"data": data})
    file = tmp_path_factory.mktemp("resolved") / "recipe.yaml"
    dump_resolved(changed, file)

    assert load_recipe(file) == changed


def test_a_recipe_is_frozen_and_so_are_its_sections() -> None:
    recipe = load_recipe("quickstart")
    with pytest.raises(ValidationError, match="frozen"):
        recipe.run = recipe.run  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        recipe.trainer.max_steps = 3  # type: ignore[misc]


def test_reading_a_recipe_imports_nothing_heavy() -> None:
    code = (
        "import sys; from rl4dlm.recipe import load_recipe; load_recipe('quickstart')\n"
        "heavy = {'torch', 'numpy', 'transformers', 'datasets', 'ray', 'rl4dlm.types'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_shipped_recipes_are_found_by_name_and_by_path() -> None:
    by_name = find_recipe("quickstart")
    assert by_name.is_file()
    assert find_recipe("recipes/quickstart.yaml").samefile(by_name)
    assert find_recipe(str(by_name)) == by_name
    with pytest.raises(RecipeError, match="Did you mean the shipped recipe quickstart"):
        find_recipe("quikstart")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("trainer: {max_steps: 3\n", r"mine.yaml, line 2, column 1: not valid YAML"),
        (
            "trainer:\n\tmax_steps: 3\n",
            r"mine.yaml, line 2, column 1: not valid YAML: .*cannot start any token",
        ),
        (
            "run: {seed: 1}\nrun: {seed: 2}\n",
            r"mine.yaml, line 2, column 1: not valid YAML: found duplicate key",
        ),
        ("- trainer\n", r"mine.yaml: holds a list"),
        ("just a sentence\n", r"mine.yaml: unknown key just a sentence"),
        ("3\n", r"mine.yaml: cannot be read"),
        ("7: 3\n", r"mine.yaml: unknown key 7"),
        (
            "run: {name: '${no.such.key}'}\n",
            r"mine.yaml: run.name: Interpolation key 'no.such.key' not found",
        ),
        ("run: {name: '${'}\n", r"mine.yaml: .*\$\{"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_with_place_and_remedy(
    text: str, problem: str, write_recipe: Write
) -> None:
    with pytest.raises(RecipeError, match=problem) as caught:
        load_recipe(["quickstart", write_recipe(text)])
    assert "\nFix: " in str(caught.value)


@pytest.mark.parametrize(
    "override", ["=3", "trainer.=3", ".x=1", "trainer..max_steps=2", "trainer.adam_betas=[1,"]
)
def test_an_override_that_cannot_be_read_is_named(override: str) -> None:
    with pytest.raises(RecipeError, match="override ") as caught:
        load_recipe("quickstart", [override])
    assert repr(override) in str(caught.value) and "\nFix: " in str(caught.value)


def test_a_message_names_the_layer_that_set_the_key(write_recipe: Write) -> None:
    layer = write_recipe("trainer: {max_steps: many}\nrollout: {slots: 0}\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(["quickstart", layer], ["rollout.slots=-1"])
    first, _, second, _ = str(caught.value).splitlines()
    assert first == "override rollout.slots=-1: rollout.slots = -1 is not greater than 0."
    assert second == f"{layer}: trainer.max_steps = 'many' is not a valid integer."


def test_defaults_alone_make_no_recipe() -> None:
    with pytest.raises(RecipeError) as caught:
        check({})
    missing = [line for line in str(caught.value).splitlines() if "missing" in line]
    assert missing == [f"recipe: {key} is missing." for key in ("model", "data", "reward", "algorithm")]
