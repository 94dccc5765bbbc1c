"""Recipes that nobody means: whatever a file or an override holds, the answer is one RecipeError."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rl4dlm.errors import RecipeError
from rl4dlm.recipe import Recipe, find_recipe, load_recipe
from rl4dlm.recipe.explain import all_keys
from rl4dlm.recipe.loader import check, parse_override

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)


def refusal(*paths: str, overrides: tuple[str, ...] = ()) -> str:
    start = time.monotonic()
    with pytest.raises(RecipeError) as caught:
        load_recipe(["quickstart", *paths], overrides)
    assert time.monotonic() - start < 5
    message = str(caught.value)
    assert "\nFix: " in message and len(message) < 1500
    return message


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: " + "[" * 5000, "nested more than 100 levels"),
        ("a: " + "{b: " * 5000, "nested more than 100 levels"),
        ("\n".join(" " * i + "a:" for i in range(300)), "nested more than 100 levels"),
        (BOMB, "100000 values with its aliases written out"),
        ("a: &a [*a]", "stands before or inside its anchor"),
        ("a: *b", "stands before or inside its anchor"),
        ("trainer: {max_steps: " + "9" * 5000 + "}", "a number of 5000 digits"),
        ("trainer: {max_steps: 0x" + "f" * 5000 + "}", "a number of 5002 digits"),
        ("trainer: {max_steps: 0x" + "f" * 3500 + "}", "at most 2147483647"),
        ("trainer: {max_steps: 010}", "in base 8"),
        ("trainer: {max_steps: 1:30}", "in base 60"),
        ("run: {name: !!python/object/apply:os.system [ls]}", "could not determine a constructor"),
        ("? [1, 2]\n: 3", "unhashable"),
        ("a: 1\na: 2", "duplicate"),
        ("a: 1\n---\nb: 2", "another document"),
        ("run: {name: \x00}", "special characters are not allowed"),
        ('run: {output_dir: "a\\0b"}', "text without NUL"),
        ('data: {prompt_template: "{prompt} \\ud800"}', "invalid Unicode character"),
        ("# " + "x" * 2_000_000, "too many for a recipe"),
        ("run:\n  name: ${run.name}", "run.name"),
        ("run:\n  name: " + "${" * 3000, "more than 100 references"),
        ("run:\n  name: " + "${a:" * 90 + "}" * 90, "mine.yaml"),
        ("{}: 1", "mine.yaml"),
        ("null: 1\n1: 2\ntrue: 3\n2.5: 4", "mine.yaml"),
        ("a: !!binary aGVsbG8=", "mine.yaml"),
        ("a: !!set {x, y}", "mine.yaml"),
        ("just a text", "mine.yaml"),
        ("7", "mine.yaml"),
    ],
)
def test_hostile_yaml_is_one_message(text: str, told: str, write_recipe: Callable[..., str]) -> None:
    assert told in refusal(write_recipe(text))


@pytest.mark.parametrize("data", [b"\xff\xfe\x00a", b"a: \xe9", b"PK\x03\x04" * 100, b"\x00" * 3])
def test_a_file_of_bytes_is_one_message(data: bytes, write_recipe: Callable[..., str], tmp_path) -> None:
    write_recipe("")
    (tmp_path / "mine.yaml").write_bytes(data)
    assert "mine.yaml" in refusal(str(tmp_path / "mine.yaml"))


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"\xef\xbb\xbftrainer: {max_steps: 77}")
    assert load_recipe(["quickstart", str(tmp_path / "mine.yaml")]).trainer.max_steps == 77


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "x/" * 3000, "x" * 5000 + ".yaml"])
def test_a_recipe_by_a_name_that_no_file_has(name: str) -> None:
    assert "no such recipe" in refusal(name)


@pytest.mark.parametrize(
    "name", [".", "..", "-rf", "a/b", "../up", ".hidden", "", "a\nb", "a\0b", "x" * 5000, "é", "a b", "-"]
)
def test_a_run_is_named_by_what_can_be_a_folder(name: str, quickstart: dict[str, Any]) -> None:
    quickstart["run"]["name"] = name
    with pytest.raises(RecipeError, match=r"run\.name .*\nFix: ") as caught:
        check(quickstart)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("name", ["a", "2024-01-01_a.b", "_x", "x" * 100])
def test_ordinary_names_of_runs_pass(name: str, quickstart: dict[str, Any]) -> None:
    quickstart["run"]["name"] = name
    assert check(quickstart).run.name == name


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("trainer.max_steps=true", "trainer.max_steps = True is not a number: true and false do not count"),
        ("trainer.learning_rate=true", "trainer.learning_rate = True is not a number"),
        ("trainer.adam_betas=[true, 0.9]", "trainer.adam_betas = [True, 0.9] is not a number"),
        ("trainer.zero_stage=true", "trainer.zero_stage = True"),
        ("model.init.n_layers=false", "model.init.n_layers = False is not a number"),
        ("data.task.num_digits=true", "data.task.num_digits = True"),
        ("algorithm.beta=true", "algorithm.beta = True"),
        ("rollout.block_lengths=[4, true]", "rollout.block_lengths"),
        ("trainer.max_steps=1000000000000000000000000000000", "at most 2147483647"),
        ("rollout.block_lengths=[4, 99999999999]", "at most 2147483647"),
        ("run.seed=1000000000000000000000000000000", "run.seed"),
        ("trainer.learning_rate=.inf", "finite"),
        ("trainer.learning_rate=-.inf", "finite"),
        ("trainer.learning_rate=.nan", "finite"),
        ("trainer.learning_rate=1e999", "finite"),
        ("model.init.rope_theta=.inf", "finite"),
        ("trainer.adam_betas=[.nan, 0.9]", "finite"),
        ("rollout.temperature='inf'", "finite"),
        ("run.output_dir=" + "x" * 5000, "a path of at most 1000 bytes"),
        ("run.output_dir=" + "x/" * 900, "a path of at most 1000 bytes"),
        ("run.output_dir=" + "é" * 200, "names of at most 255"),
        ("data.eval=" + "x" * 300, "names of at most 255"),
        ("reward.functions=[" + "x" * 300 + "]", "names of at most 255"),
        ("a" + ".a" * 5000 + "=1", "names no key"),
        ("=1", "names no key"),
        ("a..b=1", "names no key"),
        ("run.name=[" * 3000, "names of"),
        ("run.name=" + "[" * 3000, "nested more than 100 levels"),
        ("run.name={a: 1} b", "not valid YAML"),
    ],
)
def test_hostile_overrides_are_one_message(override: str, told: str) -> None:
    if told == "names of":
        refusal(overrides=(override,))
    else:
        assert told in refusal(overrides=(override,))


def test_a_truth_value_stays_one_where_it_is_asked_for() -> None:
    recipe = load_recipe(
        "quickstart",
        ["trainer.bf16=true", "reward.functions=[{path: sort, kwargs: {strict: true, n: 3}}]"],
        rules=(),
    )
    assert recipe.trainer.bf16 is True and recipe.reward.functions[0].kwargs == {"strict": True, "n": 3}


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["sort", "gdpo", "${run.name}", "${oc.env:NOTHING}", "1e400", "\0", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(all_keys(Recipe)) | st.text(max_size=12)
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(st.dictionaries(KEYS, PLAIN, max_size=3))
def test_no_value_at_any_key_gets_past_the_schema_as_another_error(changes: dict[str, Any]) -> None:
    values: Any = yaml.safe_load(find_recipe("quickstart").read_text(encoding="utf-8"))
    for dotted, value in changes.items():
        section = values
        *path, leaf = dotted.split(".")
        for part in path:
            if not isinstance(section.get(part), dict):
                section[part] = {}
            section = section[part]
        section[leaf] = value
    try:
        check(values)
    except RecipeError as error:
        assert "\nFix: " in str(error)


@FUZZ
@given(PLAIN)
def test_anything_in_the_place_of_a_recipe_is_a_recipe_error(values: Any) -> None:
    with pytest.raises(RecipeError):
        check(values)


@FUZZ
@given(st.text(max_size=60) | st.text(alphabet="[]{}:,-&*!?|>'\"\n #%@`$.ab01\t", max_size=60))
def test_any_text_is_a_recipe_or_a_recipe_error(text: str) -> None:
    for make in (lambda: parse_override(text), lambda: parse_override(f"run.name={text}")):
        try:
            assert isinstance(make(), dict)
        except RecipeError as error:
            assert "\nFix: " in str(error)


@FUZZ
@given(
    data=st.binary(max_size=80) | st.text(alphabet="[]{}:,-&*!?|>'\"\n #ab01", max_size=60).map(str.encode)
)
def test_any_bytes_are_a_recipe_or_a_recipe_error(data: bytes, tmp_path) -> None:
    (tmp_path / "fuzz.yaml").write_bytes(data)
    try:
        load_recipe(["quickstart", str(tmp_path / "fuzz.yaml")])
    except RecipeError as error:
        assert "\nFix: " in str(error)
