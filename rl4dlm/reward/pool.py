"""Scores batches of completions in killable processes: a bad sample costs itself and nothing else."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from rl4dlm.errors import PluginError
from rl4dlm.recipe.sections import RewardConfig
from rl4dlm.reward.calling import Call
from rl4dlm.reward.entries import RewardEntry, entries_of
from rl4dlm.reward.gold import check_declared, check_undeclared, gold_completion
from rl4dlm.reward.loading import MAX_CHUNK
from rl4dlm.reward.runner import LOAD_TIMEOUT_S, Attempt, Runner
from rl4dlm.reward.scores import Outcome, combine
from rl4dlm.types import Prompt, Scores

MAX_CULPRITS = 8
"""Per function and batch, as many full deadlines are waited for to find the samples that are to blame."""


class RewardPool:
    """The reward functions of a recipe, ready to score.

    A function is given chunks of up to `MAX_CHUNK` consecutive samples. A chunk that raises, exits, returns
    the wrong number of rewards or does not answer within `timeout_s` is tried again sample by sample, each
    with `timeout_s` of its own, so that only the culprits fail. A plug-in that keeps deadlines of its own
    (`NEEDS_S`) is given the time that it needs for them. A function whose chunk was merely slow, no
    sample being to blame, has `timeout_s` per sample for whole chunks from then on.

    The total is bounded: once a batch has spent `MAX_CULPRITS * timeout_s` on samples of one function that
    fail alone, the rest of a failing chunk of that function fails with it, untried; chunks that work are not
    affected. A function that cannot be loaded any more fails its samples at once.

    Use it as a context manager, or call `close`.
    """

    def __init__(
        self, config: RewardConfig, *, load_timeout_s: float = LOAD_TIMEOUT_S, show_output: bool = False
    ) -> None:
        """Resolve the functions; processes start with the first call.

        Args:
            config: the recipe's section.
            load_timeout_s: bound on starting a process and importing a function, seconds.
            show_output: pass on what plug-ins print, to stderr; otherwise it is discarded.

        Raises:
            PluginError: a function cannot be found, or their names clash.
        """
        self.entries: tuple[RewardEntry, ...] = entries_of(config)
        self._timeout_s = config.timeout_s
        self._slow: set[int] = set()
        self._closed = False
        self._runners = [
            Runner(self.entries, load_timeout_s=load_timeout_s, show_output=show_output)
            for _ in range(config.num_processes)
        ]
        # Last in, first out: a small batch is served by the process that is already warm.
        self._idle: queue.LifoQueue[Runner] = queue.LifoQueue()
        for runner in self._runners:
            self._idle.put(runner)
        # Reward processes end with the thread that started them, so all are started by these threads.
        self._executor = ThreadPoolExecutor(config.num_processes, thread_name_prefix="reward")

    def score(
        self,
        prompts: Sequence[Any],
        completions: Sequence[str],
        columns: Sequence[Mapping[str, Any]],
        trajectories: Sequence[Mapping[str, Any]] | None = None,
        *,
        trainer_state: Mapping[str, Any] | None = None,
    ) -> Scores:
        """Rewards of a batch.

        Args:
            prompts: per sample, as the dataset gives them: text, or chat messages.
            completions: texts.
            columns: per sample the row's other columns; a key that some rows lack is None for them.
            trajectories: per sample `completion_ids`, `step_map` and what else step-wise rewards may use.
            trainer_state: what functions see as TRL's `trainer_state`, e.g. `{"global_step": 3}`.

        Raises:
            ValueError: the arguments differ in length, or the pool is closed.
        """
        batch = _Batch(prompts, completions, columns, trajectories, trainer_state or {"global_step": 0})
        size = max(1, min(MAX_CHUNK, -(-len(completions) // len(self._runners))))
        chunks = [batch.rows[start : start + size] for start in range(0, len(completions), size)]
        patience = [_Patience(MAX_CULPRITS * self._timeout_s) for _ in self.entries]
        futures = [
            self._submit(self._score_chunk, index, rows, batch, patience[index])
            for rows in chunks
            for index in range(len(self.entries))
        ]
        outcomes = [future.result() for future in futures]
        return combine(len(completions), {entry.name: entry.weight for entry in self.entries}, outcomes)

    def check(self, samples: Sequence[Prompt]) -> dict[str, list[float | None]]:
        """Load every function and score the gold answers of a few rows.

        For dry runs and the start of a run. The gold answer is what the function's module declares (`GOLD`),
        which must earn full marks; else the column `answer`, which a function that names this column must
        prefer, in some usual layout, to empty text. A row without one is scored with empty text. A function
        that needs a trajectory is loaded and not called.

        Returns:
            Per function the values it gave.

        Raises:
            PluginError: a function cannot be loaded, has the wrong signature, fails on a row, or does not
                recognise its gold answer.
        """
        futures = [self._submit(self._check, index, samples) for index in range(len(self.entries))]
        return {entry.name: future.result() for entry, future in zip(self.entries, futures, strict=True)}

    def check_references(self, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        """Have every function that declares `GOLD` read the references of rows; nothing is scored.

        Args:
            rows: per row how messages call it, `data.train, row 7`, and its columns.

        Raises:
            DataError: one cannot be read, so that no completion could earn full marks; names the row.
            PluginError: a function cannot be loaded.
        """
        futures = [self._submit(self._read_golds, index, rows) for index in range(len(self.entries))]
        for future in futures:
            future.result()

    def close(self) -> None:
        """End the processes and all that they started. A call of `score` in another thread fails."""
        self._closed = True
        self._executor.shutdown(wait=False, cancel_futures=True)
        while self._idle.qsize() < len(self._runners):
            for runner in self._runners:
                runner.process.interrupt()
            time.sleep(0.01)
        self._executor.shutdown(wait=True)
        for runner in self._runners:
            runner.process.stop()

    def __enter__(self) -> RewardPool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _submit(self, work: Callable[..., Any], *arguments: Any) -> Any:
        if self._closed:
            raise ValueError("the reward pool is closed")
        return self._executor.submit(self._with_runner, work, arguments)

    def _with_runner(self, work: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        runner = self._idle.get()
        try:
            result = work(runner, *arguments)
        finally:
            self._idle.put(runner)
        if self._closed:
            # The process was ended from outside: what it cost is nobody's fault.
            raise ValueError("the reward pool was closed")
        return result

    def _score_chunk(
        self, runner: Runner, index: int, rows: Sequence[int], batch: _Batch, patience: _Patience
    ) -> Outcome:
        outcome = Outcome(self.entries[index].name)
        if patience.broken is not None:
            return _fail_all(outcome, rows, patience.broken)
        allowance = len(rows) if index in self._slow else 1
        attempt = runner.attempt(index, batch.call(rows), self._timeout_s * allowance)
        if attempt.kind is None:
            return _accept_all(outcome, rows, attempt)
        if not attempt.loaded:
            patience.broken = attempt
        if len(rows) == 1 or not attempt.loaded:
            patience.spend(attempt.seconds)
            return _fail_all(outcome, rows, attempt)
        self._isolate(runner, index, rows, batch, patience, attempt, outcome)
        if attempt.kind == "timeout" and not outcome.failures:
            self._slow.add(index)
        return outcome

    def _isolate(
        self,
        runner: Runner,
        index: int,
        rows: Sequence[int],
        batch: _Batch,
        patience: _Patience,
        chunk: Attempt,
        outcome: Outcome,
    ) -> None:
        """Try the samples of a chunk that failed one at a time, while patience lasts."""
        for row in rows:
            if self._closed:
                raise ValueError("the reward pool was closed")
            if patience.exhausted:
                outcome.fail(row, chunk.kind or "raised", f"{chunk.message} (with its chunk)")
                continue
            attempt = runner.attempt(index, batch.call([row]), self._timeout_s)
            if attempt.kind is None:
                _accept_all(outcome, [row], attempt)
            else:
                patience.spend(attempt.seconds)
                _fail_all(outcome, [row], attempt)

    def _check(self, runner: Runner, index: int, samples: Sequence[Prompt]) -> list[float | None]:
        facts = runner.load(index)
        if facts["needs_trajectory"]:
            return []
        path = self.entries[index].resolved.path
        values = []
        for sample in samples:
            (gold,) = runner.golds(index, [(f"row {sample.uid}", sample.columns)])
            completion = gold_completion(gold, sample.columns)
            value = self._check_value(runner, index, sample, completion or "")
            if gold.declared and completion is not None:
                check_declared(path, sample.uid, completion, value)
            elif facts["reads_answer"] and completion is not None and value is not None:
                score = partial(self._value_or_none, runner, index, sample)
                check_undeclared(path, sample.uid, completion, score)
            values.append(value)
        return values

    def _read_golds(self, runner: Runner, index: int, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        if not runner.load(index)["needs_trajectory"]:
            runner.golds(index, rows)

    def _check_value(self, runner: Runner, index: int, sample: Prompt, completion: str) -> float | None:
        """Score of one completion of a row.

        Raises:
            PluginError: the function fails on it.
        """
        entry = self.entries[index]
        outcome = Outcome(entry.name)
        attempt = runner.attempt(index, _call_of(sample, completion), self._timeout_s)
        (_accept_all if attempt.kind is None else _fail_all)(outcome, [0], attempt)
        if outcome.failures:
            raise PluginError(
                f"reward function {entry.resolved.path} fails on row {sample.uid}: {outcome.messages[0]}.\n"
                f"Fix: mend it; `rl4dlm rewards test {entry.resolved.path}` tries it alone."
            )
        return outcome.values[0]

    def _value_or_none(self, runner: Runner, index: int, sample: Prompt, completion: str) -> float | None:
        attempt = runner.attempt(index, _call_of(sample, completion), self._timeout_s)
        return attempt.values[0] if attempt.kind is None else None


def _call_of(sample: Prompt, completion: str) -> Call:
    return Call([sample.prompt], [completion], {key: [value] for key, value in sample.columns.items()})


@dataclass(frozen=True)
class _Batch:
    """The arguments of one call of `RewardPool.score`."""

    prompts: Sequence[Any]
    completions: Sequence[str]
    columns: Sequence[Mapping[str, Any]]
    trajectories: Sequence[Mapping[str, Any]] | None
    trainer_state: Mapping[str, Any]

    def __post_init__(self) -> None:
        lengths = [len(part) for part in (self.prompts, self.completions, self.columns)]
        lengths += [len(self.trajectories)] if self.trajectories is not None else []
        if len(set(lengths)) > 1:
            raise ValueError(f"prompts, completions, columns, trajectories differ in length: {lengths}")

    @property
    def rows(self) -> range:
        return range(len(self.completions))

    @cached_property
    def column_names(self) -> list[str]:
        return list(dict.fromkeys(name for columns in self.columns for name in columns))

    def call(self, rows: Sequence[int]) -> Call:
        """What a function is given for some of the samples."""
        return Call(
            prompts=[self.prompts[row] for row in rows],
            completions=[self.completions[row] for row in rows],
            columns={name: [self.columns[row].get(name) for row in rows] for name in self.column_names},
            trajectories=None if self.trajectories is None else [self.trajectories[row] for row in rows],
            trainer_state=self.trainer_state,
        )


class _Patience:
    """How long one function may still keep one batch waiting for samples that fail; shared by threads."""

    def __init__(self, budget_s: float) -> None:
        self._left_s = budget_s
        self._lock = threading.Lock()
        self.broken: Attempt | None = None
        """Why the function can no longer be loaded."""

    @property
    def exhausted(self) -> bool:
        return self._left_s <= 0

    def spend(self, seconds: float) -> None:
        with self._lock:
            self._left_s -= seconds


def _accept_all(outcome: Outcome, rows: Sequence[int], attempt: Attempt) -> Outcome:
    for row, value in zip(rows, attempt.values, strict=True):
        outcome.accept(row, value)
    outcome.metrics.extend(attempt.metrics)
    return outcome


def _fail_all(outcome: Outcome, rows: Sequence[int], attempt: Attempt) -> Outcome:
    for row in rows:
        outcome.fail(row, attempt.kind or "raised", attempt.message)
    return outcome
