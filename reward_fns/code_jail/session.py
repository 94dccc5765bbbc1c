"""The outside of the jail: starts jailed processes, waits for their verdict with a deadline, ends them."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import select
import site
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import scratch, wire

_BOOT = Path(__file__).with_name("boot.py")
_START_S = 30.0
_CHUNK = 1 << 16
_ENVIRONMENT = {
    # -I would ignore this one too; -P -s and an environment without anything else give the same isolation.
    "PYTHONHASHSEED": "0",
    "PYTHONUTF8": "1",
    "OMP_NUM_THREADS": "1",
    # Each further arena would take 64 MiB of the address space, whose size is bounded, for each thread.
    "MALLOC_ARENA_MAX": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


class JailError(RuntimeError):
    """The jail cannot be set up on this machine, so nothing was run."""


class BrokenTests(ValueError):
    """The tests themselves are no Python."""


@dataclass(frozen=True)
class Limits:
    """What a completion may use."""

    seconds: float = 4.0
    """Deadline on the clock, for one completion with all its tests; CPU time has one second more."""
    memory_mb: int = 1024
    """Address space, MiB."""
    file_mb: int = 8
    """Largest file, MiB."""
    scratch_mb: int = 64
    """Scratch folder, MiB. Where there is no private root nothing can be written, and this says nothing."""
    output_kb: int = 1024
    """Standard output of a program, KiB."""
    open_files: int = 64
    threads: int = 32
    """Threads of one process, its first included."""


@dataclass(frozen=True)
class Setup:
    """How the jail is put on.

    Example: `Setup(Limits(seconds=1.0), leave_out=("namespaces",))` tries the other layers alone.
    """

    limits: Limits = field(default_factory=Limits)
    packages: tuple[str, ...] = ("numpy",)
    """Installed packages that completions and tests may import, besides the standard library."""
    allow_unprotected: bool = False
    """Run with the layers that there are where they make no jail."""
    leave_out: tuple[str, ...] = ()
    """Layers not to use."""


@dataclass(frozen=True)
class Tests:
    """The tests of one row."""

    sources: tuple[str, ...]
    setup: str = ""
    """Trusted code that runs before them."""
    preamble: tuple[str, ...] = ()
    """Readings of trusted code whose names the tests may use; the first that compiles counts."""
    entry: str | None = None
    """What is under test, as `f` or `Solution().f`; None: what the tests use and do not define."""
    check: bool = False
    """Each source defines `check(candidate)`, to be called with the function under test."""


@dataclass(frozen=True)
class Completion:
    """The text of a completion, in which its own jail finds the code (`reading`)."""

    text: str
    names: tuple[str, ...] = ()
    """What the code is asked for; none: it is a program."""
    stubs: tuple[str, ...] = ()
    """Readings of a prompt as code that the text may continue."""
    entry: str = ""
    """The function that the stubs begin."""


Code = Sequence[str] | Completion
"""Readings of a completion as Python, of which the first that compiles counts; or its text."""


@dataclass(frozen=True)
class Verdict:
    """What became of one completion."""

    passed: tuple[bool, ...]
    """Per test; a test that was not reached did not pass."""
    error: str
    """The first thing that went wrong; empty where nothing did."""

    @property
    def share(self) -> float:
        """Share of tests passed."""
        return sum(self.passed) / max(1, len(self.passed))


def run_tests(code: Code, tests: Tests, setup: Setup, stop: bool = True) -> Verdict:
    """Run the tests of a row against a completion.

    Args:
        stop: at the first test that fails.

    Raises:
        JailError: the jail cannot be set up.
        BrokenTests: a test is no Python.
    """
    count = len(tests.sources)
    nonce = secrets.token_hex(16)
    job = asdict(tests) | {"tests": tests.sources, "stop": stop, "nonce": nonce}
    with contextlib.ExitStack() as stack:
        to_candidate, to_tester, verdict = (stack.enter_context(_pipe()) for _ in range(3))
        tester = _Process("tests", job, setup, (to_tester[0], to_candidate[1], verdict[1]))
        stack.callback(tester.end)
        calls = _Process("calls", _as_job(code), setup, (to_candidate[0], to_tester[1]))
        stack.callback(calls.end)
        for pipe, ours in ((to_candidate, ()), (to_tester, ()), (verdict, (0,))):
            pipe.close_all_but(*ours)
        tester.wait_confined()
        calls.wait_confined()
        reports = list(_reports(verdict[0], nonce, time.monotonic() + setup.limits.seconds))
        tester.let_go()
    broken = [report["broken"] for report in reports if "broken" in report]
    if broken:
        raise BrokenTests(broken[0])
    results = [report for report in reports if "passed" in report]
    passed = [report["passed"] is True for report in results][:count]
    errors = [report["error"] for report in results if report["error"]]
    finished = bool(reports) and "done" in reports[-1]
    late = "" if finished else f"no verdict within {setup.limits.seconds:g} s"
    return Verdict(tuple(passed + [False] * (count - len(passed))), errors[0] if errors else late)


def run_script(code: Code, given: str, setup: Setup) -> tuple[str | None, str]:
    """Run a completion as a program.

    Args:
        given: its standard input.

    Returns:
        What it printed, or None where it failed, was too slow or printed too much; and what went wrong.

    Raises:
        JailError: the jail cannot be set up.
    """
    limit = setup.limits.output_kb * 1024
    with _pipe() as output:
        process = _Process("script", {**_as_job(code), "input": given}, setup, (), output=output[1])
        try:
            output.close_all_but(0)
            process.wait_confined()
            deadline = time.monotonic() + setup.limits.seconds
            data = b"".join(_chunks(output[0], deadline, limit))
            status = process.wait(deadline) if len(data) < limit else None
        finally:
            process.end()
    if status is None:
        return None, f"no end within {setup.limits.seconds:g} s and {setup.limits.output_kb} KiB of output"
    if status != 0:
        return None, f"ended with status {status}"
    return data.decode("utf-8", "replace"), ""


def _as_job(code: Code) -> dict[str, Any]:
    if isinstance(code, Completion):
        return {"sources": [], "completion": asdict(code)}
    return {"sources": list(code)}


@functools.cache
def require() -> None:
    """Start and end a jailed process, to find out before any completion is there whether one can.

    Raises:
        JailError: the jail cannot be set up.
    """
    process = _Process("probe", {}, Setup(), ())
    try:
        process.wait_confined()
    finally:
        process.end()


def layers(setup: Setup | None = None) -> dict[str, str]:
    """Which layers of the jail can be put on here: per layer `on`, or `off: ` and why; `jail` sums up.

    Never raises for a missing layer.
    """
    process = _Process("probe", {}, setup or Setup(), ())
    try:
        found = process.confined()
    finally:
        process.end()
    summary = "on" if found.get("protected") else f"off: {found.get('refused', 'a needed layer is off')}"
    return {"jail": summary, **found.get("layers", {})}


class _Pipe:
    """Both ends of a pipe, closed when they are no longer needed."""

    def __init__(self) -> None:
        self._ends: list[int | None] = list(os.pipe())

    def __getitem__(self, end: int) -> int:
        fd = self._ends[end]
        assert fd is not None
        return fd

    def close_all_but(self, *kept: int) -> None:
        for end, fd in enumerate(self._ends):
            if fd is not None and end not in kept:
                os.close(fd)
                self._ends[end] = None


@contextlib.contextmanager
def _pipe() -> Iterator[_Pipe]:
    pipe = _Pipe()
    try:
        yield pipe
    finally:
        pipe.close_all_but()


class _Process:
    """One jailed process, and the one that watches it."""

    def __init__(
        self, role: str, job: Mapping[str, Any], setup: Setup, fds: Sequence[int], output: int | None = None
    ) -> None:
        self._setup = setup
        self._scratch = tempfile.mkdtemp(prefix="rl4dlm-jail-")
        self._control, self._status = _Pipe(), _Pipe()
        control, status = self._control[0], self._status[1]
        try:
            self._popen = subprocess.Popen(
                [sys.executable, "-P", "-s", "-S", str(_BOOT), str(control), str(status)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL if output is None else output,
                stderr=subprocess.DEVNULL,
                pass_fds=(control, status, *fds),
                start_new_session=True,
                env=_ENVIRONMENT,
                cwd="/",
            )
        except BaseException:
            self._control.close_all_but()
            self._status.close_all_but()
            os.rmdir(self._scratch)
            raise
        self._control.close_all_but(1)
        self._status.close_all_but(0)
        self._send({**job, "role": role, "fds": list(fds), **self._settings()})

    def _settings(self) -> dict[str, Any]:
        readable, folders = _readable(self._setup.packages)
        return {
            "packages_from": folders,
            "allow_unprotected": self._setup.allow_unprotected,
            "confinement": {
                "readable": readable,
                "scratch": self._scratch,
                "limits": asdict(self._setup.limits),
                "leave_out": self._setup.leave_out,
            },
        }

    def _send(self, job: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):
            # A process that has ended already says why, or nothing, on its status pipe.
            wire.send(self._control[1], job)

    def confined(self) -> dict[str, Any]:
        """What the process says of its layers, before it runs anything."""
        data = b"".join(_chunks(self._status[0], time.monotonic() + _START_S, _CHUNK))
        try:
            return json.loads(data[4:])
        except ValueError:
            return {"refused": "the jailed process did not start"}

    def wait_confined(self) -> None:
        """Wait until the layers are on.

        Raises:
            JailError: they are not, and `Setup.allow_unprotected` is not set.
        """
        found = self.confined()
        if found.get("protected") or (self._setup.allow_unprotected and "layers" in found):
            return
        told = "; ".join(f"{name} {text}" for name, text in found.get("layers", {}).items())
        raise JailError(
            "no jail for code on this machine, and only `allow_unprotected: true` runs completions without: "
            f"{found.get('refused') or told}.\n"
            "Fix: use a kernel with user namespaces, or Linux 6.2 with Landlock."
        )

    def wait(self, deadline: float) -> int | None:
        """Exit status; None where there is none by `deadline`."""
        try:
            return self._popen.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return None

    def let_go(self) -> None:
        """Let the process begin to end, without waiting for it."""
        self._control.close_all_but()

    def end(self) -> None:
        """End the process, which ends everything in its jail and takes away its scratch folder."""
        self.let_go()
        self._status.close_all_but()
        if self.wait(time.monotonic() + 2.0) is None:
            self._popen.kill()
            self._popen.wait()
            scratch.remove(self._scratch)


@functools.cache
def _readable(packages: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Files and folders that a jailed interpreter needs, and the folders of its packages."""
    system = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo"]
    prefixes = {sys.base_prefix, sys.base_exec_prefix}
    paths = {*system, *(f"{prefix}/{name}" for prefix in prefixes for name in ("lib", "lib64"))}
    folders = []
    for folder in site.getsitepackages():
        found = [f"{folder}/{name}{end}" for name in packages for end in ("", ".libs", ".py")]
        found = [path for path in found if os.path.exists(path)]
        paths.update(found)
        folders += [folder] if found else []
    here = sorted(path for path in paths if os.path.exists(path))
    return [path for path in here if not any(path.startswith(f"{other}/") for other in here)], folders


def _chunks(fd: int, deadline: float, limit: int) -> Iterator[bytes]:
    """What comes from a pipe until its end, the deadline, or `limit` bytes."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while limit > 0 and (left := deadline - time.monotonic()) > 0:
        if not poll.poll(left * 1000):
            return
        chunk = os.read(fd, min(_CHUNK, limit))
        if not chunk:
            return
        limit -= len(chunk)
        yield chunk


def _reports(fd: int, nonce: str, deadline: float) -> Iterator[dict[str, Any]]:
    """The tester's messages, up to the one that says that it is done."""
    buffer = b""
    for chunk in _chunks(fd, deadline, wire.MAX_BYTES):
        buffer += chunk
        while len(buffer) >= 4 and len(buffer) >= (end := 4 + int.from_bytes(buffer[:4], "little")):
            message, buffer = json.loads(buffer[4:end]), buffer[end:]
            if message.get("nonce") != nonce:
                return
            yield message
            if "done" in message:
                return
