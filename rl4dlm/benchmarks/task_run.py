"""Sampling a named task: its completions, in batches that can be taken up again, and its figures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rl4dlm.benchmarks.results import Key
from rl4dlm.benchmarks.statistics import mean_figure, pass_figures
from rl4dlm.data import EVAL_UID
from rl4dlm.decoding import SamplerSpec
from rl4dlm.diffusion.seeds import derive_seed
from rl4dlm.reward.rollout_scores import Scorer, score_groups, trainer_state
from rl4dlm.rollout import Generate, Request
from rl4dlm.types import Prompt, RolloutGroup

GREEDY, SAMPLED = "greedy", "sampled"
FULL_MARKS = 1.0 - 1e-6


@dataclass(frozen=True)
class TaskRun:
    """A named task, ready to be sampled."""

    task: str
    metric: str
    """`accuracy` or `mean`: which greedy figure is published."""
    prompts: tuple[Prompt, ...]
    specs: Mapping[str, SamplerSpec]
    """By mode: `GREEDY` and `SAMPLED`."""
    num_samples: int
    """Sampled completions per prompt; 1: greedy only."""
    seed: int

    def modes(self) -> dict[str, int]:
        """Completions per prompt and mode."""
        return {GREEDY: 1} | ({SAMPLED: self.num_samples} if self.num_samples > 1 else {})

    def num_missing(self, rows: Mapping[Key, Any]) -> int:
        """Completions that are not among `rows` yet."""
        return sum(key not in rows for key in self.keys())

    def keys(self) -> Iterator[Key]:
        """Every completion of the task."""
        for mode, count in self.modes().items():
            for prompt in self.prompts:
                yield from (Key(mode, _row_of(prompt), sample) for sample in range(count))


def run_task(
    run: TaskRun, generate: Generate, rewards: Scorer, done: Mapping[Key, Any], batch: int
) -> Iterator[list[dict[str, Any]]]:
    """Sample and score what is missing, about `batch` completions at a time.

    A completion is a function of (seed, task's row, sample) and the weights: what was done before, the limit
    and the number of samples do not change it.

    Args:
        done: completions that are there already.
        batch: completions asked for at once, whole prompts.

    Yields:
        Rows as `TaskFolder.add` takes them.
    """
    for mode, count in run.modes().items():
        per_batch = max(1, batch // count)
        missing = [
            (prompt, samples)
            for prompt in run.prompts
            if (samples := [i for i in range(count) if Key(mode, _row_of(prompt), i) not in done])
        ]
        for start in range(0, len(missing), per_batch):
            yield _sample_and_score(run, mode, missing[start : start + per_batch], generate, rewards)


def _sample_and_score(
    run: TaskRun,
    mode: str,
    missing: Sequence[tuple[Prompt, list[int]]],
    generate: Generate,
    rewards: Scorer,
) -> list[dict[str, Any]]:
    requests = [
        Request(p.uid, i, derive_seed(run.seed, "task", run.task, mode, p.uid, i), p.token_ids)
        for p, samples in missing
        for i in samples
    ]
    drawn = iter(generate(requests, run.specs[mode], 0))
    groups = [RolloutGroup(prompt, tuple(next(drawn) for _ in samples)) for prompt, samples in missing]
    scores = score_groups(rewards, groups, trainer_state(0, 0))
    pairs = [(group.prompt, rollout) for group in groups for rollout in group.rollouts]
    return [
        {
            "mode": mode,
            "row": _row_of(prompt),
            "sample": rollout.sample,
            # float32 holds no more digits; None: the function failed, or said that it does not apply.
            "reward": None if math.isnan(scores.reward[i]) else float(f"{scores.reward[i]:.7g}"),
            "failed": bool(scores.failed[i]),
            "tokens": rollout.completion_len,
            "completion": rollout.text,
        }
        for i, (prompt, rollout) in enumerate(pairs)
    ]


def task_result(run: TaskRun, rows: Mapping[Key, Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of a task whose completions are all there.

    A reward that failed or did not apply counts as wrong, and is counted in `num_failed`.

    Returns:
        `task`, `metric`, `figures` by name (value, ci95, n), `num_failed`, `mean_tokens`.
    """
    wanted = [rows[key] for key in run.keys()]
    greedy = [row for row in wanted if row["mode"] == GREEDY]
    known = [row["reward"] for row in greedy if row["reward"] is not None]
    figures = {"pass@1 greedy": mean_figure([float(_is_right(row)) for row in greedy])}
    figures["mean reward greedy"] = mean_figure(known)
    if run.num_samples > 1:
        by_prompt: dict[int, list[bool]] = {}
        for row in wanted:
            if row["mode"] == SAMPLED:
                by_prompt.setdefault(row["row"], []).append(_is_right(row))
        figures |= pass_figures(list(by_prompt.values()))
    return {
        "task": run.task,
        "metric": "pass@1 greedy" if run.metric == "accuracy" else "mean reward greedy",
        "figures": {name: figure.as_json() for name, figure in figures.items() if figure is not None},
        "num_failed": sum(row["failed"] for row in wanted),
        "mean_tokens": float(np.mean([row["tokens"] for row in greedy])),
    }


def _row_of(prompt: Prompt) -> int:
    """Index of the prompt's row in its file."""
    return prompt.uid - EVAL_UID


def _is_right(row: Mapping[str, Any]) -> bool:
    return row["reward"] is not None and row["reward"] >= FULL_MARKS
