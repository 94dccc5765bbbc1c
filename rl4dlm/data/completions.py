"""The stream of examples of a fine-tuning run: a function of (seed, step), so that a run resumes without a
cursor."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from rl4dlm.data.demonstrations import demonstrations
from rl4dlm.data.examples import Example
from rl4dlm.data.order import EpochOrder
from rl4dlm.data.pairs import PairColumns, pair_columns
from rl4dlm.data.prompts import PromptSource, eval_split, open_prompts
from rl4dlm.data.render import Renderer, TextFormat, open_renderer
from rl4dlm.data.rows import open_split
from rl4dlm.data.table import Rows
from rl4dlm.data.tasks import EVAL_UID, Task, open_task
from rl4dlm.errors import DataError
from rl4dlm.recipe.bounded import Unreadable, parse_json
from rl4dlm.recipe.supervised import SFTDataConfig
from rl4dlm.types import FORCED, SAMPLED, DenoiserSpec, Prompt


@dataclass(frozen=True)
class Reading:
    """What turns texts into examples besides the columns."""

    texts: TextFormat
    spec: DenoiserSpec
    canvas: int
    """Longest completion, tokens."""
    seed: int
    num_eval: int
    traced: bool = False
    """Examples carry the order in which a sampler filled them."""


class ExampleSource(ABC):
    """Where a fine-tuning run's examples come from. It has no state that a checkpoint would have to hold."""

    notes: list[str]
    """What was decided, for the log."""
    num_train: int | None
    """Usable training examples; None for a procedural task, which has no end."""

    @abstractmethod
    def batch(self, step: int, n: int) -> list[Example]:
        """The `n` distinct examples of a step (counted from 0); `n` is the same for all steps of a run.

        Raises:
            DataError: there are fewer than `n` training examples.
        """

    @abstractmethod
    def held_out(self) -> list[Example]:
        """The held-out examples, always the same: `eval.num_prompts` or as many as there are."""

    @abstractmethod
    def eval_prompts(self) -> list[Prompt]:
        """The prompts of the held-out examples, with the columns that reward functions need.

        Raises:
            DataError: the examples have no prompts.
        """


def open_examples(data: SFTDataConfig, reading: Reading) -> ExampleSource:
    """Open a recipe's data and check that every row can be used.

    Raises:
        DataError: anything a file, a row or a setting can get wrong, named with its remedy.
    """
    if data.task is not None:
        prompts = open_prompts(data, reading.texts, seed=reading.seed, num_eval=reading.num_eval)
        return TaskExamples(data, open_task(data.task, reading.seed), prompts, reading)
    return DatasetExamples(data, reading)


class TaskExamples(ExampleSource):
    """Examples of a procedural task: step u learns the training instances u * n to u * n + n - 1."""

    def __init__(self, data: SFTDataConfig, task: Task, prompts: PromptSource, reading: Reading) -> None:
        self.num_train = None
        self._prompts, self._num_eval = prompts, reading.num_eval
        gold = data.task_answers == "gold"
        self.notes = [*prompts.notes, f"completions: {'reference answers' if gold else 'demonstrations'}"]
        self._make = partial(
            demonstrations,
            task,
            prompts.renderer,
            completion_length=reading.canvas,
            gold=gold,
        )
        self._make(indices=range(1))

    def batch(self, step: int, n: int) -> list[Example]:
        return self._make(indices=range(step * n, (step + 1) * n))

    def held_out(self) -> list[Example]:
        return self._make(indices=range(self._num_eval), split="eval")

    def eval_prompts(self) -> list[Prompt]:
        return self._prompts.eval_prompts(self._num_eval)


