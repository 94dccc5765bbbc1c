"""`rl4dlm score`: saved completions through a reward function, with verdicts per row and a figure with its
interval."""

from __future__ import annotations

from rl4dlm.commands.score.columns import METRICS, Columns
from rl4dlm.commands.score.files import SavedRows
from rl4dlm.commands.score.run import ScoreReport, ScoreRequest, print_scores, score_file, score_json

__all__ = [
    "METRICS",
    "Columns",
    "SavedRows",
    "ScoreReport",
    "ScoreRequest",
    "score_json",
    "print_scores",
    "score_file",
]
