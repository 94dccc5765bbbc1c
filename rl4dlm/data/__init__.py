"""Dataset rows and procedural tasks -> the stream of prompts: seeded, resumable, chat template applied."""

from __future__ import annotations

from rl4dlm.data.columns import CONVENTIONS, ColumnMap, map_columns
from rl4dlm.data.completions import ExampleSource, Reading, open_examples
from rl4dlm.data.demonstrations import demonstrations
from rl4dlm.data.examples import Example
from rl4dlm.data.kept import KeptPrompts, training_prompt
from rl4dlm.data.preferences import preference_pairs
from rl4dlm.data.prompts import PromptSource, open_prompts
from rl4dlm.data.render import Renderer, TextFormat, open_renderer
from rl4dlm.data.source import read_rows
from rl4dlm.data.tasks import EVAL_UID, Instance, Task, open_task, split_of
from rl4dlm.data.texts import training_texts

__all__ = [
    "CONVENTIONS",
    "EVAL_UID",
    "ColumnMap",
    "Example",
    "ExampleSource",
    "Instance",
    "KeptPrompts",
    "PromptSource",
    "Reading",
    "Renderer",
    "Task",
    "TextFormat",
    "demonstrations",
    "map_columns",
    "open_examples",
    "open_prompts",
    "open_renderer",
    "open_task",
    "preference_pairs",
    "read_rows",
    "split_of",
    "training_prompt",
    "training_texts",
]
