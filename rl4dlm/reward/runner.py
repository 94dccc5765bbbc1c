"""A reward process that knows the functions of a recipe; what goes wrong becomes a kind and a message."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rl4dlm.errors import DataError, PluginError
from rl4dlm.reward.calling import Call
from rl4dlm.reward.entries import RewardEntry
from rl4dlm.reward.loading import Traits
from rl4dlm.reward.process import DeadlinePassed, ProcessDied, RewardProcess

LOAD_TIMEOUT_S = 60.0
"""Bound on starting a process and importing a plug-in, seconds."""


@dataclass(frozen=True)
class Attempt:
    """What came of one call: values, or the kind of failure (a key of `Scores.errors`) and its message."""

    values: Sequence[float | None] = ()
    metrics: Sequence[tuple[str, float]] = ()
    extra: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """By column a value per sample."""
    misfits: Sequence[str] = ()
    """What was logged and did not fit the samples."""
    kind: str | None = None
    message: str = ""
    seconds: float = 0.0
    loaded: bool = True
    """False: the function could not even be loaded, so that trying other samples is of no use."""


@dataclass(frozen=True)
class Gold:
    """What a plug-in says of a row's gold completion, which must earn full marks."""

    declared: bool
    """The module has `GOLD`."""
    text: str | None
    """None: the row has none."""


class Runner:
    """Calls reward functions in one process, which it starts, loads and restarts as needed."""

    def __init__(
        self,
        entries: Sequence[RewardEntry],
        *,
        load_timeout_s: float = LOAD_TIMEOUT_S,
        show_output: bool = False,
    ) -> None:
        """Nothing is started yet; for the arguments see `RewardPool`."""
        self.process = RewardProcess(show_output)
        self._entries = entries
        self._load_timeout_s = load_timeout_s
        self._facts: dict[int, dict[str, Any]] = {}
        self._needs_s: dict[tuple[int, int], float] = {}
        self._due = math.inf

    @property
    def overdue_s(self) -> float:
        """Seconds since the request under way should have ended by itself; negative or -inf: not yet, or
        none is under way."""
        return time.monotonic() - self._due

    def load(self, index: int) -> dict[str, Any]:
        """Have the process import function `index`, unless it has already.

        Returns:
            `style`, `needs` (`completion_ids`, `trajectory`: what of a rollout's record it must have),
            `reads_answer` (it names the column `answer`), `keeps_deadlines` (it has `NEEDS_S`), `whole_batch`
            and `bounds` (see `Traits`) of the function.

        Raises:
            PluginError: it cannot be imported or called, or importing it hangs or ends the process.
        """
        if not self.process.alive:
            self.process.kill()
            self._facts.clear()
        if index in self._facts:
            return self._facts[index]
        entry = self._entries[index]
        try:
            reply = self._request("load", index, entry.resolved, entry.kwargs, timeout_s=self._load_timeout_s)
        except DeadlinePassed:
            raise PluginError(
                f"{entry.resolved.path}: importing the reward function takes more than "
                f"{self._load_timeout_s:g} s.\nFix: move slow work out of the module's top level."
            ) from None
        except ProcessDied as error:
            raise PluginError(
                f"{entry.resolved.path}: importing the reward function ended its process: {error}."
            ) from None
        if "kind" in reply:
            raise PluginError(reply["message"])
        self._facts[index] = reply
        return reply

    def attempt(self, index: int, call: Call, timeout_s: float) -> Attempt:
        """Call function `index` once; never raises for what the function does.

        Args:
            timeout_s: deadline, seconds; later where the plug-in needs more for deadlines of its own.
        """
        try:
            if self.load(index)["keeps_deadlines"]:
                timeout_s = max(timeout_s, self._needed_seconds(index, len(call.completions)))
        except PluginError as error:
            return Attempt(kind="raised", message=str(error), loaded=False)
        start = time.monotonic()
        try:
            reply = self._request("score", index, call, timeout_s=timeout_s)
        except DeadlinePassed as error:
            reply = {"kind": "timeout", "message": str(error)}
        except ProcessDied as error:
            reply = {"kind": "died", "message": str(error)}
        seconds = time.monotonic() - start
        if "kind" not in reply and not _fits(reply, len(call.completions)):
            self.process.kill()
            reply = {"kind": "died", "message": "the process gave a reply that makes no sense and was killed"}
        if "kind" in reply:
            return Attempt(kind=reply["kind"], message=reply["message"], seconds=seconds)
        return Attempt(
            reply["values"],
            [tuple(pair) for pair in reply.get("metrics", [])],
            reply.get("extra", {}),
            reply.get("misfits", []),
            seconds=seconds,
        )

    def traits(self, index: int) -> Traits:
        """What function `index` says of itself."""
        try:
            facts = self.load(index)
        except PluginError as error:
            return Traits(error=str(error))
        return Traits(facts["whole_batch"], None if facts["bounds"] is None else tuple(facts["bounds"]))

    def examples(self, index: int) -> list[dict[str, Any]]:
        """`EXAMPLES` of the plug-in's module; empty where it has none.

        Raises:
            PluginError: they cannot be read.
        """
        return self._read(index, "examples", "EXAMPLES")["examples"]

    def golds(self, index: int, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Gold]:
        """What `GOLD` of the plug-in's module makes of rows.

        Args:
            rows: per row how messages call it, `row 7`, and its columns.

        Raises:
            PluginError: `GOLD` is neither names of columns nor a function of a row.
            DataError: it is a function, and refuses a row, whose reference no completion can equal.
        """
        reply = self._read(index, "golds", "GOLD", [dict(columns) for _, columns in rows])
        if "refused" in reply:
            raise DataError(
                f"{rows[reply['refused']][0]}: reward function {self._entries[index].resolved.path}: "
                f"{reply['reason']}.\nFix: correct or remove the row, or name its answer's column."
            )
        return [Gold(reply["declared"], text) for text in reply["texts"]]

    def _read(self, index: int, operation: str, what: str, *arguments: Any) -> dict[str, Any]:
        """Ask the process about something that the plug-in's module holds."""
        resolved = self._entries[index].resolved
        try:
            reply = self._request(operation, index, resolved, *arguments, timeout_s=self._load_timeout_s)
        except (DeadlinePassed, ProcessDied) as error:
            raise PluginError(f"{resolved.path}: {what} cannot be read: {error}.") from None
        if "kind" in reply:
            raise PluginError(f"{resolved.path}: {what} cannot be read: {reply['message']}.")
        return reply

    def _needed_seconds(self, index: int, count: int) -> float:
        """What the plug-in's own deadlines ask for; one question per number of completions."""
        if (index, count) not in self._needs_s:
            reply = self._read(index, "needs_s", "NEEDS_S", dict(self._entries[index].kwargs), count)
            self._needs_s[index, count] = reply["seconds"]
        return self._needs_s[index, count]

    def _request(self, operation: str, index: int, *arguments: Any, timeout_s: float) -> dict[str, Any]:
        self._due = time.monotonic() + timeout_s
        try:
            return self.process.request(operation, index, *arguments, timeout_s=timeout_s)
        finally:
            self._due = math.inf


def _fits(reply: Mapping[str, Any], count: int) -> bool:
    """A plug-in could have written the reply itself: it must still be what a call is answered with."""
    values, extra = reply.get("values"), reply.get("extra", {})
    return (
        isinstance(values, list)
        and len(values) == count
        and all(value is None or isinstance(value, int | float) for value in values)
        and isinstance(extra, dict)
        and all(isinstance(column, list) and len(column) == count for column in extra.values())
    )
