"""Metrics out: console, JSON lines, Weights & Biases and a self-contained HTML report, by one `Tracker`."""

from __future__ import annotations

from rl4dlm.tracking import names
from rl4dlm.tracking.collapse import Alarm, Sentinel, collapse_message, completion_health
from rl4dlm.tracking.history import Curve, RunHistory
from rl4dlm.tracking.report import rebuild
from rl4dlm.tracking.samples import SampleRow, shown_samples, visible
from rl4dlm.tracking.sink import Evaluation, Summary
from rl4dlm.tracking.tracker import Tracker
from rl4dlm.tracking.watchdogs import NothingToLearn, require_finite

__all__ = [
    "Alarm",
    "Curve",
    "Evaluation",
    "NothingToLearn",
    "RunHistory",
    "SampleRow",
    "Sentinel",
    "Summary",
    "Tracker",
    "collapse_message",
    "completion_health",
    "names",
    "rebuild",
    "require_finite",
    "shown_samples",
    "visible",
]
