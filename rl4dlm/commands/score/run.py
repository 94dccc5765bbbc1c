"""Scores a file chunk by chunk: one pass, bounded memory, killable processes, a verdict per row."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from rl4dlm.benchmarks.statistics import Figure, RunningMean
from rl4dlm.commands.score.columns import FULL_MARKS, Columns, Metric, SavedSample, metric_of
from rl4dlm.commands.score.files import SavedRows
from rl4dlm.commands.score.published import published
from rl4dlm.errors import DataError, RecipeError, StorageError
from rl4dlm.recipe.sections import RewardConfig, RewardFunction
from rl4dlm.reward.batch import Scorable
from rl4dlm.reward.loading import built_in_file
from rl4dlm.reward.pool import RewardPool
from rl4dlm.reward.scores import matters_of
from rl4dlm.tracking.files import encode_row
from rl4dlm.tracking.names import format_interval, format_value
from rl4dlm.types import Scores

CHUNK_ROWS = 512
MAX_MESSAGES = 5


@dataclass(frozen=True)
class ScoreRequest:
    """What `rl4dlm score` was asked for."""

    reward: str
    """As in a recipe: built-in name, file, dotted name or entry point."""
    file: Path
    columns: Columns = Columns()
    metric: Metric | None = None
    """None: the reward's own, see `metric_of`."""
    output: Path | None = None
    """Where the verdicts go; None: beside the file, or in the working directory where that is read-only."""
    limit: int | None = None
    """Rows scored at most."""
    timeout_s: float = 5.0
    """Deadline per row, seconds."""
    num_processes: int = 1
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the reward, as in a recipe."""


@dataclass
class ScoreReport:
    """What came of a file."""

    reward: str
    file: Path
    metric: Metric
    verdicts: Path
    num_rows: int = 0
    not_applicable: int = 0
    """Rows for which the reward said None: they have no reference, or belong to another task."""
    failures: Counter[str] = field(default_factory=Counter)
    """Rows by kind of failure; they are part of no mean."""
    messages: list[str] = field(default_factory=list)
    """The first distinct failure messages."""
    scores: RunningMean = field(default_factory=RunningMean)
    """Of the metric."""
    rewards: RunningMean = field(default_factory=RunningMean)
    """Of what the function returned."""
    published: RunningMean = field(default_factory=RunningMean)
    """What the published evaluation makes of the rows, for a reward that has one."""
    num_differing: int = 0
    """Rows that it judges otherwise."""
    bounds: tuple[float, float] | None = None
    """Lowest and highest value of the reward, where it declares them."""

    @property
    def has_full_marks(self) -> bool:
        """Whether 1 is the best that a completion can earn, so that it can be called right."""
        return self.metric == "accuracy" or self.bounds == (0.0, 1.0)

    @property
    def figure(self) -> Figure | None:
        """The reported mean; None where no row was scored."""
        return self.scores.figure()

    def as_json(self) -> dict[str, Any]:
        """The object that `--json` prints: `n` = `scored` + `not_applicable` + the failures."""
        figure, rewards = self.figure, self.rewards.figure()
        return {
            "reward": self.reward,
            "file": str(self.file),
            "metric": self.metric,
            "range": None if self.bounds is None else list(self.bounds),
            "mean": None if figure is None else figure.value,
            "ci95": None if figure is None or figure.ci95 is None else list(figure.ci95),
            "n": self.num_rows,
            "scored": self.scores.count,
            "not_applicable": self.not_applicable,
            "failures": dict(sorted(self.failures.items())),
            "mean_reward": None if rewards is None else rewards.value,
            "published": self._published_json(),
            "verdicts": str(self.verdicts),
        }

    def _published_json(self) -> dict[str, Any] | None:
        figure = self.published.figure()
        if figure is None:
            return None
        return {"mean": figure.value, "n": figure.count, "differing": self.num_differing}


def score_file(request: ScoreRequest, console: Console | None = None) -> ScoreReport:
    """Score a file and write a verdict per row as JSON lines.

    Rows of one prompt that follow each other are a group, which a call of the reward sees whole.

    A line has `row`, `verdict` (`right`, `partial`, `wrong`, or `scored` for a reward without full marks;
    `not_applicable`, `failed`), for the first four `score` and `reward`, for the last `failure`; `extra`,
    what the reward logged of the row; for a reward with a published evaluation `published`, its score, and
    `why` where that differs.

    Args:
        console: shows a progress bar while it is a terminal; None: stderr.

    Raises:
        DataError: the file or a row cannot be used; nothing is left behind.
        PluginError: the reward cannot be found or imported.
        RecipeError: `output` exists or cannot be.
        StorageError: the disk refuses the verdicts.
    """
    config = RewardConfig(
        functions=[RewardFunction(path=request.reward, kwargs=dict(request.kwargs))],
        timeout_s=request.timeout_s,
        num_processes=request.num_processes,
    )
    rows = SavedRows(request.file, texts=[request.columns.completion])
    with RewardPool(config) as pool:
        entry = pool.entries[0]
        pool.check([])  # imports it: a plug-in that cannot be loaded is refused before any row is read
        known = built_in_file(entry.resolved)
        report = ScoreReport(
            request.reward,
            request.file,
            request.metric or metric_of(known),
            _verdict_file(request, entry.name),
            bounds=pool.traits()[0].bounds,
        )
        with _written_whole(report.verdicts) as out, _progress(console) as show:
            # A reward that compares all prompts is asked once, about the whole file.
            size = None if pool.traits()[0].whole_batch else CHUNK_ROWS
            for chunk in _chunks(_groups(rows, request, known, report), size):
                _score_chunk(pool, known, chunk, report, out)
                show(rows.share_read, report)
            _require_any(report, request.columns.target)
    return report


def _require_any(report: ScoreReport, target: str) -> None:
    """Refuse a file of which the reward says that no row concerns it."""
    if report.scores.count == 0 and not report.failures:
        raise DataError(
            f"{report.file}: reward {report.reward} applies to none of the {report.num_rows} rows: it said "
            f"None for each.\nFix: check that `{target}` holds references."
        )


def _chunks(groups: Iterable[list[SavedSample]], size: int | None) -> Iterator[list[list[SavedSample]]]:
    """Whole groups, about `size` rows at a time; None: all at once."""
    chunk: list[list[SavedSample]] = []
    rows = 0
    for group in groups:
        chunk.append(group)
        rows += len(group)
        if size is not None and rows >= size:
            yield chunk
            chunk, rows = [], 0
    if chunk:
        yield chunk


def _groups(
    rows: SavedRows, request: ScoreRequest, known: str, report: ScoreReport
) -> Iterator[list[SavedSample]]:
    """Rows of one prompt that follow each other; where a prompt comes back later the report says so."""
    samples = (
        request.columns.sample(row, known, f"{request.file}, row {index}")
        for index, row in enumerate(islice(rows, request.limit))
    )
    seen: set[str] = set()
    for prompt, members in groupby(samples, key=lambda sample: _identity(sample.prompt)):
        if prompt in seen and not known:
            _tell(report, _TORN)
        seen.add(prompt)
        yield list(members)


_TORN = (
    "a prompt comes back after others: only rows of a prompt that follow each other are one group for a "
    "reward that compares the completions of a prompt. Fix: sort the file by prompt where the reward does."
)


def _identity(prompt: Any) -> str:
    """A prompt, text or messages, in a few bytes."""
    shown = prompt if isinstance(prompt, str) else repr(prompt)
    return hashlib.sha256(shown.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _tell(report: ScoreReport, *messages: str) -> None:
    report.messages = list(dict.fromkeys([*report.messages, *messages]))[:MAX_MESSAGES]


def _score_chunk(
    pool: RewardPool, known: str, chunk: Sequence[Sequence[SavedSample]], report: ScoreReport, out: IO[bytes]
) -> None:
    scores = pool.score([[_completion(sample) for sample in group] for group in chunk])
    report.failures.update(scores.errors)
    _tell(report, *matters_of(scores).values())
    for offset, sample in enumerate(sample for group in chunk for sample in group):
        verdict = _verdict(scores, offset, report)
        extra = {column: values[offset] for column, values in scores.extra.items()}
        line = verdict | ({"extra": extra} if extra else {}) | _comparison(known, sample, verdict, report)
        out.write(encode_row(line))
        report.num_rows += 1


def _completion(sample: SavedSample) -> Scorable:
    return Scorable(sample.prompt, sample.text, sample.columns, sample.token_ids)


def _verdict(scores: Scores, offset: int, report: ScoreReport) -> dict[str, Any]:
    """One row's line; its value joins the means."""
    head = {"row": report.num_rows}
    if scores.failed[offset]:
        return head | {"verdict": "failed", "failure": scores.kinds[offset]}
    if np.isnan(scores.reward[offset]):
        report.not_applicable += 1
        return head | {"verdict": "not_applicable"}
    reward = float(f"{scores.reward[offset]:.7g}")  # float32 holds no more digits
    full = reward >= FULL_MARKS
    score = float(full) if report.metric == "accuracy" else reward
    report.scores.add(score)
    report.rewards.add(reward)
    verdict = "right" if full else "partial" if reward > 0 else "wrong"
    if not report.has_full_marks:
        verdict = "scored"
    return head | {"verdict": verdict, "score": score, "reward": reward}


