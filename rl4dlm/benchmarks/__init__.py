"""Named tasks of the published protocol: what is asked, how it is decoded and scored, what figures result."""

from __future__ import annotations

from rl4dlm.benchmarks.prompts import Place, TaskChoice, choose_tasks, find_rows, task_prompts
from rl4dlm.benchmarks.statistics import (
    Figure,
    RunningMean,
    mean_figure,
    mean_share,
    pass_at_k,
    pass_figures,
    wilson_interval,
)
from rl4dlm.benchmarks.table import BENCHMARKS, LENGTHS, Benchmark, Source, decode_settings

__all__ = [
    "BENCHMARKS",
    "LENGTHS",
    "Benchmark",
    "Figure",
    "Place",
    "RunningMean",
    "Source",
    "TaskChoice",
    "choose_tasks",
    "decode_settings",
    "find_rows",
    "mean_figure",
    "mean_share",
    "pass_at_k",
    "pass_figures",
    "task_prompts",
    "wilson_interval",
]