class DatasetExamples(ExampleSource):
    """Examples of a dataset: every epoch learns each usable training row once, in a seeded order.

    Evaluation takes the first usable rows of `data.eval`, or else the last rows of the training split; then
    training leaves out every row whose prompt is held out.
    """

    num_train: int

    def __init__(self, data: SFTDataConfig, reading: Reading) -> None:
        self.notes = []
        self._renderer = open_renderer(data, reading.texts)
        self._train = self._open(data, reading, data.train or "", data.train_split, "data.train")
        self._eval = self._train
        if data.eval is not None:
            self._eval = self._open(data, reading, data.eval, eval_split(data), "data.eval")
        every = self._train.usable(range(len(self._train.dataset)), None)
        self._note_left_out("training", self._train, every)
        if data.eval is not None:
            held_out = self._eval.usable(range(len(self._eval.dataset)), reading.num_eval)
            train = every.pieces
        else:
            held_out, train = _hold_out(every, reading.num_eval, self._train.where)
        self._held_out, self._pieces, self.num_train = held_out.pieces, train, len(train)
        self._order = EpochOrder(self.num_train, seed=reading.seed, shuffle=data.shuffle)
        source = "held out from the end of data.train" if data.eval is None else "the first of data.eval"
        self.notes.append(f"{self.num_train} training examples; evaluation: {len(self._held_out)}, {source}")
        self.notes += self._renderer.remarks()

    def _open(self, data: SFTDataConfig, reading: Reading, path: str, split: str, key: str) -> ExampleRows:
        rows = open_example_rows(data, reading, path, split, key, self._renderer)
        self.notes.append(f"{rows.where}: {len(rows.dataset)} rows; {rows.columns.sentence}")
        return rows

    def _note_left_out(self, role: str, rows: ExampleRows, usable: Pieces) -> None:
        if usable.num_poor:
            self.notes.append(f"{role}: {usable.num_poor} rows have a reward below data.min_reward")
        if usable.num_overlong:
            action = {"drop": "dropped", "truncate": "cut"}[rows.data.overlong]
            self.notes.append(
                f"{role}: {usable.num_overlong} rows are longer than data.max_prompt_length = "
                f"{rows.data.max_prompt_length} or rollout.max_completion_length = {rows.reading.canvas} "
                f"tokens and were {action}"
            )

    def batch(self, step: int, n: int) -> list[Example]:
        if n > self.num_train:
            raise DataError(
                f"{self._train.where}: {self.num_train} usable training examples, and one step learns "
                f"sft.batch_size = {n} distinct ones.\nFix: lower sft.batch_size."
            )
        return self._train.examples([self._pieces[i] for i in self._order.rows(step, n)])

    def held_out(self) -> list[Example]:
        # Likelihoods are measured of completions up to their end, whatever order is learned.
        plain = replace(self._eval, reading=replace(self._eval.reading, traced=False))
        return plain.examples(self._held_out)

    def eval_prompts(self) -> list[Prompt]:
        return self._eval.prompts(self._held_out)


Piece = tuple[int, int]
"""A row of the dataset, and which piece of its text."""


@dataclass(frozen=True)
class Pieces:
    """What can be learned from a range of rows."""

    pieces: list[Piece]
    prompts: list[int]
    """Hash of each piece's prompt."""
    num_overlong: int
    num_poor: int
    """Rows below `data.min_reward`."""


def _hold_out(usable: Pieces, num_eval: int, where: str) -> tuple[Pieces, list[Piece]]:
    """The last pieces for evaluation, and the others whose prompts are not among them."""
    first = len(usable.pieces) - num_eval
    kept = Pieces(usable.pieces[max(0, first) :], usable.prompts[max(0, first) :], 0, 0)
    taken = set(kept.prompts) - {hash(())}  # texts have no prompt to share
    train = [
        piece
        for piece, prompt in zip(usable.pieces[: max(0, first)], usable.prompts, strict=False)
        if prompt not in taken
    ]
    if not train:
        raise DataError(
            f"{where} has {len(usable.pieces)} usable examples, and eval.num_prompts = {num_eval} of them "
            "(with all that share a prompt with them) would be held out for evaluation.\n"
            "Fix: lower eval.num_prompts, or set data.eval."
        )
    return kept, train


