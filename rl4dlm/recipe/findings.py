"""What a rule finds: the dotted key to look at, the problem, and the remedy."""

from __future__ import annotations

Finding = tuple[str, str, str]
