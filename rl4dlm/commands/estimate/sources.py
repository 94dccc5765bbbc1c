"""Where completions come from: rollouts of a run, saved texts, or what a recipe's data demonstrates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rl4dlm.commands.score import SavedRows
from rl4dlm.data import Example, Renderer, demonstrations, open_prompts, open_renderer, open_task
from rl4dlm.data.messages import as_answer, as_prompt
from rl4dlm.errors import DataError
from rl4dlm.likelihood.lab import Completions
from rl4dlm.models import LoadedModel
from rl4dlm.recipe import Recipe
from rl4dlm.recipe.sections import DataConfig, ModelConfig
from rl4dlm.run.preflight import text_format
from rl4dlm.types import EOS_FILLER, DenoiserSpec, Prompt

SCOPES = ("until_eos", "canvas")
FILES = (".jsonl", ".parquet")


@dataclass(frozen=True)
class EstimateSample:
    """One completion as ids."""

    prompt_ids: np.ndarray
    """int `[prompt]`."""
    completion_ids: np.ndarray
    """int `[completion]`."""
    action: np.ndarray
    """bool `[completion]`: whose likelihood is estimated."""
    where: str
    """For messages."""


def names_a_file(source: Sequence[str]) -> bool:
    """Whether completions are named by a file, not by a recipe."""
    return len(source) == 1 and Path(source[0]).suffix.lower() in FILES


def read_file(path: Path, model: LoadedModel, scope: str, limit: int) -> list[EstimateSample]:
    """Completions of a file, spread evenly over its rows.

    A row has `prompt_ids` and `completion_ids` (rollouts of a run), or the texts `prompt` and `completion`.

    Args:
        scope: of rollouts: `until_eos` or `canvas`, without fillers in both.
        limit: completions at most.

    Raises:
        DataError: the file or a row cannot be used.
    """
    rows = list(SavedRows(path))
    picked = [index * len(rows) // min(limit, len(rows)) for index in range(min(limit, len(rows)))]
    texts = text_format(ModelConfig(path="--model"), model.tokenizer, model.spec)
    renderer = open_renderer(DataConfig(train=str(path)), texts)
    samples = []
    for index in picked:
        row, where = rows[index], f"{path}, row {index}"
        if {"prompt_ids", "completion_ids"} <= row.keys():
            samples.append(_from_ids(row, scope, model.spec, where))
        elif isinstance(row.get("prompt"), str | list) and isinstance(row.get("completion"), str | list):
            asked = as_prompt(row["prompt"], as_text=False, where=where)
            answer = as_answer(row["completion"], "completion", where)
            samples.append(_from_texts(*renderer.example(asked, answer, row, where), model.spec, where))
        else:
            raise DataError(
                f"{where}: neither `prompt_ids` with `completion_ids` nor the texts `prompt` with "
                "`completion`.\nFix: give rollouts of a run, or JSON lines with both texts."
            )
    return samples


def _from_ids(row: Mapping[str, Any], scope: str, spec: DenoiserSpec, where: str) -> EstimateSample:
    prompt, completion = (_ids(row, name, spec, where) for name in ("prompt_ids", "completion_ids"))
    action: np.ndarray = np.ones(len(completion), dtype=bool)
    if row.get("kind") is not None:
        action &= np.array(row["kind"]) != EOS_FILLER
    if scope == "until_eos" and row.get("completion_len") is not None:
        action &= np.arange(len(completion)) < row["completion_len"]
    return EstimateSample(prompt, completion, action, where)


def _ids(row: Mapping[str, Any], name: str, spec: DenoiserSpec, where: str) -> np.ndarray:
    try:
        ids = np.array(row[name], dtype=np.int64)
    except (TypeError, ValueError):
        ids = np.zeros(0, dtype=np.int64)
    if ids.ndim != 1 or not len(ids):
        raise DataError(f"{where}: `{name}` is no list of token ids.\nFix: give rollouts of a run.")
    if ids.min() < 0 or ids.max() >= spec.vocab_size or np.isin(ids, spec.forbidden_ids).any():
        raise DataError(
            f"{where}: `{name}` holds ids that this model cannot write (it has {spec.vocab_size} rows, mask "
            f"{spec.mask_id}).\nFix: give a model with the tokenizer that the rollouts were drawn with."
        )
    return ids


def _from_texts(
    prompt_ids: Sequence[int], ids: Sequence[int], spec: DenoiserSpec, where: str
) -> EstimateSample:
    """An answer's ids and one end-of-text."""
    if not prompt_ids:
        raise DataError(f"{where}: the prompt is empty.\nFix: fill or remove the row.")
    canvas = np.array([*ids, spec.eos_id], dtype=np.int64)
    return EstimateSample(
        np.array(prompt_ids, dtype=np.int64), canvas, np.ones(len(canvas), dtype=bool), where
    )


