"""Weights, exclusions and counts."""

from __future__ import annotations

import numpy as np
import pytest

from rl4dlm.recipe.sections import RewardConfig
from rl4dlm.reward.scores import Outcome, combine, matters_of, num_not_applicable, too_many_failures

NAN = float("nan")


def two_functions() -> list[Outcome]:
    """Samples: both score; the second says None; both say None; the first fails."""
    first = Outcome("a", values={0: 1.0, 1: 2.0, 2: None}, metrics=[("m", 1.0, 2), ("m", 3.0, 2)])
    first.fail(3, "timeout", "no answer within 5 s")
    second = Outcome("b", values={0: 10.0, 1: None, 2: None, 3: 20.0})
    return [first, second]


def test_the_reward_is_the_weighted_sum_of_what_applies():
    scores = combine(4, {"a": 1.0, "b": 0.5}, two_functions())
    # 1 * 1 + 0.5 * 10; 1 * 2 and nothing for None; all None; failed.
    np.testing.assert_array_equal(scores.reward, np.array([6.0, 2.0, NAN, NAN], np.float32))
    np.testing.assert_array_equal(scores.components["a"], np.array([1.0, 2.0, NAN, NAN], np.float32))
    np.testing.assert_array_equal(scores.components["b"], np.array([10.0, NAN, NAN, 20.0], np.float32))
    assert scores.reward.dtype == scores.components["a"].dtype == np.float32


def test_a_failure_is_counted_and_a_sample_without_a_reward_is_not_a_failure():
    scores = combine(4, {"a": 1.0, "b": 0.5}, two_functions())
    assert scores.failed.tolist() == [False, False, False, True]
    assert scores.errors == {"timeout": 1}
    assert scores.messages == ("a: timeout: no answer within 5 s",)
    assert scores.logged == {"m": 2.0}
    assert num_not_applicable(scores) == 1


@pytest.mark.parametrize("value", [NAN, float("inf"), -float("inf"), 1e39])
def test_a_number_that_float32_cannot_hold_fails_its_sample(value):
    outcome = Outcome("a")
    outcome.accept(0, value)
    outcome.accept(1, 3.0)
    scores = combine(2, {"a": 1.0}, [outcome])
    assert scores.errors == {"not_finite": 1}
    np.testing.assert_array_equal(scores.reward, np.array([NAN, 3.0], np.float32))


def test_only_the_first_distinct_messages_are_kept():
    outcome = Outcome("a")
    for row in range(20):
        outcome.fail(row, "raised", f"error {row // 2}")
    messages = combine(20, {"a": 1.0}, [outcome]).messages
    assert messages == tuple(f"a: raised: error {i}" for i in range(5))


def test_the_run_stops_only_above_the_failure_rate():
    config = RewardConfig(functions=["sort"], max_error_rate=0.25)
    outcome = Outcome("a", values={row: 1.0 for row in range(3)})
    outcome.fail(3, "died", "the process exited with status 1")
    assert too_many_failures(combine(4, {"a": 1.0}, [outcome]), config) is None
    del outcome.values[2]
    outcome.fail(2, "raised", "ValueError: no")
    message = too_many_failures(combine(4, {"a": 1.0}, [outcome]), config)
    assert message is not None
    assert "2 of 4 samples failed, more than reward.max_error_rate = 0.25" in message
    assert "(1 died, 1 raised)" in message and "a: raised: ValueError: no" in message and "Fix:" in message


def test_no_samples_are_no_failure():
    assert too_many_failures(combine(0, {"a": 1.0}, []), RewardConfig(functions=["sort"])) is None


def test_outcomes_of_parts_are_those_of_the_whole_once_their_rows_are_shifted():
    whole = combine(4, {"a": 1.0, "b": 0.5}, two_functions())
    rest = Outcome("a", values={0: 2.0, 1: None}, metrics=[("m", 3.0, 3)], extra={"note": {1: "n"}})
    rest.fail(2, "timeout", "no answer within 5 s")
    parts = [
        Outcome("a", values={0: 1.0}, metrics=[("m", 1.0, 1)]),
        Outcome("b", values={0: 10.0}),
        rest.shifted(1),
        Outcome("b", values={0: None, 1: None, 2: 20.0}).shifted(1),
    ]
    merged = combine(4, {"a": 1.0, "b": 0.5}, parts)
    np.testing.assert_array_equal(merged.reward, whole.reward)
    np.testing.assert_array_equal(merged.components["b"], whole.components["b"])
    np.testing.assert_array_equal(merged.failed, whole.failed)
    assert (merged.errors, merged.messages) == (whole.errors, whole.messages)
    assert merged.kinds == whole.kinds == {3: "timeout"}
    # Weighted by samples: (1 * 1.0 + 3 * 3.0) / 4.
    assert merged.logged == {"m": 2.5}
    assert merged.extra == {"note": (None, None, "n", None)}


def test_a_matter_is_one_whatever_its_numbers_are():
    outcomes = [Outcome("a", values={0: 1.0}) for _ in range(2)]
    for count, outcome in enumerate(outcomes):
        outcome.warn("wrong_length in a call", f"returned {count} rewards")
    matters = matters_of(combine(1, {"a": 1.0}, outcomes))
    assert list(matters) == ["a: wrong_length in a call"]


def test_what_the_functions_declare_travels_with_the_scores():
    scores = combine(
        1, {"a": 1.0, "b": 1.0}, [Outcome("a", (0.0, 1.0), {0: 1.0}), Outcome("b", None, {0: 3.0})]
    )
    assert scores.bounds == {"a": (0.0, 1.0)}
