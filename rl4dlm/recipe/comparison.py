"""Where two sets of settings differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def differences(old: Any, new: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted keys at which two nested mappings differ, in their order, with both values; a missing key counts
    as None."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted(old.keys() | new.keys()):
            yield from differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
    elif old != new:
        yield prefix, old, new