def _comparison(
    known: str, sample: SavedSample, verdict: Mapping[str, Any], report: ScoreReport
) -> dict[str, Any]:
    """The published score of a row and, where it is another one, why; empty where there is none."""
    theirs = published(known, sample)
    if theirs is None:
        return {}
    report.published.add(theirs.score)
    if abs(verdict.get("score", -1.0) - theirs.score) < 1e-6:
        return {"published": theirs.score}
    report.num_differing += 1
    return {"published": theirs.score, "why": theirs.explain(sample.columns.get("answer"))}


def _verdict_file(request: ScoreRequest, name: str) -> Path:
    """Where the verdicts go; a file that the user names must not exist."""
    if request.output is not None:
        if request.output.exists():
            raise RecipeError(
                f"{request.output} exists; nothing was overwritten.\nFix: name another --output file."
            )
        if not request.output.parent.is_dir():
            raise RecipeError(
                f"{request.output.parent} is no folder.\nFix: make it, or name another --output file."
            )
        return request.output
    file_name = f"{request.file.stem}.{name}.verdicts.jsonl"
    beside = request.file.parent
    # The mode too: to root every folder is writable, also one that its owner made read-only.
    writable = os.access(beside, os.W_OK) and beside.stat().st_mode & 0o222
    return (beside if writable else Path()) / file_name


