"""`rl4dlm estimate`: bias and spread of every likelihood estimator for a model and completions."""

from __future__ import annotations

from rl4dlm.commands.estimate.report import Report, estimate_json, print_estimates
from rl4dlm.commands.estimate.run import EstimateRequest, estimate
from rl4dlm.commands.estimate.sources import SCOPES

__all__ = ["SCOPES", "EstimateRequest", "Report", "estimate", "estimate_json", "print_estimates"]