def read_recipe(recipe: Recipe, model: LoadedModel, scope: str, limit: int) -> list[EstimateSample]:
    """What a recipe's data demonstrates: a task's demonstrations, or a dataset's prompts and answers.

    Args:
        scope: `until_eos`: the answer and one end-of-text; `canvas`: all of `rollout.max_completion_length`
            (a task's canvas is filled with end-of-text).
        limit: completions at most.

    Raises:
        DataError: the data cannot be used.
    """
    texts = text_format(recipe.model, model.tokenizer, model.spec)
    prompts = open_prompts(recipe.data, texts, seed=recipe.run.seed, num_eval=recipe.eval.num_prompts)
    if recipe.data.task is None:
        rows = prompts.eval_prompts(limit)
        return [_answered(prompt, prompts.renderer, recipe.data, model.spec) for prompt in rows]
    examples = demonstrations(
        open_task(recipe.data.task, recipe.run.seed),
        prompts.renderer,
        completion_length=recipe.rollout.max_completion_length,
        indices=range(limit),
    )
    return [
        _demonstrated(example, recipe.rollout.max_completion_length, scope, model.spec)
        for example in examples
    ]


def _demonstrated(example: Example, length: int, scope: str, spec: DenoiserSpec) -> EstimateSample:
    """A demonstration on its canvas, end-of-text after the answer."""
    canvas: np.ndarray = np.full(length, spec.eos_id, dtype=np.int64)
    canvas[: len(example.completion_ids)] = example.completion_ids
    prompt = example.prompt_ids.astype(np.int64)
    return EstimateSample(prompt, canvas, _scoped(canvas, scope, spec), f"demonstration {example.uid}")


def _answered(prompt: Prompt, renderer: Renderer, data: DataConfig, spec: DenoiserSpec) -> EstimateSample:
    where, answer = f"data, prompt {prompt.uid}", prompt.columns.get("answer")
    if not isinstance(answer, str) or not answer:
        raise DataError(
            f"{where}: the recipe's data has no answer text to estimate.\n"
            "Fix: give a run's rollouts, or JSON lines with prompt and completion."
        )
    message = {"role": "assistant", "content": answer}
    asked, ids = renderer.example(prompt.prompt, message, prompt.columns, where)
    return _from_texts(asked[-data.max_prompt_length :], ids, spec, where)


def _scoped(canvas: np.ndarray, scope: str, spec: DenoiserSpec) -> np.ndarray:
    """bool `[completion]`: up to and including the first end-of-text, or everything."""
    if scope == "canvas":
        return np.ones(len(canvas), dtype=bool)
    ended = np.cumsum(canvas == spec.eos_id)
    return (ended == 0) | ((ended == 1) & (canvas == spec.eos_id))


def assemble(samples: Sequence[EstimateSample], spec: DenoiserSpec, block_length: int | None) -> Completions:
    """Samples in one rectangle, shorter ones filled with end-of-text that is visible and not estimated.

    Args:
        block_length: of the block-wise estimate; None: half of the longest completion, 32 at most.

    Raises:
        DataError: a completion has nothing to estimate, or exceeds the model's positions.
    """
    length = max(len(sample.completion_ids) for sample in samples)
    ids: np.ndarray = np.full((len(samples), length), spec.eos_id, dtype=np.int64)
    action = np.zeros(ids.shape, dtype=bool)
    for row, sample in enumerate(samples):
        _check(sample, length, spec)
        ids[row, : len(sample.completion_ids)] = sample.completion_ids
        action[row, : len(sample.action)] = sample.action
    chosen = block_length or min(32, -(-int(action.sum(1).max()) // 2))
    return Completions.of([sample.prompt_ids for sample in samples], ids, action, spec, chosen)


def _check(sample: EstimateSample, length: int, spec: DenoiserSpec) -> None:
    if not sample.action.any():
        raise DataError(f"{sample.where}: nothing to estimate in it.\nFix: remove the row.")
    total = len(sample.prompt_ids) + length
    if total > spec.max_length:
        raise DataError(
            f"{sample.where}: a prompt of {len(sample.prompt_ids)} tokens and a canvas of {length} exceed "
            f"the model's {spec.max_length} positions.\nFix: give shorter completions, or another model."
        )
