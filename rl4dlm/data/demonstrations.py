"""A task's demonstrations as token ids: what the warm start of a run imitates."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rl4dlm.data.examples import Example
from rl4dlm.data.tasks import Task
from rl4dlm.data.tasks.base import Split
from rl4dlm.errors import DataError


def demonstrations(
    task: Task,
    encode: Callable[[str], tuple[int, ...]],
    *,
    completion_length: int,
    indices: range,
    render: Callable[[str], str] = str,
    split: Split = "train",
    gold: bool = False,
) -> list[Example]:
    """Prompts and completions of a task's instances.

    Args:
        task: where they come from.
        encode: text -> ids without special tokens, the same as for prompts.
        completion_length: canvas, tokens; an answer may fill it.
        indices: which instances of the split.
        render: prompt -> what the model reads; `PromptSource.render` where prompts pass through a template.
        split: `train` or `eval`.
        gold: the instance's reference answer in place of the demonstrator's.

    Raises:
        DataError: an answer does not fit the canvas.
    """
    examples = []
    for index in indices:
        instance = task.instance(split, index)
        answer = instance.answer if gold else task.demonstration(index, split)[1]
        ids = tuple(encode(answer))
        if len(ids) > completion_length:
            raise DataError(
                f"rollout.max_completion_length = {completion_length} is too short for data.task "
                f"{task.name}: the answer {answer!r} has {len(ids)} tokens.\n"
                f"Fix: raise rollout.max_completion_length to {len(ids)} or more."
            )
        prompt = tuple(encode(render(instance.prompt)))
        examples.append(Example(instance.uid, np.array(prompt, np.int32), np.array(ids, np.int32)))
    return examples
