"""Signatures: what a function is given, what its answer means, and which functions are refused."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from rl4dlm.errors import PluginError
from rl4dlm.reward.calling import Call, WrongLength, understand

CALL = Call(
    prompts=["a", "b"],
    completions=["x", "yy"],
    columns={"answer": ["1", "2"], "level": [3, None]},
    completion_ids=[[5], [5, 6]],
    trajectories=[
        {"completion_ids": np.array([5, 9, 9]), "step_map": np.array([0, 0, 0])},
        {"completion_ids": np.array([5, 6, 9]), "step_map": np.array([1, 0, 0])},
    ],
    trainer_state={"global_step": 11, "max_steps": 40},
)


def call(function: Any, call: Call = CALL, **kwargs: Any) -> list[float | None]:
    return understand(function, "f", "plugin.py:f", kwargs)(call)[0]


def test_a_trl_function_gets_what_trl_gives():
    seen: dict[str, Any] = {}

    def f(prompts, completions, **columns):
        seen.update(columns, prompts=prompts, completions=completions)
        return [0.5, None]

    assert call(f) == [0.5, None]
    assert seen["prompts"] == ["a", "b"] and seen["completions"] == ["x", "yy"]
    assert seen["answer"] == ["1", "2"] and seen["level"] == [3, None]
    assert seen["completion_ids"] == [[5], [5, 6]]
    assert seen["trainer_state"].global_step == 11 and seen["trainer_state"].max_steps == 40
    with pytest.raises(AttributeError, match="trainer_state has global_step and max_steps here, not epoch"):
        seen["trainer_state"].epoch  # noqa: B018
    assert "trajectory" not in seen  # ours: given to functions that name it


def test_a_function_without_keyword_columns_gets_only_what_it_names():
    def f(completions, answer):
        return [float(len(c) + int(a)) for c, a in zip(completions, answer, strict=True)]

    assert call(f) == [2.0, 4.0]


def test_metrics_and_extra_columns_are_collected():
    def f(completions, log_metric, log_extra, **columns):
        log_extra("note", ["n"] * len(completions))
        log_metric("mean_length", 1.5)
        return [0.0] * len(completions)

    answer = understand(f, "f", "f", {})(CALL)
    assert answer == ([0.0, 0.0], [("mean_length", 1.5)], {"note": ["n", "n"]}, [])


def test_an_extra_column_that_does_not_fit_is_left_out_and_named():
    def f(completions, log_extra):
        log_extra("note", ["one for all"])
        return [0.0] * len(completions)

    answer = understand(f, "f", "f", {})(CALL)
    assert answer.values == [0.0, 0.0] and answer.extra == {}
    assert answer.misfits == ["log_extra('note') got 1 value for 2 completions"]


def test_a_step_wise_function_gets_the_trajectory():
    def f(completions, trajectory):
        return [float(record["step_map"][0]) for record in trajectory]

    loaded = understand(f, "f", "f", {})
    assert loaded.needs == ["trajectory"]
    assert loaded(CALL).values == [0.0, 1.0]
    assert understand(lambda completion_ids, trajectory=None: [], "f", "f", {}).needs == ["completion_ids"]


def test_chat_prompts_come_with_chat_completions():
    def f(completions, **columns):
        return [float(isinstance(c, list) and c[0]["role"] == "assistant") for c in completions]

    chat = Call([[{"role": "user", "content": "hi"}], "plain"], ["x", "y"])
    assert call(f, chat) == [1.0, 0.0]


def test_an_async_function_is_awaited():
    async def f(completions, **columns):
        await asyncio.sleep(0)
        return [2.0 for _ in completions]

    assert call(f) == [2.0, 2.0]


def test_what_an_async_function_keeps_works_in_its_next_call():
    kept: list[asyncio.Future[float]] = []

    async def f(completions, **columns):
        # A client, lock or semaphore of asyncio belongs to the loop that it was made in.
        kept.append(asyncio.get_running_loop().create_future())
        kept[0].get_loop().call_soon(lambda: kept[0].done() or kept[0].set_result(4.0))
        return [await asyncio.wait_for(asyncio.shield(kept[0]), 5) for _ in completions]

    assert call(f) == [4.0, 4.0]
    assert call(f) == [4.0, 4.0]
    assert kept[0].get_loop() is kept[1].get_loop()


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (
            {"reward_model": [{"style": "rule", "ground_truth": "7"}], "data_source": ["gsm8k"]},
            ["gsm8k", "7", {}],
        ),
        ({"ground_truth": ["8"], "answer": ["9"], "extra_info": [{"i": 1}]}, [None, "8", {"i": 1}]),
        ({"answer": ["9"]}, [None, "9", {}]),
    ],
)
def test_a_verl_function_is_called_per_sample(columns, expected):
    seen = []

    def compute_score(data_source, solution_str, ground_truth, extra_info=None):
        seen.extend([data_source, ground_truth, extra_info])
        return {"score": len(solution_str), "acc": True}

    assert call(compute_score, Call(["p"], ["abc"], columns)) == [3.0]
    assert seen == expected


def test_an_async_verl_function_is_awaited():
    async def compute_score(solution_str, ground_truth):
        return float(solution_str == ground_truth)

    assert call(compute_score, Call(["p", "p"], ["a", "b"], {"answer": ["a", "a"]})) == [1.0, 0.0]


def test_async_verl_calls_wait_side_by_side():
    inside, most = 0, 0

    async def compute_score(solution_str, ground_truth):
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0.01)
        inside -= 1
        return 1.0

    assert call(compute_score, Call(["p"] * 5, ["a"] * 5, {"answer": ["a"] * 5})) == [1.0] * 5
    assert most == 5


def test_what_a_verl_function_says_beside_the_score_is_logged():
    def compute_score(data_source, solution_str, ground_truth, extra_info):
        return {"score": 0.5, "acc": solution_str == ground_truth, "pred": solution_str}

    answer = understand(compute_score, "f", "f", {})(Call(["p"] * 2, ["a", "b"], {"answer": ["a", "a"]}))
    assert answer.values == [0.5, 0.5]
    assert answer.metrics == [("acc", 1.0), ("acc", 0.0)]
    assert answer.extra == {"acc": [True, False], "pred": ["a", "b"]}


def test_verl_s_form_for_batches_is_called_once():
    calls = []

    def compute_score(data_sources, solution_strs, ground_truths, extra_infos, **settings):
        calls.append((data_sources, extra_infos))
        return [{"score": float(a == b)} for a, b in zip(solution_strs, ground_truths, strict=True)]

    columns = {"answer": ["a", "a"], "data_source": ["d", "e"], "extra_info": [{"i": 1}, None]}
    assert call(compute_score, Call(["p"] * 2, ["a", "b"], columns)) == [1.0, 0.0]
    assert calls == [(["d", "e"], [{"i": 1}, {}])]
    with pytest.raises(WrongLength, match="returned 1 reward for 2 completions"):
        call(lambda solution_strs, ground_truths: [1.0], Call(["p"] * 2, ["a", "b"], columns))


def test_settings_of_the_recipe_are_handed_to_every_call():
    def f(completions, scale, **columns):
        return [scale * len(c) for c in completions]

    assert call(f, scale=10) == [10.0, 20.0]


def test_a_setting_wins_over_a_column_of_its_name():
    def f(completions, level):
        return [float(level)] * len(completions)

    assert call(f, level=4) == [4.0, 4.0]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"scael": 1}, r"plugin\.py:f: unknown kwargs key scael; the function takes completions, scale"),
        ({"completions": 1}, r"kwargs may not set completions"),
    ],
)
def test_a_setting_that_the_function_does_not_take_is_refused(kwargs, message):
    def f(completions, scale=1):
        return []

    with pytest.raises(PluginError, match=message):
        call(f, **kwargs)


def takes_one(text):
    return 0.0


def takes_position_only(prompts, completions, /):
    return []


def takes_other_and_any(text, **columns):
    return []


def makes_a_reward(max_length, buffer=1):
    return lambda completions: [0.0]


@pytest.mark.parametrize("function", [takes_one, takes_position_only, makes_a_reward])
def test_another_signature_is_refused_with_its_parameters_and_the_expected_ones(function):
    with pytest.raises(
        PluginError, match=r"has the parameters \(.*\); expected f\(prompts, completions"
    ) as caught:
        call(function)
    assert "compute_score(data_source, solution_str, ground_truth, extra_info)" in str(caught.value)
    assert "called in a file of your own: my_reward = make_it(...)" in str(caught.value)


def test_a_function_that_names_other_columns_is_called_as_trl_calls_it():
    with pytest.raises(TypeError, match="needs text, which the rows do not have"):
        call(takes_other_and_any)
    assert call(lambda answer, **columns: [float(len(c)) for c in columns["completions"]]) == [1.0, 2.0]
    assert call(lambda completion_ids, **columns: [float(len(ids)) for ids in completion_ids]) == [1.0, 2.0]
    assert call(lambda prompts, completion_ids: [float(len(ids)) for ids in completion_ids]) == [1.0, 2.0]


def test_a_wrapped_function_that_shows_no_parameters_is_taken_for_trl():
    assert call(lambda *args, **kwargs: [1.0] * len(kwargs["completions"])) == [1.0, 1.0]


def test_a_missing_column_is_named_beside_those_there_are():
    def f(completions, numbers, **columns):
        return []

    with pytest.raises(
        TypeError, match=r"needs numbers, which the rows do not have; their columns: answer, level"
    ):
        call(f)


@pytest.mark.parametrize("result", [[1.0], [1.0] * 3, []])
def test_another_number_of_rewards_is_an_error_of_its_own(result):
    with pytest.raises(WrongLength, match=f"returned {len(result)} rewards? for 2 completions"):
        call(lambda completions: result)


@pytest.mark.parametrize("result", [1.0, None, "10", {"score": 1}, ["1", "0"], [[1], [0]]])
def test_an_answer_that_is_no_list_of_numbers_is_refused(result):
    with pytest.raises(TypeError):
        call(lambda completions: result)


def test_numpy_and_huge_numbers_become_floats():
    assert call(lambda completions: np.array([1, 0], dtype=bool)) == [1.0, 0.0]
    assert call(lambda completions: (10**400, np.float32(0.5))) == [float("inf"), 0.5]


def test_an_endless_answer_is_cut_short():
    def endless(completions):
        while True:
            yield 1.0

    with pytest.raises(WrongLength, match="more rewards for 2"):
        call(endless)
