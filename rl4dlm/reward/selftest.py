"""Tries a reward function before a run relies on it: `rl4dlm rewards test NAME [--data FILE]`.

Gold answers must score full marks; empty and garbled ones must not; equal calls must agree, alone and in a
batch; hostile text must not hang it, crash it or earn full marks. All of it runs in a killable process.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rl4dlm.errors import PluginError
from rl4dlm.reward.batch import Scorable, call_of
from rl4dlm.reward.calling import Call
from rl4dlm.reward.entries import RewardEntry
from rl4dlm.reward.gold import FULL_MARKS, LAYOUTS, gold_completion
from rl4dlm.reward.loading import resolve
from rl4dlm.reward.runner import Attempt, Runner

MAX_EXAMPLES = 32
MAX_REFERENCES = 4000
"""Rows whose references are read; the first `MAX_EXAMPLES` of them are tried."""
PROMPT_COLUMNS = ("prompt", "question", "problem", "text")
"""Columns in which data sets keep the prompt."""

_SHAPES = {
    "completion_ids": "[...], the token ids up to and including the first stop id",
    "trajectory": '{"completion_ids": [...], "step_map": [...], "num_steps": ...}',
}

HOSTILE: Mapping[str, str] = {
    "empty": "",
    "blank": " \n\t ",
    "a megabyte of digits": "7" * 1_000_000,
    "a megabyte of opening tags": "<answer>" * 125_000,
    "a megabyte of opening boxes": "\\boxed{" * 140_000,
    "a tower of powers": "9**9**9**9",
    "a boxed tower of powers": "<answer>\\boxed{9**9**9**9}</answer>",
    "unclosed parentheses": "(" * 5_000,
    "nested parentheses": "(" * 100_000 + "1" + ")" * 100_000,
    "a chain of signs": "-" * 100_000 + "1",
    "unicode digits": "\u0661\u0662\u0663 \uff11\uff12\uff13 \u00b2\u00bd",
    "nested tags": "<answer><answer></answer><answer></answer></answer>",
    "zero division": "<answer>\\boxed{1/0}</answer> 1/(1-1) \\frac{1}{0}",
    "NUL bytes": "\x00<answer>\x00</answer>\x00",
    "half a surrogate pair": "\ud800 1",
    "unbalanced LaTeX": "$\\boxed{\\frac{1}{\\left( $$ \\end{",
    "an attempt to exit": "__import__('os')._exit(0)",
}
"""Completions that no reward function should be troubled by."""


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    name: str
    passed: bool | None
    """None: could not be tried, `detail` says why."""
    detail: str
    seconds: float | None = None
    """What the call took."""


@dataclass(frozen=True)
class SelfTest:
    """What `selftest` found."""

    path: str
    style: str
    """Signature: `trl` or `verl`."""
    checks: tuple[Check, ...]
    full_marks: float
    """The highest score of a gold answer; 1 where there was none."""
    seconds_per_call: float
    """Mean time of a call with one completion."""

    @property
    def passed(self) -> bool:
        """No check failed."""
        return all(check.passed is not False for check in self.checks)


@dataclass(frozen=True)
class _Example:
    prompt: Any
    completion: str | None
    columns: Mapping[str, Any]
    trajectory: Mapping[str, Any] | None = None
    completion_ids: Sequence[int] | None = None
    declared: bool = False
    """The completion is what `GOLD` says, which earns at least 1 (elsewhere the best gold answer is full)."""


def selftest(
    path: str,
    rows: Sequence[Mapping[str, Any]] | None = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    timeout_s: float = 5.0,
    show_output: bool = False,
) -> SelfTest:
    """Try a reward function.

    Args:
        path: as in a recipe.
        rows: rows of a dataset; the gold answer is their column `completion`, else what `GOLD` of the plug-in
            says, else `answer` in the layout, of the usual ones, that scores best; the prompt is `prompt`,
            else `question`, `problem` or `text`. None: the `EXAMPLES` of the plug-in, a list of {"prompt",
            "completion", "columns"}. The first 32 are tried; the references of all
            are read.
        kwargs: settings, as in a recipe.
        timeout_s: deadline per call, seconds.
        show_output: pass on what the plug-in prints, to stderr.

    Raises:
        PluginError: it cannot be loaded, or there is nothing to try it on.
    """
    resolved = resolve(path)
    runner = Runner([RewardEntry(resolved.name, resolved, dict(kwargs or {}), 1.0)], show_output=show_output)
    try:
        facts = runner.load(0)
        examples = _examples(runner.examples(0) if rows is None else rows, path, runner, timeout_s)
        for name in facts["needs"]:
            if any(getattr(example, name) is None for example in examples):
                raise PluginError(
                    f"{path}: it needs {name}, which an example has not.\nFix: give each of EXAMPLES a "
                    f'"{name}": {_SHAPES[name]}.'
                )
        return _Trial(path, runner, examples, timeout_s).report(facts["style"])
    finally:
        runner.process.stop()


def _examples(
    rows: Sequence[Mapping[str, Any]], path: str, runner: Runner, timeout_s: float
) -> list[_Example]:
    if not rows:
        raise PluginError(
            f"{path}: there is nothing to try it on: its module has no EXAMPLES.\n"
            'Fix: add EXAMPLES = [{"prompt": ..., "completion": ..., "columns": {...}}] or give --data FILE.'
        )
    columns_of = [
        dict(row["columns"]) if isinstance(row.get("columns"), Mapping) else dict(row) for row in rows
    ]
    # Of all rows, also those that are not tried: a reference that cannot be read is told by its row.
    golds = runner.golds(0, [(f"row {index}", columns) for index, columns in enumerate(columns_of)])
    examples = []
    for row, columns, gold in zip(rows[:MAX_EXAMPLES], columns_of, golds, strict=False):
        prompt = next((row[name] for name in PROMPT_COLUMNS if row.get(name) is not None), "")
        record = row.get("trajectory"), row.get("completion_ids")
        example = _Example(prompt, row.get("completion"), columns, *record)
        if "completion" not in row:
            text = gold_completion(gold, columns)
            example = replace(example, completion=text, declared=gold.declared)
            if not gold.declared and text is not None:
                example = _best_layout(example, runner, timeout_s)
        examples.append(example)
    return examples


def _best_layout(example: _Example, runner: Runner, timeout_s: float) -> _Example:
    """The reference answer as a completion, in the first of the usual layouts that earns most."""
    tried = [replace(example, completion=layout.format(example.completion)) for layout in LAYOUTS]
    scores = [_score(runner.attempt(0, _call_of([one]), timeout_s)) for one in tried]
    return max(zip(tried, scores, strict=True), key=lambda pair: -math.inf if pair[1] is None else pair[1])[0]


def _call_of(examples: Sequence[_Example]) -> Call:
    return call_of(
        [
            Scorable(one.prompt, one.completion or "", one.columns, one.completion_ids, one.trajectory)
            for one in examples
        ]
    )


class _Trial:
    """One function on one set of examples."""

    def __init__(self, path: str, runner: Runner, examples: Sequence[_Example], timeout_s: float) -> None:
        self.path, self.runner, self.timeout_s = path, runner, timeout_s
        self.examples = examples
        self.gold = [example for example in examples if example.completion is not None]

    def report(self, style: str) -> SelfTest:
        attempts = [self.call([example]) for example in self.gold]
        scores = [_score(attempt) for attempt in attempts]
        full = max((score for score in scores if score is not None), default=1.0)
        timed = attempts or [self.call([replace(self.examples[0], completion="")])]
        checks = (
            self.gold_scores_full(attempts, full),
            self.equal_calls_agree(attempts),
            self.garbled_does_not(full),
            *self.hostile_text(full),
        )
        seconds = sum(attempt.seconds for attempt in timed) / len(timed)
        return SelfTest(self.path, style, checks, full, seconds)

    def gold_scores_full(self, attempts: Sequence[Attempt], full: float) -> Check:
        name = "gold answers score full marks"
        if not attempts:
            return Check(name, None, "the rows have no gold answer")
        wrong = [
            f"{example.completion!r:.60} got {_shown(attempt)}"
            for example, attempt in zip(self.gold, attempts, strict=True)
            if not _is_full(example, attempt, full)
        ]
        if full <= 0:
            wrong = [f"the best of them got {full:g}"]
        detail = "; ".join(wrong[:3]) or f"{len(attempts)} of {len(attempts)} got {full:g}"
        return Check(name, not wrong, detail)

    def equal_calls_agree(self, attempts: Sequence[Attempt]) -> Check:
        name = "equal calls agree, alone and in a batch"
        if not attempts:
            return Check(name, None, "there are no gold answers")
        alone = [_score(attempt) for attempt in attempts]
        again = [_score(self.call([example])) for example in self.gold]
        batch = self.call(self.gold, self.timeout_s * len(self.gold))
        together = list(batch.values) if batch.kind is None else [math.nan] * len(alone)
        same, also = _agree(alone, again), _agree(alone, together)
        detail = "" if same else "a second call differs; "
        detail += "" if also else f"a batch of {len(alone)} differs: {_shown(batch)}"
        return Check(name, same and also, detail or f"{len(alone)} of {len(alone)}")

    def garbled_does_not(self, full: float) -> Check:
        """Neither empty text, nor both of: its own characters shuffled, the gold answer of another row.

        Either of the last two alone may deserve full marks: 2+3 shuffled is 3+2, and any well-formed text
        has the right format.
        """
        name = "empty and garbled answers do not"
        empty = self.share_full([replace(example, completion="") for example in self.examples], full)
        shuffled = self.share_full([_shuffled(example) for example in self.gold], full)
        following = [*self.gold[1:], *self.gold[:1]]
        swapped = self.share_full(
            [replace(a, completion=b.completion) for a, b in zip(self.gold, following, strict=True)], full
        )
        told_apart = min(shuffled, swapped) < 0.5 or not self.gold
        detail = f"full marks for empty {empty:.0%}, shuffled {shuffled:.0%}, of another row {swapped:.0%}"
        return Check(name, empty == 0 and told_apart, detail)

    def hostile_text(self, full: float) -> list[Check]:
        checks = []
        for index, (label, text) in enumerate(HOSTILE.items()):
            example = replace(self.examples[index % len(self.examples)], completion=text)
            attempt = self.call([example])
            score = _score(attempt)
            fine = attempt.kind is None and (score is None or score < full)
            checks.append(Check(f"hostile text: {label}", fine, _shown(attempt), attempt.seconds))
        return checks

    def share_full(self, examples: Sequence[_Example], full: float) -> float:
        """Share of examples with full marks; a call that fails earns none."""
        scores = [_score(self.call([example])) for example in examples]
        return sum(score is not None and score >= full for score in scores) / max(1, len(scores))

    def call(self, examples: Sequence[_Example], timeout_s: float | None = None) -> Attempt:
        attempt = self.runner.attempt(0, _call_of(examples), timeout_s or self.timeout_s)
        if any(value is not None and not math.isfinite(value) for value in attempt.values):
            return replace(attempt, kind="not_finite", message=f"returned {attempt.values[0]}")
        return attempt


def _is_full(example: _Example, attempt: Attempt, full: float) -> bool:
    """A gold answer earned full marks, or None where the row is another task's."""
    if attempt.kind is not None:
        return False
    score = _score(attempt)
    return score is None or (score == full and (score >= FULL_MARKS or not example.declared))


def _shuffled(example: _Example) -> _Example:
    """The gold answer with its characters in another order, the same one every time."""
    characters = list(example.completion or "")
    random.Random(0).shuffle(characters)
    return replace(example, completion="".join(characters))


def _agree(some: Sequence[float | None], others: Sequence[float | None]) -> bool:
    """Equal up to what a network's rounding makes of another batch size."""
    return all(
        a == b or (a is not None and b is not None and math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-6))
        for a, b in zip(some, others, strict=True)
    )


def _score(attempt: Attempt) -> float | None:
    return attempt.values[0] if attempt.kind is None and attempt.values else None


def _shown(attempt: Attempt) -> str:
    if attempt.kind is not None:
        return f"{attempt.kind}: {attempt.message}"
    return ", ".join("None" if value is None else f"{value:g}" for value in attempt.values[:4])
