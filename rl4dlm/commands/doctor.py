"""`rl4dlm doctor`: what this machine has, what is missing, what to do about it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from rl4dlm import __version__

_PACKAGES = (
    "torch transformers trl accelerate datasets peft deepspeed ray wandb mpmath omegaconf pydantic "
    "safetensors tokenizers pyarrow numpy rich typer"
).split()

Row = tuple[str, str, str]
"""Verdict (`ok`, `note`, `bad`), what was looked at, what was found."""


def examine(console: Console | None = None) -> int:
    """Print a table of findings; returns 1 when something is missing that every run needs, else 0."""
    rows = [*_python(), *_packages(), *_hardware(), *_shared_memory(), *_accounts(), *_rewards(), *_jail()]
    table = Table(title=f"rl4dlm {__version__}", title_justify="left")
    for column in ("", "what", "found"):
        table.add_column(column)
    colours = {"ok": "green", "note": "yellow", "bad": "red"}
    for verdict, what, found in rows:
        table.add_row(f"[{colours[verdict]}]{verdict}[/]", what, found)
    (console or Console()).print(table)
    return int(any(verdict == "bad" for verdict, _, _ in rows))


def _python() -> Iterator[Row]:
    verdict = "ok" if sys.version_info >= (3, 11) else "bad"
    yield verdict, "Python", f"{platform.python_version()} (3.11 or newer is needed)"


def _packages() -> Iterator[Row]:
    for name in _PACKAGES:
        try:
            yield "ok", name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield "bad", name, "not installed; `pip install rl4dlm` brings it"


def _hardware() -> Iterator[Row]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield "ok", "CPU cores", str(cores)
    if hasattr(os, "sysconf"):
        gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        yield ("ok" if gib >= 8 else "note"), "memory", f"{gib:.1f} GiB (a tiny run takes about 4)"
    free = shutil.disk_usage(".").free / 2**30
    yield ("ok" if free >= 5 else "note"), "free disk here", f"{free:.1f} GiB"
    try:
        import torch
    except ImportError:
        return
    if not torch.cuda.is_available():
        yield "note", "GPU", "none: runs use the CPU (cluster.gpus_per_trainer = 0)"
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        bf16 = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16: set trainer.bf16=false"
        yield "ok", f"GPU {index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {bf16}"


def _shared_memory() -> Iterator[Row]:
    if not os.path.isdir("/dev/shm"):
        yield "note", "/dev/shm", "absent: Ray keeps objects on disk and is slower"
        return
    gib = shutil.disk_usage("/dev/shm").free / 2**30
    found = f"{gib:.1f} GiB free for Ray's object store"
    yield (
        ("ok" if gib >= 1 else "note"),
        "/dev/shm",
        found + ("" if gib >= 1 else "; in Docker use --shm-size"),
    )


def _accounts() -> Iterator[Row]:
    import wandb

    from rl4dlm.tracking.wandb_sink import account_configured

    try:
        online = account_configured()
    except wandb.Error as error:
        yield "note", "W&B", f"the configured API key cannot be used: {str(error).splitlines()[0]}"
        online = False
    found = (
        "an API key is configured: runs are logged online"
        if online
        else "no API key: runs are logged offline"
    )
    yield "ok", "W&B", found
    yield (
        "ok",
        "Hugging Face hub",
        "offline (HF_HUB_OFFLINE)" if os.environ.get("HF_HUB_OFFLINE") == "1" else "as needed",
    )


def _jail() -> Iterator[Row]:
    from rl4dlm.errors import PluginError
    from rl4dlm.reward.sandbox import layers

    try:
        found = layers()
    except PluginError as error:
        yield "note", "jail for code rewards", str(error).splitlines()[0]
        return
    for name, state in found.items():
        what = "jail for code rewards" if name == "jail" else f"jail: {name.replace('_', ' ')}"
        yield ("ok" if state.startswith("on") else "note"), what, state


def _rewards() -> Iterator[Row]:
    from rl4dlm.errors import Rl4dlmError
    from rl4dlm.reward.selftest import selftest

    try:
        report = selftest("sort")
    except Rl4dlmError as error:
        yield "bad", "reward processes", str(error).splitlines()[0]
        return
    yield (
        ("ok" if report.passed else "bad"),
        "reward processes",
        "start, score and end" if report.passed else "fail",
    )
