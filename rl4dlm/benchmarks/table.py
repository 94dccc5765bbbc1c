r"""The named tasks: instruction, question, reward, splits and decode settings of the published protocol.

Protocol: d1 (arXiv:2504.12216) for gsm8k, math500, countdown and sudoku: one
user message of instruction, blank line and question, the answer begun with `<reasoning>`, greedy decoding of
256 tokens in blocks of 32 with two tokens per step, also at 128 and 512. The instructions ask for the same
layout in words of our own: a score belongs to a prompt, and compares with a published one only roughly.
d1 evaluates no code; humaneval and mbpp have the same decode settings and no opening tag.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Row = Mapping[str, Any]
Metric = Literal["accuracy", "mean"]

LENGTHS = (128, 256, 512)
"""Completion lengths of the protocol, tokens."""
BLOCK_LENGTH = 32
TOKENS_PER_STEP = 2
SAMPLING_TEMPERATURE = 1.0
"""Of avg@k and pass@k, which the protocol does not have."""


def decode_settings(length: int) -> dict[str, int | float | str]:
    """The protocol's `rollout` section at a completion length (tokens); sampling is greedy.

    Filling up after a finished block with end of text (`block_eos`) saves steps and changes no text before
    the first end of text: later blocks never change earlier ones.
    """
    return {
        "max_completion_length": length,
        "block_length": BLOCK_LENGTH,
        "diffusion_steps": length // TOKENS_PER_STEP,
        "remasking": "low_confidence",
        "confidence_from": "raw",
        "eos_policy": "block_eos",
    }


@dataclass(frozen=True)
class Source:
    """Where the rows of one split lie."""

    files: tuple[str, ...]
    """Names in a data folder, the first that exists."""
    hub: str | None = None
    """Dataset on the hub; None: it is on none that has this split."""
    subset: str | None = None
    hub_split: str = "test"
    wanted: Callable[[Row], bool] | None = None
    """Which rows belong to the split; None: all."""


@dataclass(frozen=True)
class Benchmark:
    """One named task."""

    name: str
    summary: str
    instruction: str
    """What the user message begins with."""
    question: Callable[[Row], str]
    """What follows it; also what rewards receive as the prompt. ValueError says why a row has none."""
    needs: tuple[tuple[str, ...], ...]
    """Column names of the rows: one of these sets, whole."""
    reward: str
    """Built-in reward function."""
    metric: Metric
    """What is published: the share of full marks, or the mean reward."""
    sources: Mapping[str, Source]
    """By split."""
    answer: str | None = None
    """Column that rewards get as `answer` too."""
    prefill: str = "<reasoning>"
    """What the model's turn begins with; not part of the completion."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Column -> name under which rewards get it too."""

    def columns(self, row: Row) -> dict[str, Any]:
        """What the reward function receives besides prompt and completion."""
        columns = dict(row)
        for column, name in self.aliases.items():
            if column in row:
                columns[name] = row[column]
        if self.answer is not None:
            columns["answer"] = row[self.answer]
        return columns


def _numbers(row: Row) -> list[int]:
    given = row["input"] if "input" in row else row["nums"] if "nums" in row else row["numbers"]
    return [int(part) for part in (given.split(",") if isinstance(given, str) else given)]


def _countdown(row: Row) -> str:
    target = int(row["output"] if "output" in row else row["target"])
    return f"Numbers: {_numbers(row)}\nTarget: {target}"


def _sudoku(row: Row) -> str:
    puzzle = str(row["Puzzle"] if "Puzzle" in row else row["puzzle"]).strip()
    if not re.fullmatch(r"[0-4]{16}", puzzle):
        raise ValueError(f"the puzzle {puzzle!r} is not 16 digits from 0 to 4")
    return f"Sudoku: {puzzle}"


def _mbpp(row: Row) -> str:
    text = row["text"] if "text" in row else row["prompt"]
    tests = "\n".join(str(test) for test in row["test_list"])
    return f"{text}\nThe code must pass these tests:\n{tests}"


def _task_ids(first: int, last: int) -> Callable[[Row], bool]:
    """Rows whose `task_id` lies in a range, as MBPP's paper (arXiv:2108.07732) splits them."""
    return lambda row: first <= int(row["task_id"]) <= last