@contextmanager
def _written_whole(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears under its name when everything is written, and not at all otherwise."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
        temporary.replace(path)
    except OSError as error:
        raise StorageError(
            f"{path}: the verdicts cannot be written: {error.strerror or error}.\n"
            "Fix: free disk space, or name another --output file."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _progress(console: Console | None) -> Iterator[Any]:
    """A function that shows how far the file is read; silent where nobody watches."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield lambda share, report: None
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("scoring", total=1.0)

        def show(share: float, report: ScoreReport) -> None:
            figure = report.figure
            text = "" if figure is None else f"  {_shown(figure.value, report.has_full_marks)}"
            bar.update(task, completed=share, description=f"{report.num_rows} rows{text}")

        yield show


def print_scores(report: ScoreReport, console: Console | None = None) -> None:
    """The figures of a report for people, on stdout unless told otherwise."""
    console = console or Console()
    for line in report_lines(report.as_json()):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for message in report.messages:
        console.print(f"  {message}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"verdicts: {report.verdicts}", markup=False, highlight=False, soft_wrap=True)


def report_lines(values: Mapping[str, Any]) -> Iterator[str]:
    """A report's figures as text, a line each."""
    yield f"{values['reward']} on {values['file']}"
    if values["mean"] is None:
        yield "mean: unknown, no row was scored"
    else:
        ends, share = values["ci95"], values["metric"] == "accuracy" or values["range"] == [0.0, 1.0]
        interval = "" if ends is None else " " + format_interval(_SHARE if share else "", *ends)
        what = "full marks" if values["metric"] == "accuracy" else "mean reward"
        yield f"{what}: {_shown(values['mean'], share)}{interval}, over {values['scored']} rows"
        if values["metric"] == "accuracy":
            yield f"mean reward, partial credit included: {values['mean_reward']:.4g}"
    if values["not_applicable"]:
        yield f"not applicable (no reference): {values['not_applicable']} of {values['n']} rows"
    if theirs := values["published"]:
        differing = theirs["differing"]
        told = f"rows that differ, each with the reason: {differing}" if differing else "no row differs"
        yield f"the published evaluation gives {100 * theirs['mean']:.1f} % of {theirs['n']} rows; {told}"
    kinds = ", ".join(f"{count} {kind}" for kind, count in values["failures"].items())
    yield f"failures: {kinds or 'none'}"


_SHARE = "accuracy"
"""A name under which the trackers write a percentage."""


def _shown(value: float, share: bool) -> str:
    return format_value(_SHARE if share else "", value)


def score_json(report: ScoreReport) -> str:
    """The report as one JSON object on one line."""
    return json.dumps(report.as_json(), ensure_ascii=True, allow_nan=False)
