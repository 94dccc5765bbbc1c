"""The stream of prompts of a run: a function of (seed, update), so that a run resumes without a cursor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial

import numpy as np

from rl4dlm.data.order import EpochOrder
from rl4dlm.data.render import Renderer, TextFormat, open_renderer
from rl4dlm.data.rows import PromptRows, Usable, open_rows
from rl4dlm.data.source import is_data_file
from rl4dlm.data.tasks import EVAL_UID, Task, open_task
from rl4dlm.data.tasks.base import Instance, Split
from rl4dlm.errors import DataError
from rl4dlm.recipe.sections import DataConfig
from rl4dlm.types import Prompt


class PromptSource(ABC):
    """Where a run's prompts come from. It has no state that a checkpoint would have to hold."""

    notes: list[str]
    """What was decided, for the log: columns, templates, dropped rows, where evaluation comes from."""

    num_train: int | None
    """Usable training rows; None for a procedural task, which has no end."""

    renderer: Renderer
    """Makes texts and ids of prompts, and of the answers to them."""

    def __init__(self, renderer: Renderer) -> None:
        self.renderer = renderer
        chat = "the tokenizer's chat template is applied" if renderer.chat else "no chat template is applied"
        self.notes = [f"prompts: {chat}"]

    @abstractmethod
    def batch(self, update: int, n: int) -> list[Prompt]:
        """The `n` distinct prompts of an update (counted from 0); `n` is the same for all updates of a run.

        Raises:
            DataError: there are fewer than `n` training prompts, or a row cannot be used.
        """

    @abstractmethod
    def eval_prompts(self, n: int | None = None) -> list[Prompt]:
        """The first `n` held-out prompts, always the same; None: as many as the recipe's `eval.num_prompts`.

        A dataset gives at most `eval.num_prompts`.
        """


def open_prompts(data: DataConfig, texts: TextFormat, *, seed: int, num_eval: int) -> PromptSource:
    """Open a recipe's data and check that every row can be used.

    Args:
        data: the recipe's section.
        texts: how texts become ids.
        seed: the run's.
        num_eval: `eval.num_prompts`.

    Raises:
        DataError: anything a file, a row or a setting can get wrong, named with its remedy.
    """
    renderer = open_renderer(data, texts)
    if data.task is not None:
        return TaskPrompts(data, open_task(data.task, seed), renderer, num_eval)
    return DatasetPrompts(data, renderer, seed, num_eval)


class TaskPrompts(PromptSource):
    """Prompts of a procedural task: update u draws the training instances u * n to u * n + n - 1."""

    def __init__(self, data: DataConfig, task: Task, renderer: Renderer, num_eval: int) -> None:
        super().__init__(renderer)
        self.num_train = None
        self._task = task
        self._max_length = data.max_prompt_length
        self._num_eval = num_eval
        self.notes.append(f"data.task: {task.name}; train and evaluation share no {task.key_name}")
        self._prompt("train", 0)
        self._prompt("eval", num_eval - 1)

    def batch(self, update: int, n: int) -> list[Prompt]:
        return [self._prompt("train", index) for index in range(update * n, (update + 1) * n)]

    def eval_prompts(self, n: int | None = None) -> list[Prompt]:
        return [self._prompt("eval", index) for index in range(self._num_eval if n is None else n)]

    def _prompt(self, split: Split, index: int) -> Prompt:
        instance: Instance = self._task.instance(split, index)
        where = f"data.task: {self._task.name}, {split} instance {index}"
        text, ids = self.renderer.prompt(instance.prompt, instance.columns, where)
        if len(ids) > self._max_length:
            # An endless stream has no rows to drop, and half a problem is another problem.
            raise DataError(
                f"{where}: the prompt has {len(ids)} tokens, data.max_prompt_length = {self._max_length}.\n"
                f"Fix: raise data.max_prompt_length to {len(ids)} or more."
            )
        return Prompt(instance.uid, instance.prompt, text, ids, instance.columns)


class DatasetPrompts(PromptSource):
    """Prompts of a dataset: every epoch draws each usable training row once, in a seeded order.

    `Prompt.uid` is the row's index in its split; evaluation rows count from `EVAL_UID`. Evaluation takes the
    first usable rows of `data.eval`, or else the last rows of the training split, which training never draws.
    """

    num_train: int

    def __init__(self, data: DataConfig, renderer: Renderer, seed: int, num_eval: int) -> None:
        super().__init__(renderer)
        rows = partial(open_rows, data, renderer=renderer)
        self._train = rows(data.train or "", data.train_split, "data.train")
        self._eval = self._train if data.eval is None else rows(data.eval, eval_split(data), "data.eval")
        self._num_eval = num_eval
        num_train = len(self._train) - (num_eval if data.eval is None else 0)
        if num_train <= 0:
            raise DataError(
                f"{self._train.where} has {len(self._train)} rows, and eval.num_prompts = {num_eval} of them "
                "would be held out for evaluation.\nFix: lower eval.num_prompts, or set data.eval."
            )
        self._train_rows = self._usable(self._train, range(num_train), None, "training")
        first_eval = num_train if data.eval is None else 0
        self._eval_rows = self._usable(self._eval, range(first_eval, len(self._eval)), num_eval, "evaluation")
        self.num_train = len(self._train_rows)
        self._order = EpochOrder(self.num_train, seed=seed, shuffle=data.shuffle)
        self._note_evaluation(data)
        self.notes += renderer.remarks()

    def batch(self, update: int, n: int) -> list[Prompt]:
        if n > self.num_train:
            raise DataError(
                f"{self._train.where}: {self.num_train} usable training prompts, and one update draws "
                f"rollout.prompts_per_update = {n} distinct ones.\nFix: lower rollout.prompts_per_update."
            )
        return self._train.prompts([int(self._train_rows[i]) for i in self._order.rows(update, n)])

    def eval_prompts(self, n: int | None = None) -> list[Prompt]:
        rows = [int(row) for row in self._eval_rows[:n]]
        return self._eval.prompts(rows, EVAL_UID)

    def _usable(self, rows: PromptRows, among: range, limit: int | None, role: str) -> np.ndarray:
        found: Usable = rows.usable(among, limit)
        if rows is not self._train or role == "training":
            self.notes.append(f"{rows.where}: {len(rows)} rows; {rows.columns.sentence}")
        if found.num_overlong:
            action = "dropped" if rows.overlong == "drop" else "cut on the left"
            self.notes.append(
                f"{role}: {found.num_overlong} prompts are longer than data.max_prompt_length = "
                f"{rows.max_length} tokens and were {action} (the longest has {found.longest})"
            )
        return found.rows

    def _note_evaluation(self, data: DataConfig) -> None:
        count = len(self._eval_rows)
        source = "held out from the end of data.train" if data.eval is None else "the first rows of data.eval"
        self.notes.append(f"evaluation: {count} prompts, {source}")
        if count < self._num_eval:
            self.notes.append(f"evaluation: fewer prompts than eval.num_prompts = {self._num_eval}")
        same_split = data.train_split.partition("[")[0] == eval_split(data).partition("[")[0]
        if data.eval == data.train and same_split:
            self.notes.append(
                "evaluation: data.eval and data.train name the same split, so training may see evaluation "
                "rows; remove data.eval to hold rows out"
            )


def eval_split(data: DataConfig) -> str:
    """`data.eval_split`; a single file's one split is `train`, so there the default `test` stands for it."""
    if data.eval is not None and is_data_file(data.eval) and data.eval_split.partition("[")[0] == "test":
        return "train" + data.eval_split.removeprefix("test")
    return data.eval_split
