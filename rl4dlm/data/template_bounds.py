"""A chat template is a program of a model's author: it is run once within bounds before it is run at all.

The run is in a child process, which can be ended whatever it does: a template that loops for hours or asks
for all memory would otherwise do so in the first row of a dry run.
"""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rl4dlm.errors import ModelError

MAX_SECONDS = 10.0
MAX_MEMORY_BYTES = 512 << 20
"""Beside what the process has already."""
MAX_CHARACTERS = 1_000_000
"""Of the text that a template makes of one short question."""

_MESSAGES = [{"role": "user", "content": "What is 2 + 3?"}]
_FINE, _NO_MEMORY, _TOO_LONG = 0, 3, 4


def require_bounded(tokenizer: Any) -> None:
    """Render one short question in a child process within bounds; a template that raises is not our matter.

    Args:
        tokenizer: anything with `apply_chat_template`.

    Raises:
        ModelError: the template takes too long, asks for too much memory, or makes too long a text.
    """

    def render() -> int:
        options = {"tokenize": False, "add_generation_prompt": True}
        return len(tokenizer.apply_chat_template(_MESSAGES, **options))

    reason = _run_bounded(render)
    if reason is not None:
        raise ModelError(
            f"the tokenizer's chat template {reason} for one short question. "
            "Fix: set model.chat_template: none, or use the chat template that was published."
        )


def _run_bounded(render: Callable[[], int]) -> str | None:
    """What is wrong with a run, or None."""
    # A fork costs a thousandth of an interpreter's start. The child runs the template alone, no torch, and
    # leaves by `_exit`, so that no lock that another thread held at the fork is asked for.
    child = os.fork()
    if child == 0:
        os._exit(_in_child(render))
    deadline = time.monotonic() + MAX_SECONDS
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return _reason(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return f"takes more than {MAX_SECONDS:.0f} s"


def _in_child(render: Callable[[], int]) -> int:
    try:
        _limit_memory()
        return _TOO_LONG if render() > MAX_CHARACTERS else _FINE
    except MemoryError:
        return _NO_MEMORY
    except BaseException:  # whatever the template raises is said where a row of the data raises it
        return _FINE


def _limit_memory() -> None:
    """Allow what the process has, and a little more; where the system does not say, there is no limit."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return
    held = int(statm.read_text().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = held + MAX_MEMORY_BYTES
    resource.setrlimit(
        resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard)
    )


def _reason(status: int) -> str | None:
    code = os.waitstatus_to_exitcode(status)
    if code in (_NO_MEMORY, -signal.SIGKILL, -signal.SIGABRT, -signal.SIGSEGV):
        return f"asks for more than {MAX_MEMORY_BYTES >> 20} MiB of memory"
    return f"makes more than {MAX_CHARACTERS:,} characters" if code == _TOO_LONG else None
