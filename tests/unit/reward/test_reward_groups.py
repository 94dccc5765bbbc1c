"""A call is about whole groups, however the work is spread; what fails costs its own completion alone."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rl4dlm.errors import PluginError, RecipeError
from rl4dlm.recipe.sections import RewardConfig
from rl4dlm.reward.batch import Batch, Scorable
from rl4dlm.reward.pool import RewardPool
from rl4dlm.run.folder import MAY_CHANGE
from rl4dlm.run.preflight import check_verdicts
from rl4dlm.types import Prompt

PLUGIN = """
import os, time

def note(count):
    with open(__file__ + ".calls", "a") as file:
        file.write(f"{count} ")

def mates(prompts, completions):
    note(len(completions))
    return [float(sum(other == mine for other in prompts)) for mine in prompts]

def ranked(prompts, completions):
    # The share of the group that is shorter; no completion may be `bad`.
    assert "bad" not in completions, "cannot rank it"
    lengths = [[len(c) for p, c in zip(prompts, completions) if p == mine] for mine in prompts]
    return [sum(o < len(c) for o in ls) / len(ls) for c, ls in zip(completions, lengths)]

def everyone(completions):
    return [float(len(completions))] * len(completions)
everyone.WHOLE_BATCH = True

def one_short(completions):
    return [1.0] * max(1, len(completions) - 1)

def one_for_all(completions):
    return [0.5]

def slow(completions):
    time.sleep(0.1 * len(completions))
    return [1.0] * len(completions)

def moody(completions):
    if len(completions) > 1:
        raise ValueError("one at a time")
    return [2.0]

def of_ids(completions, completion_ids):
    return [float(len(ids)) for ids in completion_ids]

def too_much(completions):
    return [2.0] * len(completions)
