"""The sink that everything else can be rebuilt from: JSON lines in the run folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rl4dlm.errors import CheckpointError
from rl4dlm.tracking.files import (
    EVALUATIONS_FILE,
    EVENTS_FILE,
    METRICS_FILE,
    PHASES_FILE,
    SAMPLES_FILE,
    JsonLines,
    plain_number,
)
from rl4dlm.tracking.samples import SampleRow
from rl4dlm.tracking.sink import Evaluation, Metrics, PhaseStep, Sink, Summary


class JsonlSink(Sink):
    """Writes `metrics.jsonl`, `evaluations.jsonl`, `samples.jsonl`, `phases.jsonl` and `events.jsonl`.

    `rewind` drops the rows of later updates than the checkpoint's, so that the files of a resumed run are
    those of an uninterrupted one (times apart); events are kept, since they tell what happened. Until then a
    resume that fails has lost nothing.
    """

    def __init__(self, folder: Path, resume_from: int | None, header: Mapping[str, Any]) -> None:
        """
        Args:
            folder: the run's folder; it exists.
            resume_from: the update whose checkpoint the run continues from; None: a new run.
            header: what the `started` or `resumed` event records besides its time.

        Raises:
            CheckpointError: a new run finds the metrics of another one, or a file to be continued is broken.
        """
        self._metrics = JsonLines(folder / METRICS_FILE, durable=True)
        self._evaluations = JsonLines(folder / EVALUATIONS_FILE, durable=True)
        self._samples = JsonLines(folder / SAMPLES_FILE)
        self._phases = JsonLines(folder / PHASES_FILE)
        self._events = JsonLines(folder / EVENTS_FILE)
        self.elapsed_s = 0.0
        """Seconds that the kept part of the run has taken."""
        self.evaluated: set[int] = set()
        """Updates that have a complete evaluation on file."""
        self.lost: list[int] = []
        """Updates before the resume whose metrics are not on file: a kill or a disk tore their rows."""
        self._update = resume_from or 0
        self._ended = False
        self._rewinds_to = resume_from
        if resume_from is None:
            self._refuse_other_run()
            self._event("started", **header)
        else:
            self._look_back(resume_from)
            self._event("resumed", **header)

    def _refuse_other_run(self) -> None:
        for stream in self._streams():
            if stream.path.exists() and stream.path.stat().st_size:
                raise CheckpointError(
                    f"{stream.path}: this folder holds another run.\n"
                    "Fix: choose another run.name or run.output_dir, or continue that run with --resume."
                )

    def _look_back(self, update: int) -> None:
        """What is on file up to an update; a torn last line goes, which nobody could read."""
        metrics, evaluations = (
            [row for row in stream.keep(lambda row: True) if row["update"] <= update]
            for stream in (self._metrics, self._evaluations)
        )
        self.lost = sorted(set(range(1, update + 1)) - {row["update"] for row in metrics})
        self.evaluated = {row["update"] for row in evaluations}
        phases = self._phases.keep(lambda row: True)
        self._events.keep(lambda row: True)
        self.elapsed_s = max((row["time_s"] for row in [*metrics, *evaluations, *phases]), default=0.0)

    def rewind(self) -> None:
        """Drop the rows of updates after the one that the run resumes from; once, before the next row."""
        update, self._rewinds_to = self._rewinds_to, None
        if update is None:
            return
        for stream in (self._metrics, self._evaluations):
            stream.keep(lambda row: row["update"] <= update)
        # Samples are written before their evaluation's row: without it they are half of a lost evaluation.
        self._samples.keep(lambda row: row["update"] in self.evaluated)

    def _streams(self) -> tuple[JsonLines, ...]:
        return (self._metrics, self._evaluations, self._samples, self._phases, self._events)

    def _event(self, kind: str, **fields: Any) -> None:
        at = datetime.now(UTC).isoformat(timespec="seconds")
        self._events.append({"at": at, "update": self._update, "kind": kind, **fields})

    def phase(self, text: str, total: int | None, start: int) -> None:
        # A phase that a killed run left half done begins again at `start`.
        self._phases.keep(lambda row: row["phase"] != text or row["step"] <= start)
        self._event("phase", text=text, total=total)

    def phase_step(self, step: PhaseStep, time_s: float) -> None:
        head = {"phase": step.phase, "step": step.step, "time_s": round(time_s, 3)}
        self._phases.append(head | _numbers(step.metrics))

    def log(self, update: int, metrics: Metrics, time_s: float) -> None:
        self.rewind()
        self._update = update
        self._metrics.append({"update": update, "time_s": round(time_s, 3)} | _numbers(metrics))

    def evaluation(self, evaluation: Evaluation, time_s: float) -> None:
        self.rewind()
        self._update = evaluation.update
        for sample in evaluation.samples:
            self._samples.append(_sample_row(sample))
        head = {"update": evaluation.update, "time_s": round(time_s, 3), "decode": dict(evaluation.decode)}
        self._evaluations.append(head | _numbers(evaluation.metrics))
        self.evaluated.add(evaluation.update)

    def warn(self, text: str) -> None:
        self._event("warning", text=text)

    def note(self, text: str) -> None:
        self._event("note", text=text)

    def finish(self, summary: Summary) -> None:
        self._ended = True
        places = {name: str(path) for name, path in summary.places.items()}
        self._event("finished", updates=summary.updates, wall_s=round(summary.wall_s, 3), places=places)

    def fail(self, message: str) -> None:
        self._ended = True
        self._event("failed", text=message)

    def interrupt(self, message: str) -> None:
        self._ended = True
        self._event("interrupted", text=message)

    def close(self) -> None:
        if not self._ended:
            self._event("stopped")
        for stream in self._streams():
            stream.close()


def _numbers(metrics: Metrics) -> dict[str, int | float | None]:
    return {name: plain_number(value) for name, value in metrics.items()}


def _sample_row(sample: SampleRow) -> dict[str, Any]:
    return asdict(sample) | {"reward": plain_number(sample.reward), "rewards": _numbers(sample.rewards)}