_LAYOUT = (
    "Write your working between <reasoning> and </reasoning>, then the result between <answer> and "
    "</answer>, inside \\boxed{}."
)
_MATHS = "Work out the answer to the question below, one step after another.\n" + _LAYOUT
_COUNTDOWN = (
    "Combine the given numbers with +, -, * and / into an expression whose value is the target. Every number "
    "occurs in it once, and no other number does. Give the expression alone, without an equals sign.\n"
    + _LAYOUT
)
_SUDOKU = (
    "Below is a 4x4 Sudoku as 16 digits, row after row, where 0 is an empty cell. Fill every 0 with a digit "
    "from 1 to 4 such that no row, no column and no 2x2 box holds a digit twice. The result is the 16 digits "
    "of the full grid.\n" + _LAYOUT
)
_HUMANEVAL = (
    "Complete the Python function below. Answer with the whole function, imports included, in one fenced "
    "```python block."
)
_MBPP = (
    "Write Python code for the task below. Answer with the code alone, imports included, in one fenced "
    "```python block."
)

_TABLE = (
    Benchmark(
        name="gsm8k",
        summary="grade-school word problems; the final number must be right",
        instruction=_MATHS,
        question=lambda row: str(row["question"]),
        needs=(("question", "answer"),),
        answer="answer",
        reward="gsm8k",
        metric="accuracy",
        sources={
            "test": Source(("gsm8k_test.jsonl",), "openai/gsm8k", "main"),
            "train": Source(("gsm8k_train.jsonl",), "openai/gsm8k", "main", "train"),
        },
    ),
    Benchmark(
        name="math500",
        summary="500 problems of the MATH test set; the answer must mean the same",
        instruction=_MATHS,
        question=lambda row: str(row["problem"]),
        needs=(("problem", "answer"),),
        answer="answer",
        reward="math",
        metric="accuracy",
        sources={"test": Source(("math500.jsonl",), "HuggingFaceH4/MATH-500")},
    ),
    Benchmark(
        name="countdown",
        summary="reach a target with three numbers, each used once",
        instruction=_COUNTDOWN,
        question=_countdown,
        needs=(("input", "output"), ("nums", "target"), ("numbers", "target")),
        aliases={"nums": "numbers"},
        reward="countdown",
        metric="accuracy",
        sources={
            "test": Source(("countdown_cd3_test.jsonl",)),
            "train": Source(
                ("countdown_cd3_train.jsonl",),
                "Jiayi-Pan/Countdown-Tasks-3to4",
                hub_split="train",
                wanted=lambda row: len(_numbers(row)) == 3,
            ),
        },
    ),
    Benchmark(
        name="sudoku",
        summary="4x4 grids; the share of empty cells filled right",
        instruction=_SUDOKU,
        question=_sudoku,
        needs=(("Puzzle", "Solution"), ("puzzle", "solution")),
        reward="sudoku",
        metric="mean",
        sources={
            "test": Source(("sudoku_4x4_test.csv", "4x4_test_sudoku.csv")),
            "train": Source(("4x4_sudoku_unique_puzzles.csv",)),
        },
    ),
    Benchmark(
        name="humaneval",
        summary="164 Python functions; all unit tests must pass",
        instruction=_HUMANEVAL,
        question=lambda row: str(row["prompt"]),
        needs=(("prompt", "test", "entry_point"),),
        aliases={"prompt": "code_prompt"},
        reward="code",
        metric="accuracy",
        prefill="",
        sources={"test": Source(("humaneval.jsonl", "HumanEval.jsonl"), "openai/openai_humaneval")},
    ),
    Benchmark(
        name="mbpp",
        summary="basic Python problems; all asserts must hold",
        instruction=_MBPP,
        question=_mbpp,
        needs=(("text", "test_list"), ("prompt", "test_list")),
        reward="code",
        metric="accuracy",
        prefill="",
        sources={
            "test": Source(
                ("mbpp.jsonl",), "google-research-datasets/mbpp", "full", wanted=_task_ids(11, 510)
            ),
            "train": Source(
                ("mbpp.jsonl",), "google-research-datasets/mbpp", "full", "train", _task_ids(601, 974)
            ),
        },
    ),
)

BENCHMARKS: Mapping[str, Benchmark] = {benchmark.name: benchmark for benchmark in _TABLE}