too_much.RANGE = (0, 1)
"""


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    file = tmp_path / "plugin.py"
    file.write_text(PLUGIN)
    return file


def config(plugin: Path, *functions: str, **settings: Any) -> RewardConfig:
    return RewardConfig(functions=[f"{plugin}:{name}" for name in functions], **settings)


def groups_of(sizes: list[int]) -> list[list[Scorable]]:
    return [[Scorable(f"p{at}", "x" * (row + 1)) for row in range(size)] for at, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("sizes", "groups_per_call", "calls"),
    [
        ([6] * 5, None, [12, 12, 6]),  # three groups would come to 18
        ([6] * 5, 1, [6] * 5),
        ([6] * 5, 4, [24, 6]),
        ([20, 20], None, [20, 20]),  # one group is never torn
        ([1] * 40, None, [16, 16, 8]),
        ([0, 3, 0], None, [3]),
        ([], None, []),
    ],
)
def test_calls_are_whole_groups(sizes, groups_per_call, calls):
    batch = Batch.of(groups_of(sizes))
    rows = batch.group_rows()
    found = [[row for at in call for row in rows[at]] for call in batch.calls(groups_per_call)]
    assert [len(call) for call in found] == calls
    assert list(itertools.chain(*found)) == list(range(sum(sizes)))


@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("groups_per_call", [None, 1, 5])
def test_a_function_sees_its_prompt_s_completions_all_together(plugin, processes, groups_per_call):
    # 16 prompts x 6: in chunks of 16 completions it would see 6, 4 and 2 of them.
    settings = config(plugin, "mates", num_processes=processes, groups_per_call=groups_per_call)
    with RewardPool(settings) as rewards:
        assert Counter(rewards.score(groups_of([6] * 16)).reward.tolist()) == {6.0: 96}


def test_a_function_may_ask_for_the_whole_batch(plugin):
    with RewardPool(config(plugin, "everyone", "mates", num_processes=2, groups_per_call=1)) as rewards:
        scores = rewards.score(groups_of([2, 3, 4]))
    assert scores.components["everyone"].tolist() == [9.0] * 9
    assert scores.components["mates"].tolist() == [2.0] * 2 + [3.0] * 3 + [4.0] * 4


def test_the_rest_of_a_group_in_which_one_fails_is_scored_together(plugin):
    groups = groups_of([3, 4])
    groups[1][2] = Scorable("p1", "bad")
    with RewardPool(config(plugin, "ranked")) as rewards:
        scores = rewards.score(groups)
    assert scores.errors == {"raised": 1} and scores.failed.tolist() == [False] * 5 + [True, False]
    # Of lengths 1 2 3, and of 1 2 4: the fourth completion of the second group ranks among three.
    expected = np.array([0, 1 / 3, 2 / 3, 0, 1 / 3, np.nan, 2 / 3], np.float32)
    np.testing.assert_array_equal(scores.reward, expected)
    assert scores.warnings == {}


@pytest.mark.parametrize(
    ("name", "count", "kind", "told"),
    [
        ("one_short", 6, "wrong_length", "returned 5 rewards for 6 completions"),
        ("one_for_all", 16, "wrong_length", "returned 1 reward for 16 completions"),
        ("moody", 6, "raised", "ValueError: one at a time"),
    ],
)
def test_a_call_that_only_works_one_by_one_is_told_with_its_counts(plugin, name, count, kind, told):
    with RewardPool(config(plugin, name)) as rewards:
        scores = rewards.score(groups_of([count]))
    assert scores.errors == {} and len(set(scores.reward.tolist())) == 1
    ((matter, text),) = scores.warnings.items()
    assert matter == f"{name}: {kind} in a call"
    assert text.startswith(f"{name}: {told}") and f"{count} calls for one" in text and "Fix:" in text


def test_a_call_that_is_killed_because_it_is_slow_is_told(plugin):
    with RewardPool(config(plugin, "slow", timeout_s=0.45)) as rewards:
        first = rewards.score(groups_of([6]))
        second = rewards.score(groups_of([6]))
    assert first.errors == second.errors == {} and first.reward.tolist() == [1.0] * 6
    (text,) = first.warnings.values()
    assert "slow: no answer within 0.45 s for 6 completions: the call was killed and tried again" in text
    assert "raise reward.timeout_s" in text and second.warnings == {}


ROWS = [Prompt(at, f"p{at}", f"p{at}", (0,), {}) for at in (3, 7)]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("one_short", "fails on 2 rows in one call, and on none of them alone: .*returned 1 reward for 2"),
        ("moody", "fails on 2 rows in one call, and on none of them alone: .*one at a time"),
        ("too_much", r"gives row 3 2, outside of its RANGE = \(0, 1\)"),
    ],
)
def test_the_check_before_a_run_calls_with_two_rows_at_once(plugin, name, told):
    with RewardPool(config(plugin, name)) as rewards, pytest.raises(PluginError, match=told):
        rewards.check(ROWS)


def test_the_check_gives_token_ids_to_functions_that_read_them(plugin):
    with RewardPool(config(plugin, "of_ids")) as rewards:
        assert rewards.check(ROWS) == {"of_ids": []}
        assert rewards.check(ROWS, lambda text: [1, 2, 3]) == {"of_ids": [3.0, 3.0]}


def test_the_filter_of_over_denoised_prompts_needs_to_know_what_is_correct(plugin):
    with RewardPool(config(plugin, "mates")) as rewards:
        with pytest.raises(RecipeError, match="data.over_denoising: nothing says which answers are correct"):
            check_verdicts(config(plugin, "mates"), rewards)
        check_verdicts(config(plugin, "mates", accuracy="mates"), rewards)
    shipped = RewardConfig(functions=["sort"])
    with RewardPool(shipped) as rewards:
        check_verdicts(shipped, rewards)


def test_a_resumed_run_may_not_change_which_completions_are_called_together():
    assert not "reward.groups_per_call".startswith(MAY_CHANGE)
    assert "reward.num_processes".startswith(MAY_CHANGE) and "cluster.num_reward_workers".startswith(
        MAY_CHANGE
    )
