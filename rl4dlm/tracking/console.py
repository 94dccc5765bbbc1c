"""The sink that a person watches: a progress bar and tables on a terminal, a line per update elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
)
from rich.table import Column, Table
from rich.text import Text

from rl4dlm.recipe import AnyRecipe
from rl4dlm.tracking.names import (
    ACCURACY,
    ELBO,
    GREEDY_ACCURACY,
    GREEDY_REWARD,
    KL,
    LOSS,
    PASS_AT,
    REWARD,
    SFT_TOKENS_PER_S,
    STEP_TIME,
    TOKENS_PER_S,
    format_change,
    format_duration,
    format_measured,
    format_value,
    headline_names,
    is_share,
    label,
)
from rl4dlm.tracking.samples import SampleRow, shown_samples, visible
from rl4dlm.tracking.sink import Evaluation, Metrics, PhaseStep, Sink, Summary

_PROMPT_CHARACTERS = 240
_COMPLETION_CHARACTERS = 480
_PHASE_LINES = 10
# rich estimates the time left from the steps of the last seconds; an update of an 8B model takes minutes.
_SPEED_WINDOW_S = 6 * 3600.0


def make_console_sink(recipe: AnyRecipe, console: Console, *, total_updates: int, start: int) -> ConsoleSink:
    """The sink that `tracking.console` asks for; `auto` is `rich` on a terminal and `plain` elsewhere."""
    mode = recipe.tracking.console
    if mode == "auto":
        mode = "rich" if console.is_terminal else "plain"
    kind = RichSink if mode == "rich" else PlainSink
    return kind(console, total_updates, start, recipe.tracking.num_completions_to_print)


class ConsoleSink(Sink):
    """What both modes share: evaluations, samples, warnings, and the closing table."""

    def __init__(self, console: Console, total_updates: int, start: int, num_samples: int) -> None:
        self._console = console
        self._total = total_updates
        self._start = start
        self._num_samples = num_samples

    def _line(self, text: str, style: str = "") -> None:
        # Messages quote what rewards and models wrote.
        shown = self._encodable(visible(text, lines=True))
        self._console.print(Text(shown, style=style), soft_wrap=True)

    def _encodable(self, text: str) -> str:
        """Characters that the terminal's encoding lacks become escapes: printing must not stop a run."""
        encoding = self._console.encoding
        return text.encode(encoding, "backslashreplace").decode(encoding)

    def evaluation(self, evaluation: Evaluation, time_s: float) -> None:
        when = "before training" if evaluation.update == 0 else f"after update {evaluation.update}"
        metrics = evaluation.metrics
        known = headline_names(metrics)
        shown = [name for name in known if is_share(name) or name in (ELBO, GREEDY_REWARD)]
        values = [f"{label(name)} {format_measured(name, metrics)}" for name in shown]
        self._line(f"evaluation {when}: {', '.join(values) or 'nothing was scored'}", style="bold")
        if rows := shown_samples(evaluation.samples, self._num_samples):
            self._console.print(self._sample_table(rows))

    def _sample_table(self, rows: Sequence[SampleRow]) -> Table:
        functions = list(dict.fromkeys(name for row in rows for name in row.rewards))
        extra = functions if len(functions) > 1 else []
        table = Table(show_lines=True)
        table.add_column("prompt", overflow="fold")
        table.add_column("completion", overflow="fold")
        for name in ["reward", *extra, "correct"]:
            table.add_column(Text(name), justify="right")
        for row in rows:
            scores = [row.reward, *(row.rewards.get(name) for name in extra)]
            cells = [visible(row.prompt, limit=_PROMPT_CHARACTERS, lines=True)]
            cells.append(visible(row.completion, limit=_COMPLETION_CHARACTERS, lines=True))
            cells += [format_value(REWARD, score) for score in scores]
            cells.append("-" if row.correct is None else "yes" if row.correct else "no")
            table.add_row(*(Text(self._encodable(cell)) for cell in cells))
        return table

    def warn(self, text: str) -> None:
        self._line(f"warning: {text}", style="yellow")

    def note(self, text: str) -> None:
        self._line(text)

    def finish(self, summary: Summary) -> None:
        done = f"{summary.updates} update{'' if summary.updates == 1 else 's'}"
        self._line(f"done: {done} in {format_duration(summary.wall_s)}", style="bold green")
        if summary.after:
            self._console.print(self._before_after(summary))
        width = max(map(len, summary.places), default=0)
        for name, path in summary.places.items():
            self._line(f"  {name:<{width}}  {path}")

    def _before_after(self, summary: Summary) -> Table:
        table = Table(title="held-out instances")
        table.add_column("metric")
        for column in ("before", "after", "change"):
            table.add_column(column, justify="right")
        headline = GREEDY_ACCURACY if GREEDY_ACCURACY in summary.after else GREEDY_REWARD
        for name in headline_names(summary.after):
            cells = [label(name), format_measured(name, summary.before), format_measured(name, summary.after)]
            cells.append(format_change(name, summary.before.get(name), summary.after[name]))
            style = "bold" if name == headline or name.startswith(PASS_AT) else None
            table.add_row(*(Text(self._encodable(cell)) for cell in cells), style=style)
        return table


