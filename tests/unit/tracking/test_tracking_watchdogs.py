from __future__ import annotations

import math
from pathlib import Path

import pytest
from tracking_toys import open_tracker

from rl4dlm.errors import UpdateError
from rl4dlm.tracking import NothingToLearn, RunHistory, require_finite


def warnings(folder: Path) -> list[str]:
    return list(RunHistory.load(folder).texts("warning"))


def test_a_run_without_any_difference_in_reward_says_so_at_the_tenth_update(tmp_path: Path) -> None:
    with open_tracker(tmp_path, total=100) as tracker:
        for update in range(1, 30):
            tracker.log(update, {"reward": 0.0, "frac_reward_zero_std": 1.0})
            assert len(warnings(tmp_path)) == (1 if update >= 10 else 0)
    (text,) = warnings(tmp_path)
    assert "nothing to learn from" in text and "every reward was 0" in text and "rollout.temperature" in text
    assert RunHistory.load(tmp_path).texts("warning")[text] == 1


def test_a_run_that_is_shorter_than_ten_updates_says_so_at_its_end(tmp_path: Path) -> None:
    with open_tracker(tmp_path, total=3) as tracker:
        for update in (1, 2, 3):
            tracker.log(update, {"reward": 1.0, "frac_reward_zero_std": 1.0})
    assert "in the first 3 updates" in warnings(tmp_path)[0]


@pytest.mark.parametrize("different_at", [1, 5, 10])
def test_one_group_with_a_difference_is_enough_for_silence(tmp_path: Path, different_at: int) -> None:
    with open_tracker(tmp_path, total=100) as tracker:
        for update in range(1, 30):
            share = 0.9375 if update == different_at else 1.0
            tracker.log(update, {"reward": 0.0, "frac_reward_zero_std": share})
    assert warnings(tmp_path) == []


def test_updates_without_scored_groups_are_not_counted() -> None:
    dog = NothingToLearn(window=2)
    assert dog.observe(math.nan) is None
    assert dog.observe(1.0, 0.25) is None
    text = dog.observe(1.0, 0.5)
    assert text is not None and "between 0.25 and 0.5" in text


def test_a_run_whose_rewards_all_say_none_says_so_too(tmp_path: Path) -> None:
    with open_tracker(tmp_path, total=4) as tracker:
        for update in range(1, 5):
            tracker.log(update, {"reward/not_applicable": 8.0, "reward/excluded": 8.0})
    (text,) = warnings(tmp_path)
    assert "in the first 4 updates every reward function said None" in text and "data.answer_column" in text


def test_a_reward_that_applies_now_and_then_is_enough_to_learn_from() -> None:
    dog = NothingToLearn(window=2)
    assert dog.observe(math.nan, not_applicable=8) is None
    assert dog.observe(0.5, 0.25, not_applicable=2) is None
    assert dog.observe(math.nan, not_applicable=8) is None
    mixed = NothingToLearn(window=2)
    assert mixed.observe(math.nan, not_applicable=8) is None
    text = mixed.observe(1.0, 0.5)
    assert text is not None and "every group had one and the same reward (every reward was 0.5)" in text


def test_metrics_without_the_share_do_not_wake_the_watchdog(tmp_path: Path) -> None:
    with open_tracker(tmp_path, total=100) as tracker:
        for update in range(1, 15):
            tracker.log(update, {"reward": 0.0})
    assert warnings(tmp_path) == []


@pytest.mark.parametrize("window", [0, 11])
def test_the_window_is_between_one_and_ten(window: int) -> None:
    with pytest.raises(ValueError, match="window"):
        NothingToLearn(window)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_stops_the_run_naming_metric_update_and_detail(bad: float) -> None:
    metrics = {"loss": bad, "grad_norm": 1.0, "reward": math.nan}
    with pytest.raises(
        UpdateError, match=rf"update 7: loss = {bad} is not finite \(prompts \[3\]\)"
    ) as caught:
        require_finite(7, metrics, ["loss", "grad_norm"], "prompts [3]")
    assert "reward" not in str(caught.value).splitlines()[0]


def test_finite_values_pass() -> None:
    require_finite(7, {"loss": -0.5, "grad_norm": 0.0, "reward": math.nan}, ["loss", "grad_norm"])
