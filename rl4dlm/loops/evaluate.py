"""Held-out evaluation: greedy accuracy, mean reward, sampled pass@k, with the sampler of the rollouts; in the
loop and on named tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from rl4dlm.benchmarks import Figure, mean_figure, mean_share, pass_figures
from rl4dlm.benchmarks.results import Key
from rl4dlm.data import EVAL_UID
from rl4dlm.decoding import SamplerSpec
from rl4dlm.diffusion.seeds import derive_seed
from rl4dlm.errors import RewardError
from rl4dlm.recipe import AnyRecipe, Recipe
from rl4dlm.reward.judge import (
    NO_VERDICT,
    is_correct,
    score_groups,
    score_texts,
    step_texts,
    trainer_state,
)
from rl4dlm.reward.scores import matters_of
from rl4dlm.rollout import Request, mix_block_lengths
from rl4dlm.rollout.groups import group_rollouts, make_requests
from rl4dlm.rollout.partial import predicted_texts
from rl4dlm.tracking import SampleRow
from rl4dlm.tracking.names import GREEDY_ACCURACY, GREEDY_REWARD, HIGH, LOW
from rl4dlm.types import DenoiserSpec, Prompt, Rollout, RolloutGroup, Scores, flatten
from rl4dlm.workers.placement import Placement, Say, ray_session, reserve
from rl4dlm.workers.reward_worker import RewardWorkers
from rl4dlm.workers.rollout_pool import RolloutPool


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found, and how the completions were decoded."""

    metrics: dict[str, float]
    samples: list[SampleRow]
    decode: dict[str, Any]
    warnings: dict[str, str]
    """What should be said of the rewards, by what makes two warnings one."""


@contextmanager
def rollout_workers(recipe: AnyRecipe, model_path: str, say: Say) -> Iterator[tuple[RolloutPool, Placement]]:
    """Ray, its reservation, and rollout workers that hold the model folder's weights as version 0; all of it
    ends with the block."""
    with ray_session(recipe.cluster, say):
        placement = reserve(recipe.cluster, say)
        rollouts = RolloutPool(recipe, model_path, placement.rollouts, say)
        try:
            rollouts.wait_ready()
            rollouts.accept_loaded(0)
            yield rollouts, placement
        finally:
            rollouts.close()
            placement.remove()


def verify_steps(
    rollouts: RolloutPool,
    rewards: RewardWorkers,
    prompts: Sequence[Prompt],
    recipe: Recipe,
    spec: SamplerSpec,
    block_lengths: Sequence[int] | None = None,
    *,
    model: DenoiserSpec,
    decode: Callable[[Sequence[int]], str],
    version: int,
) -> tuple[list[np.ndarray], Scores]:
    """Decode every prompt once and ask of each step whether the answer that it predicted is correct.

    Args:
        spec: the sampler; predictions are recorded whatever it says.
        block_lengths: draw each decode's from these; None: the sampler's.
        model: whose mask and stop ids the rollouts have.
        decode: token ids -> text.
        version: weights to sample with.

    Returns:
        Per prompt bool `[steps]`, the last entry for the finished answer; and the scores of the texts.

    Raises:
        RewardError: the recipe does not say what is correct.
    """
    path = (recipe.run.seed, "verify_steps")
    requests = mix_block_lengths(make_requests(prompts, 1, *path), block_lengths, *path, "block_length")
    drawn = rollouts.generate(requests, replace(spec, record_predictions=True), version)
    groups = group_rollouts(prompts, drawn)
    decodes = [predicted_texts(rollout, range(rollout.num_steps), model) for rollout in drawn]
    texts = step_texts(groups, decodes, decode, model.stop_ids)
    scores = score_texts(rewards, texts, trainer_state(version, recipe.trainer.max_steps))
    correct = is_correct(scores, recipe.reward)
    if correct is None:
        raise RewardError(NO_VERDICT)
    return [correct[row] for row in texts.index], scores