def _glance(metrics: Metrics) -> list[str]:
    """The few figures that are worth a look after every update, as `name value`."""
    parts = [f"{name} {metrics[name]:.3f}" for name in (REWARD, LOSS) if name in metrics]
    parts += [f"{name} {format_value(name, metrics[name])}" for name in (ACCURACY, KL) if name in metrics]
    parts += [
        f"{metrics[name]:,.0f} tokens/s" for name in (TOKENS_PER_S, SFT_TOKENS_PER_S) if name in metrics
    ]
    return parts


class _StepsColumn(ProgressColumn):
    """`12/100, 4 min 10 s left`; the time so far for a phase whose steps are not counted."""

    def __init__(self) -> None:
        super().__init__(table_column=Column(no_wrap=True))

    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text(format_duration(task.elapsed or 0.0))
        left = "" if task.time_remaining is None else f", {format_duration(task.time_remaining)} left"
        return Text(f"{task.completed:.0f}/{task.total:.0f}{left}")


class RichSink(ConsoleSink):
    """A terminal: one live line for the phase or the updates, with a bar and the time left."""

    def __init__(self, console: Console, total_updates: int, start: int, num_samples: int) -> None:
        super().__init__(console, total_updates, start, num_samples)
        self._progress = Progress(
            SpinnerColumn("line"),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            _StepsColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
            console=console,
            speed_estimate_period=_SPEED_WINDOW_S,
            transient=True,
            refresh_per_second=4,
        )
        self._progress.start()
        self._phase: TaskID | None = None
        self._updates: TaskID | None = None

    def phase(self, text: str, total: int | None, start: int) -> None:
        self.end_phase()
        self._phase = self._progress.add_task(visible(text), total=total, completed=start, figures="")

    def end_phase(self) -> None:
        if self._phase is None:
            return
        task = self._progress.tasks[self._progress.task_ids.index(self._phase)]
        self._progress.remove_task(self._phase)
        self._phase = None
        if task.total is not None:
            took = format_duration(task.elapsed or 0.0)
            self._line(f"{task.description}: {task.completed:.0f} steps in {took}")

    def phase_step(self, step: PhaseStep, time_s: float) -> None:
        if self._phase is not None:
            figures = "  ".join(
                f"{label(name)} {format_value(name, value)}" for name, value in step.metrics.items()
            )
            self._progress.update(self._phase, completed=step.step, figures=figures)

    def log(self, update: int, metrics: Metrics, time_s: float) -> None:
        self.end_phase()
        if self._updates is None:
            self._updates = self._progress.add_task(
                "updates", total=self._total, completed=self._start, figures=""
            )
        self._progress.update(self._updates, completed=update, figures="  ".join(_glance(metrics)))

    def evaluation(self, evaluation: Evaluation, time_s: float) -> None:
        self.end_phase()
        super().evaluation(evaluation, time_s)

    def finish(self, summary: Summary) -> None:
        self._stop()
        super().finish(summary)

    def fail(self, message: str) -> None:
        self._stop()

    def interrupt(self, message: str) -> None:
        self._stop()

    def close(self) -> None:
        self._stop()

    def _stop(self) -> None:
        self.end_phase()
        self._progress.stop()


class PlainSink(ConsoleSink):
    """A log file: a line per update, and about ten lines per phase that has steps."""

    def __init__(self, console: Console, total_updates: int, start: int, num_samples: int) -> None:
        super().__init__(console, total_updates, start, num_samples)
        self._phase_total: int | None = None
        self._first_log: tuple[int, float] | None = None

    def phase(self, text: str, total: int | None, start: int) -> None:
        self._phase_total = total
        self._line(f"{text} ..." if total is None else f"{text}: {total} steps")

    def phase_step(self, step: PhaseStep, time_s: float) -> None:
        total = self._phase_total or step.step
        if step.step != total and step.step % max(1, total // _PHASE_LINES):
            return
        figures = [f"{label(name)} {format_value(name, value)}" for name, value in step.metrics.items()]
        self._line("  ".join([f"{step.phase} {step.step}/{total}", *figures]))

    def log(self, update: int, metrics: Metrics, time_s: float) -> None:
        parts = [f"update {update}/{self._total}", *_glance(metrics)]
        if STEP_TIME in metrics:
            parts.append(f"{metrics[STEP_TIME]:.1f} s")
        if (left := self._time_left(update)) is not None:
            parts.append(f"{format_duration(left)} left")
        self._line("  ".join(parts))

    def _time_left(self, update: int) -> float | None:
        """Seconds, from the mean pace since the first update that this process has logged."""
        now = time.monotonic()
        if self._first_log is None:
            self._first_log = (update, now)
            return None
        first, then = self._first_log
        return (now - then) / (update - first) * (self._total - update) if update > first else None
