from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from tracking_toys import HOSTILE, log_updates, open_tracker, printed, recorded_console, sample

from rl4dlm.tracking import names, visible

METRICS = {"reward": 0.4375, "accuracy": 0.25, "rollout/tokens_per_s": 1520.4, "step_time": 3.14, "kl": 0.001}


def test_plain_mode_prints_one_line_per_update(tmp_path: Path) -> None:
    console = recorded_console(width=40)  # narrower than the line, which must not wrap
    with open_tracker(tmp_path, total=10, console=console) as tracker:
        tracker.log(1, METRICS)
        tracker.log(2, METRICS)
    first, second = printed(console).splitlines()
    assert first == "update 1/10  reward 0.438  accuracy 25.0 %  kl 0.001  1,520 tokens/s  3.1 s"
    assert re.fullmatch(r"update 2/10 .* \d+ s left", second)


def test_plain_mode_reports_a_phase_in_about_ten_lines(tmp_path: Path) -> None:
    console = recorded_console()
    with open_tracker(tmp_path, console=console) as tracker:
        tracker.phase("warm start", 300)
        for step in range(1, 301):
            tracker.phase_step(step, {"loss": 1.0})
    lines = printed(console).splitlines()
    assert lines[0] == "warm start: 300 steps"
    assert len(lines) == 11 and lines[-1] == "warm start 300/300  loss 1"


@pytest.mark.parametrize("terminal", [True, False])
def test_auto_mode_draws_a_bar_on_a_terminal_only(tmp_path: Path, terminal: bool) -> None:
    console = recorded_console(terminal=terminal)
    with open_tracker(tmp_path, total=10, console=console) as tracker:
        tracker.log(1, METRICS)
    assert ("\u2501" in printed(console)) == terminal
    assert ("update 1/10" in printed(console)) != terminal


def test_the_bar_shows_progress_reward_accuracy_and_tokens_per_second(tmp_path: Path) -> None:
    console = recorded_console(terminal=True, width=140)
    with open_tracker(tmp_path, total=10, console=console, resume_from=None) as tracker:
        tracker.log(3, METRICS)
        tracker.log(4, METRICS)
    shown = printed(console)
    assert "4/10" in shown and re.search(r"\d+ s left", shown)
    for text in ("reward 0.438", "accuracy 25.0 %", "1,520 tokens/s"):
        assert text in shown


def test_a_finished_warm_start_leaves_a_line_behind(tmp_path: Path) -> None:
    console = recorded_console(terminal=True)
    with open_tracker(tmp_path, console=console) as tracker:
        tracker.phase("warm start", 2)
        tracker.phase_step(1, {"loss": 3.0})
        tracker.phase_step(2, {"loss": 2.0})
        log_updates(tracker, [1])
    assert re.search(r"warm start: 2 steps in \d+ s", printed(console))


@pytest.mark.parametrize("terminal", [True, False])
def test_an_evaluation_prints_its_shares_and_a_table_of_samples(tmp_path: Path, terminal: bool) -> None:
    console = recorded_console(terminal=terminal)
    rows = [
        sample(0, completion="244778", uid=0, rewards={"sort": 1.0, "format": 0.5}),
        sample(0, completion="999999", uid=1, reward=math.nan, rewards={"sort": math.nan}, correct=False),
    ]
    with open_tracker(tmp_path, console=console) as tracker:
        ends = {"eval/greedy_accuracy_ci95_low": 0.375, "eval/greedy_accuracy_ci95_high": 0.6126}
        tracker.evaluation(0, {"eval/greedy_accuracy": 0.5} | ends, rows)
    shown = printed(console)
    assert "evaluation before training: greedy accuracy 50.0 % (37.5 to 61.3)" in shown
    assert re.search(r"244778\s*.\s*1 .\s*1 .\s*0.5 .\s*yes", shown)
    assert re.search(r"999999\s*.\s*- .\s*- .\s*- .\s*no", shown)