def evaluate(
    rollouts: RolloutPool,
    rewards: RewardWorkers,
    prompts: Sequence[Prompt],
    recipe: AnyRecipe,
    *,
    version: int,
    update: int,
) -> Evaluation:
    """Greedy accuracy and reward and, with `eval.num_samples` > 1, those of sampled completions and pass@k.

    Accuracies are there where correctness is defined (see `is_correct`). The draws depend on the run's seed
    and the prompt alone, so evaluations of one run differ by the weights only.
    """
    draw = partial(_one_pass, rollouts, rewards, prompts, recipe, version=version, update=update)
    greedy_spec = SamplerSpec.from_config(recipe.rollout, temperature=0.0)
    greedy = draw(greedy_spec, 1)
    result = _figures(
        {
            GREEDY_ACCURACY: None if greedy.correct is None else mean_figure(_floats(greedy.correct)),
            GREEDY_REWARD: mean_figure(greedy.finite_rewards),
        }
    )
    result |= {
        "eval/mean_length": float(np.mean([row.completion_len for row in greedy.rollouts])),
        "eval/nfe_per_sample": float(np.mean([row.num_forwards for row in greedy.rollouts])),
        "eval/num_prompts": float(len(prompts)),
        **{f"eval/{name}": value for name, value in greedy.scores.logged.items()},
    }
    decode, warnings = {"greedy": greedy_spec.describe()}, matters_of(greedy.scores)
    k = recipe.eval.num_samples
    if k > 1:
        spec = SamplerSpec.from_config(recipe.rollout, temperature=recipe.eval.temperature)
        sampled = draw(spec, k)
        result |= _figures(sampled.figures(k))
        decode["sampled"] = {**spec.describe(), "k": k}
        warnings |= matters_of(sampled.scores)
    rows = sample_rows(greedy.groups, greedy.scores, greedy.correct, update)
    return Evaluation(result, rows, decode, warnings)


@dataclass(frozen=True)
class _Pass:
    """Completions of the held-out prompts, drawn with one sampler, and their scores."""

    groups: list[RolloutGroup]
    scores: Scores
    correct: np.ndarray | None

    @property
    def rollouts(self) -> list[Rollout]:
        return flatten(self.groups)

    @property
    def finite_rewards(self) -> list[float]:
        return _floats(self.scores.reward[np.isfinite(self.scores.reward)])

    def figures(self, k: int) -> dict[str, Figure | None]:
        """Of `k` samples per prompt: share of correct ones and of prompts with one, else the mean reward."""
        if self.correct is None:
            means = [_mean_or_none(row) for row in self.scores.reward.reshape(-1, k)]
            return {f"eval/avg_reward@{k}": mean_figure([mean for mean in means if mean is not None])}
        table = self.correct.reshape(-1, k)
        return {
            f"eval/avg@{k}": mean_share(_floats(table.mean(axis=1))),
            f"eval/pass@{k}": mean_share(_floats(table.any(axis=1))),
        }


def _one_pass(
    rollouts: RolloutPool,
    rewards: RewardWorkers,
    prompts: Sequence[Prompt],
    recipe: AnyRecipe,
    spec: SamplerSpec,
    num_samples: int,
    *,
    version: int,
    update: int,
) -> _Pass:
    requests = make_requests(prompts, num_samples, recipe.run.seed, "evaluation")
    groups = group_rollouts(prompts, rollouts.generate(requests, spec, version))
    scores = score_groups(rewards, groups, trainer_state(update, recipe.trainer.max_steps))
    return _Pass(groups, scores, is_correct(scores, recipe.reward))


def _figures(figures: Mapping[str, Figure | None]) -> dict[str, float]:
    """Metrics with the ends of their intervals; a figure of nothing is left out."""
    metrics = {}
    for name, figure in figures.items():
        if figure is None:
            continue
        metrics[name] = figure.value
        if figure.ci95 is not None:
            metrics[name + LOW], metrics[name + HIGH] = figure.ci95
    return metrics


def _floats(values: np.ndarray) -> list[float]:
    return values.astype(float).tolist()


def _mean_or_none(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None


def sample_rows(
    groups: Sequence[RolloutGroup], scores: Scores, correct: np.ndarray | None, update: int
) -> list[SampleRow]:
    """Completions with their rewards, for tables; `correct` None: correctness is not defined."""
    rows = []
    pairs = [(group.prompt, rollout) for group in groups for rollout in group.rollouts]
    for i, (prompt, rollout) in enumerate(pairs):
        rows.append(
            SampleRow(
                update=update,
                prompt=prompt.text,
                completion=rollout.text,
                reward=float(scores.reward[i]),
                rewards={name: float(values[i]) for name, values in scores.components.items()},
                correct=None if correct is None else bool(correct[i]),
                prompt_uid=prompt.uid,
                sample=rollout.sample,
                extra={column: values[i] for column, values in scores.extra.items()},
            )
        )
    return rows


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
    run: TaskRun, rollouts: RolloutPool, rewards: RewardWorkers, done: Mapping[Key, Any], batch: int
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
            yield _sample_and_score(run, mode, missing[start : start + per_batch], rollouts, rewards)


def _sample_and_score(
    run: TaskRun,
    mode: str,
    missing: Sequence[tuple[Prompt, list[int]]],
    rollouts: RolloutPool,
    rewards: RewardWorkers,
) -> list[dict[str, Any]]:
    requests = [
        Request(p.uid, i, derive_seed(run.seed, "task", run.task, mode, p.uid, i), p.token_ids)
        for p, samples in missing
        for i in samples
    ]
    drawn = iter(rollouts.generate(requests, run.specs[mode], 0))
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
