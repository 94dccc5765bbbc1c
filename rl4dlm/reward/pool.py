"""Scores batches of completions in killable processes: a bad sample costs itself and nothing else."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from rl4dlm.errors import PluginError
from rl4dlm.recipe.sections import RewardConfig
from rl4dlm.reward.batch import Batch, Groups, Scorable, call_of
from rl4dlm.reward.entries import RewardEntry, entries_of
from rl4dlm.reward.gold import check_declared, check_undeclared, gold_completion
from rl4dlm.reward.loading import Traits
from rl4dlm.reward.runner import LOAD_TIMEOUT_S, Attempt, Runner
from rl4dlm.reward.scores import Outcome, combine
from rl4dlm.reward.trial import Pace, Patience, Trial, accept_all, fail_all
from rl4dlm.types import Prompt, Scores

MAX_CULPRITS = 8
"""Per function and batch, as many full deadlines are waited for to find the samples that are to blame."""

Encode = Callable[[str], Sequence[int]]
Result = TypeVar("Result")


class RewardPool:
    """The reward functions of a recipe, ready to score.

    A call of a function is about whole groups: `reward.groups_per_call` of them, else as many as come to 16
    completions, at least one; about the whole batch where the function asks for it (`WHOLE_BATCH`). Which
    completions are called together depends neither on the processes nor on the workers.

    A call that raises, exits, returns the wrong number of rewards or does not answer within `timeout_s` (per
    16 completions) is tried again group by group, and a group that fails sample by sample, each with
    `timeout_s` of its own; those that do not fail alone are then scored together, so that only the culprits
    fail. A plug-in that keeps deadlines of its own (`NEEDS_S`) is given the time that it needs for them. A
    function whose call was merely slow, no sample being to blame, has `timeout_s` per sample for whole calls
    from then on.

    The total is bounded: once a batch has spent `MAX_CULPRITS * timeout_s` on samples of one function that
    fail alone, the rest of a failing group of that function fails with it, untried; groups that work are not
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
        self._groups_per_call = config.groups_per_call
        self._paces = [Pace(config.timeout_s) for _ in self.entries]
        self._traits: list[Traits] | None = None
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

    def score(self, groups: Groups, *, trainer_state: Mapping[str, Any] | None = None) -> Scores:
        """Rewards of a batch, in the order of the flattened groups.

        Args:
            groups: the completions of each prompt.
            trainer_state: what functions see as TRL's `trainer_state`, e.g. `{"global_step": 3}`.

        Raises:
            ValueError: the pool is closed.
        """
        batch = Batch.of(groups, trainer_state)
        outcomes = self.outcomes(batch, range(len(self.entries)))
        return combine(len(batch), weights_of(self.entries), outcomes)

    def outcomes(self, batch: Batch, functions: Sequence[int]) -> list[Outcome]:
        """What some of the functions make of a batch.

        Raises:
            ValueError: the pool is closed.
        """
        traits, rows = self.traits(), batch.group_rows()
        calls = [[rows[group] for group in call] for call in batch.calls(self._groups_per_call)]
        whole = [[range(len(batch))]] if len(batch) else []
        trials = [self._trial(index, traits[index], batch) for index in functions]
        futures = [
            self._submit(trial.run, parts)
            for trial in trials
            for parts in (whole if traits[trial.index].whole_batch else calls)
        ]
        return [future.result() for future in futures]

    def _trial(self, index: int, traits: Traits, batch: Batch) -> Trial:
        broken = None if traits.error is None else Attempt(kind="raised", message=traits.error, loaded=False)
        return Trial(
            index,
            self.entries[index].name,
            traits.bounds,
            batch,
            self._paces[index],
            Patience(MAX_CULPRITS * self._timeout_s, broken),
            self._require_open,
        )

    def traits(self) -> list[Traits]:
        """What each function says of itself; loads them all.

        Raises:
            ValueError: the pool is closed.
        """
        if self._traits is not None:
            return self._traits
        futures = [self._submit(Runner.traits, index) for index in range(len(self.entries))]
        found = [future.result() for future in futures]
        if not any(traits.error for traits in found):
            self._traits = found
        return found

    def bounds(self) -> dict[str, tuple[float, float]]:
        """By name the lowest and highest value, of the functions that declare them."""
        pairs = zip(self.entries, self.traits(), strict=True)
        return {entry.name: traits.bounds for entry, traits in pairs if traits.bounds is not None}

    @property
    def overdue_s(self) -> float:
        """How long a request has been under way beyond its deadline, seconds; 0 where none is."""
        return max(0.0, *(runner.overdue_s for runner in self._runners))

    def check(self, samples: Sequence[Prompt], encode: Encode | None = None) -> dict[str, list[float | None]]:
        """Load every function and score the gold answers of a few rows, all of them in one call.

        For dry runs and the start of a run. The gold answer is what the function's module declares (`GOLD`),
        which must earn full marks; else the column `answer`, which a function that names this column must
        prefer, in some usual layout, to empty text. A row without one is scored with empty text. A function
        that needs a trajectory is loaded and not called.

        Args:
            samples: rows of the data.
            encode: text -> token ids, for functions that look at them; None: those are not called.

        Returns:
            Per function the values it gave.

        Raises:
            PluginError: a function cannot be loaded, has the wrong signature, fails on a row or on several at
                once, does not recognise its gold answer, or leaves the range that it declares.
        """
        futures = [self._submit(self._check, index, samples, encode) for index in range(len(self.entries))]
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

    def _require_open(self) -> None:
        if self._closed:
            raise ValueError("the reward pool is closed")

    def _submit(self, work: Callable[..., Result], *arguments: Any) -> Future[Result]:
        self._require_open()
        return self._executor.submit(self._with_runner, work, arguments)

    def _with_runner(self, work: Callable[..., Result], arguments: tuple[Any, ...]) -> Result:
        runner = self._idle.get()
        try:
            result = work(runner, *arguments)
        finally:
            self._idle.put(runner)
        # Where it is closed by now the process was ended from outside: what it cost is nobody's fault.
        self._require_open()
        return result

    def _check(
        self, runner: Runner, index: int, samples: Sequence[Prompt], encode: Encode | None
    ) -> list[float | None]:
        facts = runner.load(index)
        if not samples or "trajectory" in facts["needs"] or (facts["needs"] and encode is None):
            return []
        made = partial(_completion_of, encode=encode if facts["needs"] else None)
        entry = self.entries[index]
        golds = runner.golds(index, [(f"row {sample.uid}", sample.columns) for sample in samples])
        texts = [gold_completion(gold, row.columns) for gold, row in zip(golds, samples, strict=True)]
        completions = [made(sample, text or "") for sample, text in zip(samples, texts, strict=True)]
        values = self._check_values(runner, index, samples, completions)
        for sample, gold, text, value in zip(samples, golds, texts, values, strict=True):
            if gold.declared and text is not None:
                check_declared(entry.resolved.path, sample.uid, text, value)
            elif facts["reads_answer"] and text is not None and value is not None:
                score = partial(self._value_or_none, runner, index, sample, made)
                check_undeclared(entry.resolved.path, sample.uid, text, score)
            _require_in_range(entry, sample, value, facts["bounds"])
        return values

    def _read_golds(self, runner: Runner, index: int, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        if "trajectory" not in runner.load(index)["needs"]:
            runner.golds(index, rows)

    def _check_values(
        self, runner: Runner, index: int, samples: Sequence[Prompt], completions: Sequence[Scorable]
    ) -> list[float | None]:
        """Scores of one completion of each row, from a single call.

        Raises:
            PluginError: the function fails on one of them, or only on all together.
        """
        path = self.entries[index].resolved.path
        together = self._try(runner, index, completions)
        if not together.failures:
            return [together.values[row] for row in range(len(completions))]
        for sample, completion in zip(samples, completions, strict=True):
            outcome = self._try(runner, index, [completion])
            if outcome.failures:
                raise PluginError(
                    f"reward function {path} fails on row {sample.uid}: {outcome.messages[0]}.\n"
                    f"Fix: mend the row, or the function: `rl4dlm rewards test {path}` tries it alone."
                )
        raise PluginError(
            f"reward function {path} fails on {len(completions)} rows in one call, and on none of them "
            f"alone: {together.messages[0]}.\n"
            "Fix: a call is about several completions; return a list with one value for each."
        )

    def _try(self, runner: Runner, index: int, completions: Sequence[Scorable]) -> Outcome:
        outcome, rows = Outcome(self.entries[index].name), range(len(completions))
        attempt = runner.attempt(index, call_of(completions), self._timeout_s * len(completions))
        return (accept_all if attempt.kind is None else fail_all)(outcome, rows, attempt)

    def _value_or_none(
        self, runner: Runner, index: int, sample: Prompt, made: Callable[[Prompt, str], Scorable], text: str
    ) -> float | None:
        attempt: Attempt = runner.attempt(index, call_of([made(sample, text)]), self._timeout_s)
        return attempt.values[0] if attempt.kind is None else None


def weights_of(entries: Sequence[RewardEntry]) -> dict[str, float]:
    """By name, in the recipe's order."""
    return {entry.name: entry.weight for entry in entries}


def _completion_of(sample: Prompt, text: str, encode: Encode | None) -> Scorable:
    return Scorable(sample.prompt, text, sample.columns, None if encode is None else encode(text))


def _require_in_range(
    entry: RewardEntry, sample: Prompt, value: float | None, ends: Sequence[float] | None
) -> None:
    if value is not None and ends is not None and not ends[0] <= value <= ends[1]:
        raise PluginError(
            f"reward function {entry.resolved.path} gives row {sample.uid} {value:g}, outside of its RANGE = "
            f"({ends[0]:g}, {ends[1]:g}).\nFix: correct RANGE, or the function."
        )
