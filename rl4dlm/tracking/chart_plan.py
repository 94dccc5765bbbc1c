"""Which metrics share a chart in the report, and in what order the charts come."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rl4dlm.tracking.charts import area_chart, line_chart
from rl4dlm.tracking.history import Curve, RunHistory
from rl4dlm.tracking.names import headline_names, is_share


@dataclass(frozen=True)
class Chart:
    """A chart that takes the metrics whose whole name one of its patterns matches."""

    title: str
    patterns: tuple[str, ...]
    stacked: bool = False


@dataclass(frozen=True)
class Section:
    """A heading with rendered charts under it."""

    title: str
    charts: tuple[str, ...]
    open: bool = True
    """Unfolded when the page opens."""


_LEARNING = (
    Chart("Reward", ("reward",)),
    Chart("Spread of rewards", ("reward_std",)),
    Chart("Accuracy of rollouts", ("accuracy",)),
    Chart("Reward by function, mean", (r"rewards/.+/mean",)),
    Chart("Groups without a difference in reward", ("frac_reward_zero_std",)),
)
_UPDATE = (
    Chart("Loss", ("loss", "policy_loss", "loss/.+")),
    Chart("KL to the reference", ("kl",)),
    Chart("Clipped ratios", (r"clip_ratio/.+_mean", "clip_ratio")),
    Chart("Entropy", ("entropy",)),
    Chart("Gradient norm", ("grad_norm",)),
    Chart("Learning rate", ("learning_rate",)),
)
_COMPLETIONS = (
    Chart("Completion length, tokens", (r"completions/(mean|min|max)_length",)),
    Chart("Completions without an end", ("completions/clipped_ratio",)),
    Chart("Repetition, and canvas after the end", (r"completions/(repetition|eos_share)",)),
)
_TIME = (
    Chart("Seconds per update, by phase", (r"timing_s/(?!total$|step$)[^/]+",), stacked=True),
    Chart("Sampled tokens per second", ("rollout/tokens_per_s",)),
    Chart("Tokens learned per second", ("sft/tokens_per_s",)),
)
_SECTIONS = (("Learning", _LEARNING), ("Update", _UPDATE), ("Completions", _COMPLETIONS), ("Time", _TIME))


def plan_sections(history: RunHistory) -> list[Section]:
    """Every metric of the run in one chart: first what is looked at first, the rest folded at the end."""
    rest = dict(history.curves())
    sections = [_held_out(history.evaluation_curves())]
    for title, charts in _SECTIONS:
        sections.append(
            Section(title, tuple(_render(chart, taken) for chart in charts if (taken := _take(chart, rest))))
        )
    for phase, curves in history.phase_curves().items():
        cards = tuple(line_chart(curve.name, [curve], axis="step") for curve in curves.values())
        sections.append(Section(phase[:1].upper() + phase[1:], cards))
    other = tuple(line_chart(curve.name, [curve]) for curve in rest.values())
    sections.append(Section("Everything else", other, open=False))
    return [section for section in sections if section.charts]


def _held_out(curves: Mapping[str, Curve]) -> Section:
    """Shares of the evaluations together, their other metrics one by one."""
    names = headline_names(curves)
    shares = [curves[name] for name in names if is_share(name)]
    # Counts that stay the same (the number of prompts) are in the table; a flat line adds nothing.
    others = [curves[name] for name in names if not is_share(name) and len(set(curves[name].y)) > 1]
    cards = [line_chart("Held-out instances", shares, smooth=False)] if shares else []
    cards += [line_chart(curve.name, [curve], smooth=False) for curve in others]
    return Section("Evaluation", tuple(cards))


def _take(chart: Chart, rest: dict[str, Curve]) -> list[Curve]:
    """Move the chart's curves out of `rest`."""
    names = [name for pattern in chart.patterns for name in rest if re.fullmatch(pattern, name)]
    return [rest.pop(name) for name in dict.fromkeys(names)]


def _render(chart: Chart, curves: Sequence[Curve]) -> str:
    # Areas need a common x; a phase that did not run in every update has an x of its own.
    if chart.stacked:
        return area_chart(chart.title, _on_common_x(curves))
    return line_chart(chart.title, curves)


def _on_common_x(curves: Sequence[Curve]) -> list[Curve]:
    x = tuple(sorted({at for curve in curves for at in curve.x}))
    values = [dict(zip(curve.x, curve.y, strict=True)) for curve in curves]
    return [
        Curve(curve.name, x, tuple(value.get(at, 0.0) for at in x))
        for curve, value in zip(curves, values, strict=True)
    ]
