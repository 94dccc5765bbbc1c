"""Weights & Biases: online where an account is configured, else offline. Never asks, never stops a run."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl4dlm.recipe import AnyRecipe
from rl4dlm.tracking.files import replace_file
from rl4dlm.tracking.names import sectioned
from rl4dlm.tracking.samples import SampleRow, visible
from rl4dlm.tracking.sink import Evaluation, Metrics, PhaseStep, Sink, Summary

if TYPE_CHECKING:
    import wandb

ID_FILE = "wandb-id"
"""Holds the id of the W&B run, so that a resumed run continues the same one."""

_INIT_TIMEOUT_S = 30.0
_FINISH_TIMEOUT_S = 300.0

Say = Callable[[str], None]


def wanted_mode(recipe: AnyRecipe) -> str:
    """`auto`, `online`, `offline` or `disabled`: the recipe's setting, which WANDB_MODE overrides.

    A recipe that says `disabled` stays disabled.
    """
    mode = recipe.tracking.wandb
    asked = os.environ.get("WANDB_MODE", "").lower()
    asked = {"dryrun": "offline", "run": "online"}.get(asked, asked)
    return mode if mode == "disabled" or asked not in ("online", "offline", "disabled") else asked


def account_configured() -> bool:
    """Whether W&B finds an API key or identity token (environment, settings, netrc), without asking for one.

    Raises:
        wandb.Error: what is configured has an invalid format.
    """
    import wandb

    wandb.setup(settings=wandb.Settings(silent=True))
    return wandb.login(prompt=False, verify=False)


class WandbSink(Sink):
    """A W&B run: the x axis is the update, the config the resolved recipe, sections follow metric prefixes.

    Metrics without a prefix go to section `train`, or `eval` for evaluations. Each evaluation's samples are
    the table `eval/completions`. The first failure is reported as a warning and ends the sink, not the run.
    """

    def __init__(self, recipe: AnyRecipe, folder: Path, *, note: Say, warn: Say) -> None:
        """`note` and `warn` say where the run is kept and what failed; nothing is started yet."""
        self._recipe = recipe
        self._folder = folder
        self._note = note
        self._warn = warn
        self._run: wandb.Run | None = None
        self._defined: set[str] = set()
        self._finished = False

    def start(self) -> None:
        """Open the run: online, or offline where there is no account or no connection."""
        mode = wanted_mode(self._recipe)
        if mode != "disabled":
            self._guarded("start", lambda: self._open(mode))

    def _open(self, mode: str) -> None:
        if mode != "offline":
            mode = self._online_or_offline(mode)
        run = self._try_online() if mode == "online" else None
        if run is None:
            run = self._init("offline")
        run.define_metric("update")
        run.define_metric("*", step_metric="update")
        self._run = run
        self._say_where(run)

    def _try_online(self) -> wandb.Run | None:
        import wandb

        self._note(f"W&B: connecting, at most {_INIT_TIMEOUT_S:.0f} s")
        try:
            return self._init("online")
        except Exception as error:  # any failure of a third party, all with one remedy
            self._warn(f"W&B cannot be reached, metrics are kept offline: {_first_line(error)}")
            wandb.teardown()  # its service holds on to the run id of the failed attempt
            return None

    def _online_or_offline(self, mode: str) -> str:
        try:
            if account_configured():
                return "online"
            problem = "no API key is configured (`wandb login` sets one)"
        except Exception as error:  # as above
            problem = _first_line(error)
        if mode == "online" or not problem.startswith("no API key"):
            self._warn(f"W&B: {problem}; metrics are kept offline.")
        return "offline"

    def _init(self, mode: str) -> wandb.Run:
        import wandb

        tracking = self._recipe.tracking
        settings = wandb.Settings(
            mode=mode,
            silent=True,
            console="off",  # W&B's capture of stdout would fight the progress bar
            init_timeout=_INIT_TIMEOUT_S,
            finish_timeout=_FINISH_TIMEOUT_S,
        )
        return wandb.init(
            project=tracking.wandb_project,
            entity=tracking.wandb_entity,
            name=self._recipe.run.name,
            id=self._run_id(),
            dir=str(self._folder),
            config=self._recipe.shown(),
            resume="allow",
            settings=settings,
        )

    def _run_id(self) -> str:
        path = self._folder / ID_FILE
        if path.exists():
            return path.read_text(encoding="ascii").strip()
        # Not a draw of the run: two runs of one recipe and seed need different ids.
        run_id = uuid.uuid4().hex[:12]
        replace_file(path, run_id.encode("ascii") + b"\n")
        return run_id

    def _say_where(self, run: wandb.Run) -> None:
        if run.offline:
            self._note(f"W&B: offline; `wandb sync {Path(run.dir).parent}` uploads it to an account")
        else:
            self._note(f"W&B: {run.url}")

    def _guarded(self, action: str, call: Callable[[], None]) -> None:
        """Run a call into W&B; its first failure ends the sink with a warning."""
        try:
            call()
        except Exception as error:  # W&B is a convenience: whatever it raises must not stop training
            self._run = None
            self._warn(
                f"W&B failed to {action} and is off for the rest of this run: {_first_line(error)}. "
                "metrics.jsonl and report.html are written as before."
            )

    def _log(self, values: dict[str, Any]) -> None:
        run = self._run
        if run is not None:
            self._guarded("log", lambda: run.log(values))

    def phase_step(self, step: PhaseStep, time_s: float) -> None:
        section = re.sub(r"[^a-z0-9]+", "_", step.phase.lower()).strip("_")
        axis = f"{section}/step"
        values = {sectioned(name, section): value for name, value in step.metrics.items()}
        self._guarded("define metrics", lambda: self._define_axis(axis, values))
        self._log(values | {axis: step.step})

    def _define_axis(self, axis: str, names: Iterable[str]) -> None:
        """Phases have an x axis of their own; a metric that is named beats the pattern `*`."""
        run = self._run
        for name in [axis, *names]:
            if run is not None and name not in self._defined:
                self._defined.add(name)
                run.define_metric(name, step_metric=None if name == axis else axis)

    def log(self, update: int, metrics: Metrics, time_s: float) -> None:
        values = {sectioned(name, "train"): value for name, value in metrics.items()}
        self._log(values | {"update": update, "time_s": time_s})

    def evaluation(self, evaluation: Evaluation, time_s: float) -> None:
        values: dict[str, Any] = {
            sectioned(name, "eval"): value for name, value in evaluation.metrics.items()
        }
        if self._run is not None and evaluation.samples:
            self._guarded(
                "build a table", lambda: values.update({"eval/completions": _table(evaluation.samples)})
            )
        self._log(values | {"update": evaluation.update, "time_s": time_s})

    def finish(self, summary: Summary) -> None:
        self._finished = True

    def close(self) -> None:
        run, self._run = self._run, None
        if run is None:
            return
        if not run.offline:
            self._note(f"W&B: uploading the rest, at most {_FINISH_TIMEOUT_S:.0f} s")
        self._guarded("finish", lambda: run.finish(exit_code=0 if self._finished else 1))


def _table(samples: Sequence[SampleRow]) -> wandb.Table:
    import wandb

    functions = list(dict.fromkeys(name for row in samples for name in row.rewards))
    head = ["update", "prompt_uid", "sample", "prompt", "completion", "reward"]
    logged = list(dict.fromkeys(column for row in samples for column in row.extra))
    columns = [*head, *(f"rewards/{name}" for name in functions), "correct"]
    table = wandb.Table(columns=[*columns, *(f"extra/{name}" for name in logged)])
    for row in samples:
        texts = [visible(text, lines=True) for text in (row.prompt, row.completion)]
        scores = [row.reward, *(row.rewards.get(name) for name in functions)]
        notes = [None if (note := row.extra.get(name)) is None else visible(str(note)) for name in logged]
        table.add_data(row.update, row.prompt_uid, row.sample, *texts, *scores, row.correct, *notes)
    return table


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
