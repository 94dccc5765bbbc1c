"""The collapse sentinel: what it measures, when it speaks, and that it lets healthy runs go on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_groups, tiny_rollout

from rl4dlm.recipe.sections import SentinelConfig
from rl4dlm.tracking import Alarm, Sentinel, collapse_message, completion_health
from rl4dlm.tracking.collapse import repetition

REPETITION, EOS, ENTROPY = "completions/repetition", "completions/eos_share", "entropy"
HEALTHY = {
    "reward": 0.5,
    "reward/min": 0.0,
    "reward/standard_error": 0.02,
    REPETITION: 0.05,
    EOS: 0.2,
    ENTROPY: 0.6,
}


def watch(rows: list[dict[str, float]], **settings) -> tuple[int | None, Alarm | None, Sentinel]:
    """Feed updates 1, 2, ...; the update and the alarm at which it first spoke."""
    sentinel = Sentinel(SentinelConfig(**settings))
    for update, row in enumerate(rows, 1):
        alarm = sentinel.observe(update, HEALTHY | row)
        if alarm is not None:
            return update, alarm, sentinel
    return None, None, sentinel


# --- What is measured. ---


def test_repetition_is_the_share_of_four_grams_seen_before():
    assert repetition(np.array([1, 2, 3, 4, 1, 2, 3, 4])) == pytest.approx(1 / 5)
    assert repetition(np.array([7] * 10)) == pytest.approx(6 / 7)  # seven 4-grams, one distinct
    assert repetition(np.arange(50)) == 0
    assert repetition(np.array([7] * 4)) == repetition(np.array([], dtype=np.int32)) == 0


def test_the_metrics_of_an_update_are_those_of_its_completions():
    groups = tiny_groups(2, 2, completion=5)
    texts = [[0, 0, 0, 0, 0], [1, 3, 3, 3, 3], [3, 3, 3, 3, 3], [0, 1, 2, 0, 1]]
    rollouts = [tiny_rollout([1], text) for text in texts]
    for rollout, logp in zip(rollouts, (-0.1, -0.2, -0.4, -0.8), strict=True):
        rollout.trace.rollout_logp[:] = logp
    groups = [type(group)(group.prompt, tuple(rollouts[2 * i : 2 * i + 2])) for i, group in enumerate(groups)]
    health = completion_health(groups, np.array([1.0, 0.0, np.nan, 0.2]))
    assert health[REPETITION] == pytest.approx((1 / 2) / 4)  # two 4-grams of one kind, in the first
    assert health[EOS] == pytest.approx(1 - (5 + 1 + 0 + 5) / 20)
    # Drawn up to and including the end: 5, 2, 1 and 5 tokens.
    assert health[ENTROPY] == pytest.approx((5 * 0.1 + 2 * 0.2 + 0.4 + 5 * 0.8) / 13)
    assert health["reward/min"] == 0
    # Group means .5 and .2: standard deviation .3/sqrt(2), over sqrt(2) groups.
    assert health["reward/standard_error"] == pytest.approx(0.15)


def test_without_any_reward_only_the_completions_are_described():
    health = completion_health(tiny_groups(1, 2), np.array([np.nan, np.nan]))
    assert set(health) == {REPETITION, EOS, ENTROPY}


# --- When it speaks. ---


@pytest.mark.parametrize(
    ("metric", "row", "meaning"),
    [
        ("reward", {"reward": 0.05}, "lost"),
        (REPETITION, {REPETITION: 0.9, "reward": 0.35}, "repeat"),
        (EOS, {EOS: 1.0, "reward": 0.35}, "empty"),
        (ENTROPY, {ENTROPY: 0.0001, "reward": 0.35}, "explored"),
        (ENTROPY, {ENTROPY: 2.5, "reward": 0.35}, "random"),
    ],
)
def test_each_signal_stops_the_run_within_the_window_naming_what_it_was_and_is(metric, row, meaning):
    update, alarm, sentinel = watch([{}] * 20 + [row] * 5)
    assert alarm is not None and 21 < update <= 25
    assert alarm.metric == metric and meaning in alarm.meaning
    assert alarm.before == pytest.approx(HEALTHY[metric])
    assert sentinel.last_good == 20


def test_a_run_that_breaks_at_once_is_stopped_after_a_few_updates():
    update, alarm, sentinel = watch([{}] + [{"reward": 0.0}] * 9)
    assert alarm is not None and update <= 4 and sentinel.last_good == 1


def test_a_lucky_update_amid_bad_ones_is_not_good():
    bad = {"reward": 0.05, ENTROPY: 0.001}
    _, alarm, sentinel = watch([{}] * 10 + [bad, bad, {"reward": 0.55, ENTROPY: 0.001}, bad, bad])
    assert alarm is not None and sentinel.last_good == 10


def test_without_any_reward_the_other_signals_still_count():
    _, alarm, _ = watch([{"reward": 0.0}] * 5 + [{"reward": 0.0, EOS: 1.0}] * 5)
    assert alarm is not None and alarm.metric == EOS


def test_rewards_that_are_not_positive_are_counted_from_the_lowest_one():
    rows = [{"reward": -1.0, "reward/min": -3.0}] * 10 + [{"reward": -2.9, "reward/min": -3.0}] * 5
    assert watch(rows)[1].metric == "reward"
    rows = [{"reward": -1.0, "reward/min": -9.0}] * 10 + [{"reward": -2.9, "reward/min": -9.0}] * 5
    assert watch(rows)[1] is None


# --- When it does not. ---


def test_a_run_that_solves_its_task_may_become_short_alike_and_certain():
    rows = [
        {"reward": 0.5 + 0.005 * i, ENTROPY: 0.6 * 0.95**i, EOS: min(0.99, 0.2 + 0.01 * i), REPETITION: 0.5}
        for i in range(100)
    ]
    assert watch(rows)[1] is None


def test_noise_around_a_low_reward_is_no_collapse():
    """2000 updates at a true reward of .1, of 16 prompts whose completions all agree."""
    rng = np.random.default_rng(0)
    means = rng.binomial(16, 0.1, 2000) / 16
    rows = [{"reward": mean, "reward/standard_error": (mean * (1 - mean) / 15) ** 0.5} for mean in means]
    assert watch(rows)[1] is None


def test_one_bad_update_is_no_collapse():
    bad = {"reward": 0.0, REPETITION: 1.0, EOS: 1.0, ENTROPY: 3.0}
    assert watch([{}] * 10 + [bad] + [{}] * 10)[1] is None


def test_a_signal_and_the_whole_sentinel_can_be_switched_off():
    rows = [{}] * 5 + [{"reward": 0.0}] * 5
    assert watch(rows, enabled=False)[1] is None
    assert watch(rows, reward_drop=None)[1] is None
    assert watch(rows)[1] is not None


def test_a_resumed_sentinel_decides_as_the_uninterrupted_one():
    rows = [HEALTHY] * 6 + [HEALTHY | {"reward": 0.02}] * 6
    whole = Sentinel(SentinelConfig())
    verdicts = [whole.observe(update, row) for update, row in enumerate(rows, 1)]
    for cut in (3, 6, 7):
        resumed = Sentinel(SentinelConfig(), list(enumerate(rows[:cut], 1)))
        again = [resumed.observe(update, row) for update, row in enumerate(rows[cut:], cut + 1)]
        assert again == verdicts[cut:]
        assert resumed.last_good == whole.last_good == 6


# --- What it says. ---


def test_the_message_names_metric_values_update_checkpoint_and_remedy():
    alarm = Alarm("entropy", 0.6, 0.001, "nothing is explored any more", 5)
    text = collapse_message(alarm, 57, Path("runs/mine"), 40)
    for part in ("update 57", "entropy", "0.6", "0.001", "update 40", "--step 40", "--resume step=40"):
        assert part in text
    assert "trainer.learning_rate" in text.split("Fix: ")[1]
    assert "no checkpoint" in collapse_message(alarm, 5, Path("runs/mine"), None)
