"""How much memory is left on this machine."""

from __future__ import annotations

import re
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")


def free_memory() -> int | None:
    """Bytes that a process may still ask for: the machine's, or its container's where that has fewer; None
    where the system does not say."""
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", _MEMINFO.read_text(), re.MULTILINE)
    except OSError:
        return None
    left = [1024 * int(found[1])] if found else []
    try:
        limit, used = ((_GROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        left += [int(limit) - int(used)] if limit.isdecimal() else []
    except OSError:
        pass  # no container, or one of an older kind
    return min(left, default=None)
