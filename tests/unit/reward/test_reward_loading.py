"""Paths of reward functions: what they stand for, and what is said when they stand for nothing."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import pytest

from rl4dlm.errors import PluginError
from rl4dlm.recipe import shipped_folder
from rl4dlm.recipe.sections import RewardConfig
from rl4dlm.reward import list_rewards, load_function, loading, resolve
from rl4dlm.reward.calling import Call
from rl4dlm.reward.entries import absolute_paths, entries_of
from rl4dlm.reward.loading import Traits, import_plugin, needed_seconds, traits_of

ONE = "def score_it(completions, **columns):\n    return [1.0 for _ in completions]\n"


def write(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.write_text(text)
    return file


def test_a_built_in_name_means_the_shipped_file():
    resolved = resolve("sort")
    assert resolved.kind == "builtin"
    assert resolved.location == str(shipped_folder("reward_fns") / "sort.py")
    assert (resolved.name, resolved.path) == ("sort", "sort")


def test_another_function_of_a_built_in_file_is_named_after_a_colon():
    assert resolve("sort:sort_exact").name == "sort_exact"
    values, *_ = load_function("sort:sort_exact")(Call(["31="], ["31"], {"answer": ["13"]}))
    assert values == [0.0]


def test_a_shipped_file_is_found_under_its_path_in_the_clone_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve("reward_fns/countdown.py") == resolve("countdown")


def test_the_user_s_own_file_of_that_path_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reward_fns").mkdir()
    mine = write(tmp_path / "reward_fns", "countdown.py", ONE)
    assert resolve("reward_fns/countdown.py").location == str(mine)


def test_a_file_is_resolved_to_an_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path, "mine.py", ONE)
    resolved = resolve("mine.py:score_it")
    assert (resolved.kind, resolved.location, resolved.function) == ("file", str(file), "score_it")
    assert resolve(resolved.path) == resolved


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def other(completions): return [0.0]\ndef mine(completions): return [3.0]\n", 3.0),
        (
            "def other(completions): return [0.0]\ndef compute_score(solution_str, ground_truth): return 4\n",
            4.0,
        ),
        ("from os.path import join\ndef only(completions): return [5.0]\ndef _x(completions): pass\n", 5.0),
    ],
    ids=["named like the file", "verl's name", "the only public one"],
)
def test_the_default_function_of_a_file(tmp_path, text, expected):
    values, *_ = load_function(str(write(tmp_path, "mine.py", text)))(Call(["p"], ["c"]))
    assert values == [expected]


def test_a_file_without_a_default_lists_its_functions(tmp_path):
    file = write(tmp_path, "mine.py", "def a(completions): ...\ndef b(completions): ...\n")
    with pytest.raises(
        PluginError, match=r"no function mine .*it has: a, b\.\nFix: write .*mine.py:function"
    ):
        load_function(str(file))


def test_a_file_may_import_its_neighbour(tmp_path):
    write(tmp_path, "neighbour_of_reward.py", "VALUE = 2.5\n")
    text = "from neighbour_of_reward import VALUE\ndef mine(completions): return [VALUE]\n"
    values, *_ = load_function(str(write(tmp_path, "mine.py", text)))(Call(["p"], ["c"]))
    assert values == [2.5]


def test_a_dotted_name_means_a_function_of_a_module(tmp_path, monkeypatch):
    package = tmp_path / "pack_of_rewards"
    package.mkdir()
    write(package, "__init__.py", "")
    write(package, "deep.py", "class Box:\n    @staticmethod\n    def f(completions): return [7.0]\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    resolved = resolve("pack_of_rewards.deep:Box.f")
    assert (resolved.kind, resolved.name) == ("module", "f")
    assert load_function(resolved)(Call(["p"], ["c"]))[0] == [7.0]


def test_an_entry_point_is_found_by_its_name(tmp_path, monkeypatch):
    write(tmp_path, "plugged_rewards.py", '"""Plugged in."""\n' + ONE)
    monkeypatch.syspath_prepend(str(tmp_path))
    point = metadata.EntryPoint("shiny", "plugged_rewards:score_it", loading.ENTRY_POINT_GROUP)
    monkeypatch.setattr(metadata, "entry_points", lambda group: [point])
    resolved = resolve("shiny")
    assert (resolved.kind, resolved.location, resolved.name) == ("entry_point", "plugged_rewards", "shiny")
    assert load_function(resolved)(Call(["p"], ["c"]))[0] == [1.0]
    assert ("shiny", "plugged_rewards:score_it") in [(info.name, info.path) for info in list_rewards()]
    assert "plugged_rewards" in sys.modules  # by load_function above, not by list_rewards: see the next test


def test_listing_imports_nothing(tmp_path, monkeypatch):
    write(tmp_path, "unimported_rewards.py", "raise SystemExit\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    point = metadata.EntryPoint("bad", "unimported_rewards:f", loading.ENTRY_POINT_GROUP)
    monkeypatch.setattr(metadata, "entry_points", lambda group: [point])
    names = {info.name: info for info in list_rewards()}
    assert {"sort", "sort:sort_exact", "countdown", "sudoku", "format", "gsm8k", "bad"} <= set(names)
    assert names["countdown"].summary.startswith("Countdown: reach a target")
    assert "unimported_rewards" not in sys.modules


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("contdown", r"(?s)no entry point .*Did you mean countdown\?"),
        ("package.module.function", r"Fix: for a function of a module write package\.module:function\."),
        ("nowhere/mine.py", r"(?s)no such file \(working directory .*Fix: give a \.py file"),
        ("mine.py:not a name", r"'not a name' after the colon is no function name"),
        ("my module:f", r"'my module' is no module name"),
    ],
)
def test_a_path_that_leads_nowhere_says_why_and_what_to_write(path, message):
    with pytest.raises(PluginError, match=message):
        resolve(path)


def test_a_failing_import_names_the_error_the_file_and_the_line(tmp_path):
    file = write(tmp_path, "mine.py", "import json\n\nimport no_such_module_at_all\n")
    with pytest.raises(PluginError, match=r"No module named 'no_such_module_at_all' \(.*mine\.py:3\)"):
        load_function(str(file))
    file = write(tmp_path, "typo.py", "def typo(completions:\n    pass\n")
    with pytest.raises(PluginError, match=r"SyntaxError: .* \(.*typo\.py:1\)"):
        load_function(str(file))
    file = write(tmp_path, "leaves.py", "raise SystemExit(3)\n")
    with pytest.raises(PluginError, match=r"SystemExit: 3 \(.*leaves\.py:1\)"):
        load_function(str(file))


def test_names_come_from_the_recipe_or_the_function_and_must_differ(tmp_path):
    config = RewardConfig(
        functions=["sort", {"path": "sort:sort_exact", "name": "exact"}], reward_weights=[1, 2]
    )
    assert [(entry.name, entry.weight) for entry in entries_of(config)] == [("sort", 1.0), ("exact", 2.0)]
    with pytest.raises(PluginError, match=r"2 functions are called sort\.\nFix: give all but one a name"):
        entries_of(RewardConfig(functions=["sort", "sort"]))


def test_accuracy_must_name_one_of_the_functions():
    assert entries_of(RewardConfig(functions=["sort"], accuracy="sort"))
    with pytest.raises(
        PluginError, match=r"reward\.accuracy = 'exact' is none of the reward functions: sort"
    ):
        entries_of(RewardConfig(functions=["sort"], accuracy="exact"))


def test_paths_can_be_made_independent_of_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "mine.py", ONE)
    config = absolute_paths(RewardConfig(functions=["mine.py:score_it", "sort"]))
    assert [function.path for function in config.functions] == [f"{tmp_path}/mine.py:score_it", "sort"]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("1 / 0", "NEEDS_S fails: ZeroDivisionError"),
        ("float('inf')", "NEEDS_S gave inf seconds"),
        ("'x'", "NEEDS_S fails"),
    ],
)
def test_deadlines_that_a_plug_in_states_wrongly_are_refused(tmp_path, body, told):
    text = f"def mine(completions): return [0.0]\ndef NEEDS_S(count): return {body}\n"
    with pytest.raises(PluginError, match=told):
        needed_seconds(resolve(str(write(tmp_path, "mine.py", text))), {}, 1)


@pytest.mark.parametrize("name", ["gsm8k", "countdown", "sudoku", "sort", "sort:sort_exact"])
def test_a_setting_that_a_built_in_does_not_have_is_refused(name):
    with pytest.raises(PluginError, match="unknown kwargs key tolerance"):
        load_function(name, {"tolerance": 1})
    assert load_function(name).kwargs == {}


def test_a_plug_in_states_how_long_its_calls_take(tmp_path):
    text = "def mine(completions): return [0.0]\ndef NEEDS_S(count, each=2): return count * each\n"
    mine = resolve(str(write(tmp_path, "mine.py", text)))
    assert [needed_seconds(mine, {"each": 3}, count) for count in (1, 2, 96)] == [3.0, 6.0, 288.0]
    assert needed_seconds(resolve("sort"), {}, 96) == 0.0


def traits(path: Path) -> Traits:
    found = resolve(str(path))
    return traits_of(found, load_function(found).function)


def test_a_plug_in_says_what_it_ranges_over_and_whether_it_compares_prompts(tmp_path):
    silent = write(tmp_path, "silent.py", "def silent(completions): return []\n")
    told = write(
        tmp_path, "told.py", "RANGE = (-1, 2)\nWHOLE_BATCH = True\ndef told(completions): return []\n"
    )
    assert traits(silent) == Traits(False, None)
    assert traits(told) == Traits(True, (-1.0, 2.0))


def test_what_a_function_says_of_itself_goes_before_what_its_file_says(tmp_path):
    text = (
        "RANGE = (0, 1)\ndef mine(completions): return []\ndef other(completions): return []\n"
        "other.RANGE = None\nother.WHOLE_BATCH = True\n"
    )
    file = write(tmp_path, "mine.py", text)
    assert traits(file) == Traits(False, (0.0, 1.0))
    assert traits(Path(f"{file}:other")) == Traits(True, None)


@pytest.mark.parametrize("declared", ["1", "(1, 0)", "(0, 'one')", "(0, float('nan'))", "(0, 0.5, 1)"])
def test_a_range_that_is_none_is_refused(tmp_path, declared):
    file = write(tmp_path, "mine.py", f"RANGE = {declared}\ndef mine(completions): return []\n")
    with pytest.raises(PluginError, match=r"RANGE = .* is not a lower and an upper end"):
        traits(file)


def test_of_the_shipped_rewards_all_but_the_one_that_never_reaches_it_have_full_marks_at_one():
    found = {info.name: resolve(info.name) for info in list_rewards() if info.name in shipped_names()}
    without = {
        name for name, where in found.items() if getattr(import_plugin(where), "RANGE", None) != (0.0, 1.0)
    }
    assert without == {"reward_model"} and len(found) >= 10


def shipped_names() -> set[str]:
    return {info.name for info in list_rewards() if "reward_fns" in info.path}
