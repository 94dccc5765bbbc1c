"""`rl4dlm score`: saved completions through a reward function, with verdicts per row and a figure with its
interval."""

from __future__ import annotations

from rl4dlm.commands.score.columns import METRICS, Columns
from rl4dlm.commands.score.files import SavedRows
from rl4dlm.commands.score.run import ScoreReport, ScoreRequest, json_line, print_report, score_file

__all__ = [
    "METRICS",
    "Columns",
    "SavedRows",
    "ScoreReport",
    "ScoreRequest",
    "json_line",
    "print_report",
    "score_file",
]
