"""Metric names that the trackers look for, and how a metric is written for people."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

REWARD = "reward"
"""TRL: mean reward of the update's completions."""
REWARD_MIN = "reward/min"
"""Lowest reward of a completion of the update."""
REWARD_SE = "reward/standard_error"
"""Standard error of `reward`, with the prompts as the independent unit."""
REPETITION = "completions/repetition"
"""Mean share of a completion's 4-grams that occurred in it before."""
EOS_SHARE = "completions/eos_share"
"""Share of the canvas from the first stop id on."""
ENTROPY = "entropy"
"""TRL: nats per token; here the mean surprisal of what the sampler committed."""
ACCURACY = "accuracy"
"""Share of the update's completions that are correct."""
ZERO_STD = "frac_reward_zero_std"
"""TRL: share of groups whose completions all have the same reward."""
NOT_APPLICABLE = "reward/not_applicable"
"""Completions for which every reward function said None."""
KL = "kl"
"""TRL: divergence from the reference policy."""
STEP_TIME = "step_time"
"""TRL: seconds per update."""
TOKENS_PER_S = "rollout/tokens_per_s"
"""Completion tokens sampled per second of rollout."""
LOSS = "loss"
"""TRL: the loss of a step of supervised fine-tuning, nats per token."""
SFT_TOKENS_PER_S = "sft/tokens_per_s"
"""Tokens that a step of supervised fine-tuning reads per second, padding excluded."""
ELBO = "eval/elbo"
"""Held-out log-likelihood bound, nats per token."""
GREEDY_ACCURACY = "eval/greedy_accuracy"
"""Share of held-out prompts whose greedy completion is correct."""
PASS_AT = "eval/pass@"
"""Followed by k: share of held-out prompts with a correct completion among k samples."""

GREEDY_REWARD = "eval/greedy_reward"
"""Mean reward of the greedy completions of the held-out prompts."""

LOW, HIGH = "_ci95_low", "_ci95_high"
"""Suffixes of the ends of a metric's 95 % interval."""

_SHARE = re.compile(r"(accuracy|avg@\d+|pass@\d+|_share|_rate|clipped_ratio|/repetition|^frac_.*|/frac_.*)$")


def is_share(name: str) -> bool:
    """Whether a metric is a fraction of a whole, to be written as a percentage."""
    return name != "learning_rate" and _SHARE.search(name) is not None


def label(name: str) -> str:
    """A metric's name for people: `eval/greedy_accuracy` -> `greedy accuracy`."""
    return name.removeprefix("eval/").replace("_", " ")


def format_value(name: str, value: float | None) -> str:
    """A metric's value for people: a percentage, a whole number or four significant digits; `-` for none."""
    if value is None or not math.isfinite(value):
        return "-"
    if is_share(name):
        return f"{100 * value:.1f} %"
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value)}"
    return f"{value:.4g}"


def format_interval(name: str, low: float | None, high: float | None) -> str:
    """The ends of an interval as they stand behind the value, `(28.5 to 40.0)`; empty for none."""
    if low is None or high is None or not math.isfinite(high - low):
        return ""
    ends = [format_value(name, end).removesuffix(" %") for end in (low, high)]
    return f"({ends[0]} to {ends[1]})"


def format_measured(name: str, metrics: Mapping[str, float]) -> str:
    """A metric's value for people, with its 95 % interval where there is one: `34.0 % (28.5 to 40.0)`."""
    shown = format_value(name, metrics.get(name))
    interval = format_interval(name, metrics.get(name + LOW), metrics.get(name + HIGH))
    return f"{shown} {interval}".rstrip()


def headline_names(metrics: Iterable[str]) -> list[str]:
    """The metrics of an evaluation that a table shows: no ends of intervals, no timings."""
    return [name for name in metrics if not name.endswith((LOW, HIGH)) and not name.startswith("timing_s/")]


def format_change(name: str, before: float | None, after: float | None) -> str:
    """The difference of two values of a metric; in percentage points for shares."""
    if before is None or after is None or not math.isfinite(after - before):
        return "-"
    if is_share(name):
        return f"{100 * (after - before):+.1f} points"
    return f"{after - before:+.4g}"


def format_duration(seconds: float) -> str:
    """`42 s`, `7 min 03 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def sectioned(name: str, section: str) -> str:
    """The name under which a metric falls into a W&B section: names without a slash go to `section`."""
    return name if "/" in name else f"{section}/{name}"