@pytest.mark.parametrize("terminal", [True, False])
def test_the_end_shows_before_after_and_where_everything_lies(tmp_path: Path, terminal: bool) -> None:
    console = recorded_console(terminal=terminal)
    with open_tracker(tmp_path, console=console) as tracker:
        tracker.evaluation(0, {"eval/greedy_accuracy": 0.17, "eval/pass@4": 0.35}, [])
        log_updates(tracker, [1])
        tracker.evaluation(1, {"eval/greedy_accuracy": 0.64, "eval/pass@4": 0.8}, [])
        tracker.finish(tracker.summary({"report": Path("runs/x/report.html")}))
    shown = printed(console)
    assert re.search(r"greedy accuracy .\s+17.0 % .\s+64.0 % .\s+\+47.0 points", shown)
    assert re.search(r"pass@4\s+.\s+35.0 % .\s+80.0 % .\s+\+45.0 points", shown)
    assert re.search(r"report\s+runs/x/report.html", shown)
    assert "done: 1 update in" in shown


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_hostile_text_reaches_no_terminal_and_stops_no_run(
    tmp_path: Path, terminal: bool, encoding: str
) -> None:
    console = recorded_console(terminal=terminal, encoding=encoding, width=200)
    with open_tracker(tmp_path, console=console) as tracker:
        tracker.evaluation(0, {"eval/greedy_accuracy": 0.5}, [sample(0, completion=HOSTILE + "\u00e9")])
        tracker.warn(HOSTILE + "\u00e9")
    shown = printed(console)
    assert "\x1b[31m" not in shown and "\u202e" not in shown
    assert shown.count("\\x1b[31m[bold]\\u202e\\ud800") == 2


def test_an_evaluation_without_a_single_reward_says_so(tmp_path: Path) -> None:
    console = recorded_console(terminal=False)
    with open_tracker(tmp_path, console=console) as tracker:
        tracker.evaluation(0, {"eval/num_prompts": 16.0}, [])
        tracker.evaluation(2, {"eval/greedy_reward": 18.5}, [])
    shown = printed(console)
    assert "evaluation before training: nothing was scored" in shown
    assert "evaluation after update 2: greedy reward 18.5" in shown


def test_visible_keeps_ordinary_text_of_any_language_and_counts_what_it_cuts() -> None:
    assert visible("gr\u00fc\u00df \u4f60\u597d\u3000x") == "gr\u00fc\u00df \u4f60\u597d\u3000x"
    assert visible("a\nb\tc") == "a\\nb\\tc"
    assert visible("a\nb\tc", lines=True) == "a\nb\tc"
    assert visible("abcdef", limit=4) == "abcd ... (2 more characters)"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("eval/greedy_accuracy", 0.4375, "43.8 %"),
        ("eval/pass@16", 1.0, "100.0 %"),
        ("eval/avg@4", 0.5, "50.0 %"),
        ("frac_reward_zero_std", 0.25, "25.0 %"),
        ("completions/clipped_ratio", 0.5, "50.0 %"),
        ("learning_rate", 2e-4, "0.0002"),
        ("clip_ratio/low_mean", 0.5, "0.5"),
        ("sync/version", 12.0, "12"),
        ("reward", math.nan, "-"),
        ("reward", math.inf, "-"),
    ],
)
def test_values_are_written_for_people(name: str, value: float, expected: str) -> None:
    assert names.format_value(name, value) == expected


@pytest.mark.parametrize(
    ("name", "value", "low", "high", "expected"),
    [
        ("eval/greedy_accuracy", 0.0, 0.0, 0.329, "0.0 % (0.0 to 32.9)"),
        ("eval/pass@4", 0.34, 0.285, 0.4, "34.0 % (28.5 to 40.0)"),
        ("eval/greedy_reward", 41.5, 38.25, 44.75, "41.5 (38.25 to 44.75)"),
        ("eval/elbo", -2.93, -3.1, -2.76, "-2.93 (-3.1 to -2.76)"),
        ("eval/elbo", -2.93, math.nan, -2.76, "-2.93"),
    ],
)
def test_a_figure_stands_before_the_ends_of_its_interval(
    name: str, value: float, low: float, high: float, expected: str
) -> None:
    metrics = {name: value, name + names.LOW: low, name + names.HIGH: high}
    assert names.format_measured(name, metrics) == expected
    assert names.headline_names(metrics) == [name]
    assert names.format_measured(name, {name: value}) == expected.partition(" (")[0]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (423, "7 min 03 s"), (7500, "2 h 05 min")],
)
def test_durations_are_written_for_people(seconds: float, expected: str) -> None:
    assert names.format_duration(seconds) == expected
