"""What a run says while it is under way: its tracker, its last words, the clock of its phases."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from rl4dlm.errors import Interrupted
from rl4dlm.recipe import AnyRecipe
from rl4dlm.run.folder import RunFolder
from rl4dlm.tracking import Tracker


class Reporter:
    """The run's tracker, which a recovery replaces, and its last words: a failure is recorded with its
    traceback."""

    def __init__(self, recipe: AnyRecipe, folder: RunFolder, resume_from: int | None) -> None:
        self._recipe, self._folder = recipe, folder
        self.tracker = self._open(resume_from)

    def say(self, text: str) -> None:
        """Tell what is being done or waited for."""
        self.tracker.phase(text)

    def reopen(self, update: int) -> None:
        """Take the run up from `update` again; what was logged after it stays until `tracker.rewind`."""
        self.tracker.close()
        self.tracker = self._open(update)

    def _open(self, resume_from: int | None) -> Tracker:
        total = self._recipe.trainer.max_steps
        return Tracker(self._recipe, self._folder.root, total_updates=total, resume_from=resume_from)

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Interrupted | KeyboardInterrupt):
            self.tracker.interrupt(str(error))
        elif error is not None:
            self.tracker.fail(f"{type(error).__name__}: {error}")
            with suppress(OSError):  # a full disk must not hide the first error
                with open(self._folder.log, "a", encoding="utf-8") as log:
                    log.write("".join(traceback.format_exception(error)) + "\n")
        self.tracker.close()


def places(folder: RunFolder) -> dict[str, Path]:
    """Where everything of a run lies, by what it is."""
    everything = {
        "report": folder.root / "report.html",
        "metrics": folder.root / "metrics.jsonl",
        "rollouts": folder.rollouts,
        "W&B": folder.root / "wandb",
        "checkpoints": folder.checkpoints,
        "model": folder.model,
        "policy": folder.policy,
    }
    return {name: path for name, path in everything.items() if path.exists()}


class Clock:
    """Seconds per phase of one update."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._phases: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._phases[phase] = self._phases.get(phase, 0.0) + time.monotonic() - began

    def __getitem__(self, phase: str) -> float:
        return self._phases[phase]

    def metrics(self) -> Mapping[str, float]:
        """`timing_s/<phase>`, the rest of the step as `timing_s/driver`, and `step_time`."""
        total = time.monotonic() - self._started
        named = {f"timing_s/{phase}": seconds for phase, seconds in self._phases.items()}
        return {
            **named,
            "timing_s/driver": max(0.0, total - math.fsum(self._phases.values())),
            "step_time": total,
        }
