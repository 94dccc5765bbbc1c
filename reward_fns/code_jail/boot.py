"""Start of a jailed process: `python -P -s -S boot.py CONTROL STATUS`, by `session`.

Reads what to do from the pipe CONTROL, which stays open as a lifeline: when its other end closes, everything
here is killed. Enters the namespaces, forks, confines the child, writes the layers to the pipe STATUS, and
only then lets the child run code. The parent of the child stays outside, holds nothing, and waits.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import scratch  # noqa: E402
import wire  # noqa: E402
from confine import Confinement, complete  # noqa: E402

_LOOK_EVERY_MS = 50


def main(control: int, status: int) -> int:
    """Run one job in a jail.

    Args:
        control: pipe with the job; its end is the end of everything here.
        status: pipe for one message, {"layers": ...} or {"refused": ..., "layers": ...}.

    Returns:
        Exit status of the child; 128 + signal where one ended it.
    """
    job = wire.receive(control)
    _import_for(job["role"])
    sys.dont_write_bytecode = True
    confinement = Confinement(job["confinement"])
    confinement.enter_namespaces()
    child = os.fork()
    if child == 0:
        _inside(job, confinement, status)
    for fd in (status, *job["fds"]):
        os.close(fd)
    return _watch(child, control, job["confinement"])


def _inside(job: dict[str, Any], confinement: Confinement, status: int) -> None:
    """The child: never returns."""
    try:
        if job["role"] == "script":
            _replace_input(job["input"])
        confinement.finish(sorted((status, *job["fds"])))
        protected = complete(confinement.layers)
        allowed = protected or job["allow_unprotected"]
        wire.send(status, {"layers": confinement.layers, "protected": protected})
        os.close(status)
        if allowed:
            sys.path[0:1] = []
            sys.set_int_max_str_digits(0)
            sys.path.extend(job["packages_from"])
            _ROLES[job["role"]](job)
    except BaseException as error:
        _tell(status, f"{type(error).__name__}: {error}")
    finally:
        os._exit(1)


def _tell(status: int, text: str) -> None:
    try:
        wire.send(status, {"refused": text})
    except OSError:
        print(text, file=sys.stderr)


def _import_for(role: str) -> None:
    """While the files of this package can still be read, and their compiled form be kept for the next."""
    if role == "tests":
        import tester  # noqa: F401
    elif role in ("calls", "script"):
        import candidate  # noqa: F401


def _replace_input(text: str) -> None:
    handle = os.memfd_create("stdin")
    with os.fdopen(handle, "wb", closefd=False) as out:
        out.write(text.encode("utf-8", "surrogatepass"))
    os.lseek(handle, 0, os.SEEK_SET)
    os.dup2(handle, 0)
    sys.stdin = open(0, encoding="utf-8", closefd=False)


def _run_tests(job: dict[str, Any]) -> None:
    import remote
    import tester

    read_fd, write_fd, verdict = job["fds"]

    def report(message: dict[str, Any]) -> None:
        wire.send(verdict, message | {"nonce": job["nonce"]})

    tester.run(job, remote.Remote(read_fd, write_fd), report)
    report({"done": True})


def _answer_calls(job: dict[str, Any]) -> None:
    import candidate

    candidate.serve(job, *job["fds"])


def _run_script(job: dict[str, Any]) -> None:
    import candidate

    candidate.run_script(job)


_ROLES = {
    "probe": lambda job: None,
    "tests": _run_tests,
    "calls": _answer_calls,
    "script": _run_script,
}


def _watch(child: int, control: int, settings: dict[str, Any]) -> int:
    """Wait for the child; kill it when the lifeline ends or it has more threads than it may."""
    handle = os.pidfd_open(child)
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(handle, select.POLLIN)
    while not (ready := [fd for fd, _ in poll.poll(_LOOK_EVERY_MS)]):
        if _threads(child) > settings["limits"]["threads"]:
            break
    if handle not in ready:
        for kill in (os.killpg, os.kill):
            try:
                kill(child, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    # Here and not in the caller, who may have been killed. With a private root the folder is empty.
    scratch.remove(settings["scratch"])
    return code if code >= 0 else 128 - code


def _threads(child: int) -> int:
    try:
        return len(os.listdir(f"/proc/{child}/task"))
    except OSError:
        return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
