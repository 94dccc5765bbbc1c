"""Rules that tie recipe sections together, one small function each, registered as they are imported."""

from __future__ import annotations

from rl4dlm.recipe.rules import backend, methods, model, running, sampling, supervised  # noqa: F401
from rl4dlm.recipe.rules.base import RULES, SFT_RULES, Finding, Rule, divisors_near

__all__ = ["RULES", "SFT_RULES", "Finding", "Rule", "divisors_near"]
