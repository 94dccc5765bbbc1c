"""What a rule is, and where rules are registered.

A rule yields `(key, problem, remedy)` for whatever it finds; `key` is the dotted key the user should look at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from rl4dlm.recipe.findings import Finding

Rule = Callable[[Any], Iterator[Finding]]
RULES: list[Rule] = []
SFT_RULES: list[Rule] = []
"""Those of a recipe for supervised fine-tuning."""


def rule(check: Rule) -> Rule:
    """Register a rule; all of them run after the schema has passed."""
    RULES.append(check)
    return check


def sft_rule(check: Rule) -> Rule:
    """Register a rule of recipes for supervised fine-tuning."""
    SFT_RULES.append(check)
    return check


def divisors_near(value: int, total: int, most: int = 3) -> str:
    """The divisors of `total` nearest to `value`, as text."""
    divisors = [d for d in range(1, total + 1) if total % d == 0]
    nearest = sorted(sorted(divisors, key=lambda d: abs(d - value))[:most])
    return " or ".join(map(str, nearest))