@dataclass(frozen=True)
class ExampleRows:
    """One split of a dataset, read as examples."""

    dataset: Rows
    columns: PairColumns
    data: SFTDataConfig
    reading: Reading
    renderer: Renderer
    where: str
    """Recipe key and path, for messages."""

    def usable(self, rows: range, limit: int | None) -> Pieces:
        """Read and count the tokens of `rows` in order, until `limit` pieces are usable.

        Raises:
            DataError: a row cannot be used, is too long under `overlong: error`, or nothing is left.
        """
        pieces: list[Piece] = []
        prompts: list[int] = []
        num_overlong = num_poor = 0
        for index, row in self.dataset.scan(rows):
            if not self._is_good(row, index):
                num_poor += 1
                continue
            made = self._pieces(row, index)
            overlong = [self._too_long(example) for example in made]
            num_overlong += any(overlong)
            if any(overlong) and self.data.overlong == "error":
                raise self._length_error(made[overlong.index(True)], index)
            if any(overlong) and self.data.overlong == "drop":
                continue
            for number, example in enumerate(made):
                pieces.append((index, number))
                prompts.append(hash(tuple(example.prompt_ids.tolist()) if example.filled else ()))
            if limit is not None and len(pieces) >= limit:
                break
        if not pieces:
            raise DataError(
                f"{self.where}: no row can be used: {num_overlong} are too long, {num_poor} have too low a "
                "reward.\nFix: raise data.max_prompt_length and rollout.max_completion_length, set "
                "data.overlong: truncate, or lower data.min_reward."
            )
        return Pieces(pieces[:limit], prompts[:limit], num_overlong, num_poor)

    def examples(self, pieces: Sequence[Piece]) -> list[Example]:
        """Pieces as examples; what is too long is cut: prompts on the left, completions on the right."""
        return [self._cut(self._pieces(self.dataset[row], row)[piece]) for row, piece in pieces]

    def prompts(self, pieces: Sequence[Piece]) -> list[Prompt]:
        """The prompts of pieces, for sampling."""
        if self.columns.kind == "texts":
            raise DataError(
                f"{self.where}: texts have no prompts to sample completions for.\nFix: remove reward."
            )
        return [self._prompt(self.dataset[row], row) for row, _ in pieces]

    def _prompt(self, row: Mapping[str, Any], index: int) -> Prompt:
        uid = EVAL_UID + index
        if self.columns.kind == "recorded":
            ids = tuple(int(i) for i in row["prompt_ids"])
            given = self._json_of(row, index, "prompt", "")
            columns = self._json_of(row, index, "prompt_columns", {})
            return Prompt(uid, given, row.get("prompt_text") or "", ids, columns)
        where = f"{self.where}, row {index}"
        given, completion = self.columns.read(row, where, as_text=self.renderer.template is not None)
        text, whole = self.renderer.prompt(given, row, where)
        columns = self.columns.handed_on(row, completion)
        return Prompt(uid, given, text, whole[-self.data.max_prompt_length :], columns)

    def _json_of(self, row: Mapping[str, Any], index: int, name: str, absent: Any) -> Any:
        """What a run has written as JSON into a column of its rollouts."""
        if row.get(name) is None:
            return absent
        try:
            return parse_json(row[name])
        except (Unreadable, TypeError) as error:
            raise DataError(
                f"{self.where}, row {index}: column `{name}`: {error}.\nFix: use rollouts that a run wrote."
            ) from None

    def _is_good(self, row: Mapping[str, Any], index: int) -> bool:
        """Whether a row's reward reaches `data.min_reward`; a reward that failed is none."""
        if self.data.min_reward is None:
            return True
        value = row["reward"]
        if value is not None and not isinstance(value, int | float):
            raise DataError(
                f"{self.where}, row {index}: the reward {value!r} is not a number.\nFix: mend the row."
            )
        return value is not None and not math.isnan(value) and value >= self.data.min_reward

    def _pieces(self, row: Mapping[str, Any], index: int) -> list[Example]:
        if self.columns.kind == "recorded":
            return [self._recorded(row, index)]
        where = f"{self.where}, row {index}"
        if self.columns.kind == "texts":
            return list(self._windows(self.columns.text(row, where), index, where))
        prompt, completion = self.columns.read(row, where, as_text=self.renderer.template is not None)
        asked, written = self.renderer.example(prompt, completion, row, where)
        ids = list(written)
        steps = self._given_steps(row, ids, where) if self.reading.traced else None
        return [Example(index, _ids(asked), _ids(ids), step_map=steps)]

    def _windows(self, text: str, index: int, where: str) -> Iterator[Example]:
        """A text in windows of the canvas; the first token of each is given."""
        ids = [*self._bos(), *self.renderer.encode(text, where)]
        for start in range(0, len(ids) - 1, self.reading.canvas):
            window = ids[start : start + self.reading.canvas + 1]
            ended = start + len(window) == len(ids)
            yield Example(index, _ids(window[:1]), _ids(window[1:]), ended, filled=False)

    def _bos(self) -> list[int]:
        bos = getattr(self.reading.texts.tokenizer, "bos_token_id", None)
        return [] if bos is None else [bos]

    def _recorded(self, row: Mapping[str, Any], index: int) -> Example:
        """A rollout: its completion, or under `trace` the whole canvas with its steps."""
        where = f"{self.where}, row {index}"
        prompt, ids = (self._token_ids(row, name, where) for name in ("prompt_ids", "completion_ids"))
        length = int(row.get("completion_len") or len(ids))
        if not self.reading.traced:
            stopped = length > 0 and int(ids[length - 1]) in self.reading.spec.stop_ids
            return Example(index, prompt, ids[:length], ended=length < len(ids) or stopped)
        steps = _ids(self._steps_of(row, where))
        if len(steps) != len(ids):
            raise _wrong_steps(where, len(steps), f"{len(ids)} tokens of completion_ids")
        if row.get("kind") is not None:
            drawn = np.isin(np.asarray(row["kind"]), (SAMPLED, FORCED))
            steps = np.where(drawn, steps, -1).astype(np.int32)
        return Example(index, prompt, ids, ended=False, step_map=steps)

    def _token_ids(self, row: Mapping[str, Any], name: str, where: str) -> np.ndarray:
        """int32 `[length]`: recorded ids that the model can read."""
        spec = self.reading.spec
        try:
            ids = np.asarray(row[name], dtype=np.int64)
        except (TypeError, ValueError, OverflowError):
            ids = np.full(1, -1)
        if ids.ndim != 1 or (len(ids) and not 0 <= ids.min() <= ids.max() < spec.vocab_size):
            raise DataError(
                f"{where}: `{name}` is no list of token ids from 0 to {spec.vocab_size - 1}.\n"
                "Fix: use rollouts of a model with this tokenizer."
            )
        if np.isin(ids, spec.forbidden_ids).any():
            raise DataError(
                f"{where}: `{name}` holds the mask ({spec.mask_id}) or another id that no text has.\n"
                "Fix: remove the row, or use rollouts of a model with this tokenizer."
            )
        return _ids(ids)

    def _given_steps(self, row: Mapping[str, Any], ids: list[int], where: str) -> np.ndarray:
        """The step map that comes with a text, over its tokens; it may cover end-of-text as well."""
        steps = _ids(self._steps_of(row, where))
        if len(steps) == len(ids) + 1:
            ids.append(self.reading.spec.eos_id)
        if len(steps) != len(ids):
            raise _wrong_steps(where, len(steps), f"the completion's {len(ids)} tokens (or one more)")
        return steps

    def _steps_of(self, row: Mapping[str, Any], where: str) -> Sequence[int]:
        if row.get("step_map") is None:
            raise DataError(
                f"{where}: there is no `step_map`, and sft.objective.type = trace learns its order.\n"
                "Fix: use rollouts written with rollout.record_states: true, or another objective."
            )
        return row["step_map"]

    def _too_long(self, example: Example) -> bool:
        return (
            len(example.prompt_ids) > self.data.max_prompt_length
            or len(example.completion_ids) > self.reading.canvas
        )

    def _length_error(self, example: Example, index: int) -> DataError:
        return DataError(
            f"{self.where}, row {index}: prompt and completion have {len(example.prompt_ids)} and "
            f"{len(example.completion_ids)} tokens, data.max_prompt_length = {self.data.max_prompt_length} "
            f"and rollout.max_completion_length = {self.reading.canvas}.\n"
            "Fix: raise them, or set data.overlong to drop or truncate."
        )

    def _cut(self, example: Example) -> Example:
        if not self._too_long(example):
            return example
        canvas = self.reading.canvas
        steps = example.step_map
        whole = len(example.completion_ids) <= canvas
        return Example(
            example.uid,
            example.prompt_ids[-self.data.max_prompt_length :],
            example.completion_ids[:canvas],
            example.ended and whole,
            example.filled,
            None if steps is None else steps[:canvas],
        )


def open_example_rows(
    data: SFTDataConfig, reading: Reading, path: str, split: str, key: str, renderer: Renderer
) -> ExampleRows:
    """Open one split and decide its columns.

    Raises:
        DataError: the dataset cannot be read, or a column is missing.
    """
    where = f"{key} = {path}"
    dataset = open_split(data, path, split, key, renderer)
    columns = pair_columns(dataset.column_names, data, where)
    for name, wanted, why in (
        ("reward", data.min_reward is not None, "data.min_reward"),
        ("step_map", reading.traced, "sft.objective.type = trace"),
    ):
        if wanted and name not in dataset.column_names:
            raise DataError(
                f"{where}: {why} needs a column `{name}`. Columns there are: "
                f"{', '.join(dataset.column_names)}.\nFix: use a run's rollouts folder, or remove {why}."
            )
    return ExampleRows(dataset, columns, data, reading, renderer, where)


def _ids(values: Any) -> np.ndarray:
    return np.asarray(values, dtype=np.int32)


def _wrong_steps(where: str, found: int, wanted: str) -> DataError:
    return DataError(
        f"{where}: `step_map` has {found} entries for {wanted}.\nFix: use step maps of the same tokenizer."
    )
