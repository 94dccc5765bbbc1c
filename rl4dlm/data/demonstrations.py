"""A task's demonstrations as token ids: what the warm start of a run imitates."""

from __future__ import annotations

import numpy as np

from rl4dlm.data.examples import Example
from rl4dlm.data.render import Renderer
from rl4dlm.data.tasks import Task
from rl4dlm.data.tasks.base import Split
from rl4dlm.errors import DataError


def demonstrations(
    task: Task,
    renderer: Renderer,
    *,
    completion_length: int,
    indices: range,
    split: Split = "train",
    gold: bool = False,
) -> list[Example]:
    """Prompts and completions of a task's instances.

    Args:
        task: where they come from.
        renderer: that of the prompts; a chat template closes answers as it does for rows of a dataset.
        completion_length: canvas, tokens; an answer may fill it.
        indices: which instances of the split.
        split: `train` or `eval`.
        gold: the instance's reference answer in place of the demonstrator's.

    Raises:
        DataError: an answer does not fit the canvas.
    """
    examples = []
    for index in indices:
        instance = task.instance(split, index)
        answer = instance.answer if gold else task.demonstration(index, split)[1]
        where = f"data.task: {task.name}, {split} instance {index}"
        message = {"role": "assistant", "content": answer}
        prompt, ids = renderer.example(instance.prompt, message, instance.columns, where)
        if len(ids) > completion_length:
            raise DataError(
                f"rollout.max_completion_length = {completion_length} is too short for data.task "
                f"{task.name}: the answer {answer!r} has {len(ids)} tokens.\n"
                f"Fix: raise rollout.max_completion_length to {len(ids)} or more."
            )
        examples.append(Example(instance.uid, np.array(prompt, np.int32), np.array(ids, np.int32)))
    return examples
