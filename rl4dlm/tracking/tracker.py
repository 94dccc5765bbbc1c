"""The tracker: one interface to the console, the JSON lines, Weights & Biases and the HTML report."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console

from rl4dlm.errors import StorageError, storage_error
from rl4dlm.recipe import AnyRecipe, dump_resolved
from rl4dlm.tracking.console import make_console_sink
from rl4dlm.tracking.environment import describe_environment
from rl4dlm.tracking.files import METRICS_FILE, RECIPE_FILE
from rl4dlm.tracking.history import RunHistory
from rl4dlm.tracking.jsonl import JsonlSink
from rl4dlm.tracking.names import NOT_APPLICABLE, REWARD, ZERO_STD
from rl4dlm.tracking.report import ReportSink
from rl4dlm.tracking.samples import SampleRow
from rl4dlm.tracking.sink import Evaluation, PhaseStep, Sink, Summary
from rl4dlm.tracking.wandb_sink import WandbSink
from rl4dlm.tracking.watchdogs import NothingToLearn

_PATIENCE = 10


class Tracker:
    """Takes what a run has to say and hands it to every sink.

    Update 0 is the state before training; updates 1..N are the policy's. An update is logged, and evaluated
    where it is, before its checkpoint is saved: `rewind` drops the rows of later updates alone, so the files
    of a resumed run are those of an uninterrupted one.

    Use it as a context manager, or call `close`; without `finish` or `fail` before that the run counts as
    stopped.
    """

    def __init__(
        self,
        recipe: AnyRecipe,
        folder: Path,
        *,
        total_updates: int,
        resume_from: int | None = None,
        console: Console | None = None,
    ) -> None:
        """
        Args:
            recipe: the resolved recipe; written to `recipe.yaml` in the folder unless that is there already.
            folder: the run's folder; made if missing.
            total_updates: updates that the whole run has, those before a resume included.
            resume_from: the update whose checkpoint the run continues from; None: a new run.
            console: where the console sink prints; None: standard output.

        Raises:
            CheckpointError: a new run finds the files of another one, or a file to be continued is broken.
            StorageError: the folder cannot be written.
        """
        self.folder = folder
        _prepare_folder(recipe, folder)
        header = {
            "method": recipe.method,
            "total_updates": total_updates,
            "environment": describe_environment(),
        }
        self._jsonl = JsonlSink(folder, resume_from, header)
        self._offset_s = self._jsonl.elapsed_s
        self._began = time.monotonic()
        self._last_update = resume_from or 0
        self._phase = ""
        self._closed = False
        self._told: set[str] = set()
        self._watchdog = NothingToLearn(max(1, min(_PATIENCE, total_updates)))
        screen = make_console_sink(
            recipe, console or Console(), total_updates=total_updates, start=self._last_update
        )
        wandb_sink = WandbSink(recipe, folder, note=self.note, warn=self.warn)
        # The report reads the JSON lines, so they come first; W&B may speak at its end, so it comes last.
        self._sinks: tuple[Sink, ...] = (self._jsonl, screen, ReportSink(folder), wandb_sink)
        if self._jsonl.lost:
            self.warn(_lost_rows(self._jsonl.lost))
        try:
            wandb_sink.start()
        except BaseException:  # an interrupt while W&B connects: the terminal gets its cursor back
            self.close()
            raise

    @property
    def elapsed_s(self) -> float:
        """Seconds that the run has taken, waits between a kill and a resume excluded."""
        return self._offset_s + time.monotonic() - self._began

    def evaluated(self, update: int) -> bool:
        """Whether the evaluation after this update is on file, so that a resumed run need not repeat it."""
        return update in self._jsonl.evaluated

    def rewind(self) -> None:
        """The run has resumed: drop the rows of later updates. The next update or evaluation would, too."""
        self._jsonl.rewind()

    def phase(self, text: str, total: int | None = None, *, start: int = 0) -> None:
        """Say what a long stage outside the updates does: starting workers, the warm start, an evaluation.

        Args:
            text: a few words; with `total` also the name under which its steps are kept.
            total: steps that `phase_step` will report; None: not counted.
            start: steps that are done already; recorded steps beyond it (of a killed run) are dropped.
        """
        self._phase = text
        for sink in self._sinks:
            sink.phase(text, total, start)

    def phase_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Step `step`, counted from 1, of the current phase is done."""
        for sink in self._sinks:
            sink.phase_step(PhaseStep(self._phase, step, metrics), self.elapsed_s)

    def end_phase(self) -> None:
        """The current phase is over; the next phase, update or evaluation would end it as well."""
        for sink in self._sinks:
            sink.end_phase()

    def log(self, update: int, metrics: Mapping[str, float]) -> None:
        """Update `update` is done. Values may be NaN where there is none; names as in `names.py` and TRL."""
        self._last_update = update
        for sink in self._sinks:
            sink.log(update, metrics, self.elapsed_s)
        warning = self._watchdog.observe(
            metrics.get(ZERO_STD, math.nan),
            metrics.get(REWARD, math.nan),
            not_applicable=metrics.get(NOT_APPLICABLE, 0),
        )
        if warning:
            self.warn(warning)

    def evaluation(
        self,
        update: int,
        metrics: Mapping[str, float],
        samples: Sequence[SampleRow],
        decode: Mapping[str, Any] | None = None,
    ) -> None:
        """The weights after `update` have been evaluated.

        Args:
            update: 0 is the state before training.
            metrics: named `eval/...`; the ends of a figure's 95 % interval are named
                `<figure>_ci95_low` and `<figure>_ci95_high`.
            samples: completions for the tables; all of them are kept in `samples.jsonl`.
            decode: settings of the sampler (JSON values), written beside the score.
        """
        evaluation = Evaluation(update, metrics, samples, decode or {})
        for sink in self._sinks:
            sink.evaluation(evaluation, self.elapsed_s)

    def warn(self, text: str) -> None:
        """Something is unwise or degraded; the run continues."""
        for sink in self._sinks:
            sink.warn(text)

    def warn_once(self, matters: Mapping[str, str]) -> None:
        """Warn of what this tracker has not warned of yet.

        Args:
            matters: texts, by what makes two warnings one.
        """
        for matter, text in matters.items():
            if matter not in self._told:
                self._told.add(matter)
                self.warn(text)

    def note(self, text: str) -> None:
        """Something worth knowing."""
        for sink in self._sinks:
            sink.note(text)

    def summary(self, places: Mapping[str, Path]) -> Summary:
        """The closing figures: first against last evaluation on file, and where everything lies."""
        before, after = RunHistory.load(self.folder).before_after()
        return Summary(self._last_update, self.elapsed_s, before, after, places)

    def finish(self, summary: Summary) -> None:
        """The run has ended well."""
        for sink in self._sinks:
            sink.finish(summary)

    def fail(self, message: str) -> None:
        """The run has failed; the caller shows the message to the user, the tracker records it."""
        for sink in self._sinks:
            # A full disk may be the very failure; the other sinks still learn of it.
            with suppress(StorageError):
                sink.fail(message)

    def interrupt(self, message: str) -> None:
        """The run was interrupted from outside."""
        for sink in self._sinks:
            with suppress(StorageError):
                sink.interrupt(message)

    def close(self) -> None:
        """Release everything; safe to call twice."""
        if self._closed:
            return
        self._closed = True
        for sink in reversed(self._sinks):
            with suppress(StorageError):
                sink.close()

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _lost_rows(updates: Sequence[int]) -> str:
    named = ", ".join(map(str, updates[:10])) + (", ..." if len(updates) > 10 else "")
    return (
        f"{METRICS_FILE} has no row of update {named}: it was torn or cut. Curves have a gap there; the "
        "weights are those of the checkpoint. Resume from an earlier one with --resume step=N to fill it."
    )


def _prepare_folder(recipe: AnyRecipe, folder: Path) -> None:
    path = folder / RECIPE_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            dump_resolved(recipe, path)
    except OSError as error:
        raise storage_error(f"{path} cannot be written", error) from error
