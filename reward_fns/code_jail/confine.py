"""The layers of the jail, put on by a process from outside to inside; which are on is told, not assumed.

| layer | what it does |
| --- | --- |
| `limits` | rlimits: address space, CPU, size of files, open files, threads; no core dumps |
| `namespaces` | process ids, network, IPC, control groups and host name of its own |
| `private_root` | a file system of its own: the interpreter read-only, a scratch folder in memory, no /proc |
| `landlock` | where there is no private root: the same files by the kernel's Landlock, nothing to write |
| `user` | where it was root: a user that nobody else is, no groups; no capabilities in any case |
| `system_calls` | a filter: no new process or program, no socket, no signal, no mount |

`system_calls`, `limits` and one of `private_root` and `landlock` make a jail; without them it is refused.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import kernel

LAYERS = ("limits", "namespaces", "private_root", "landlock", "user", "system_calls")
ON = "on"
_NOBODY = 65534
# Users of single runs lie from here on, above those of systems and of containers.
_FIRST_OWN_USER, _OWN_USERS = 0x3000_0000, 1 << 28
# From this kernel on threads are counted per user namespace.
_COUNTS_IN_NAMESPACE = (5, 14)
_SCRATCH = "/scratch"
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
_NAMESPACES = kernel.NEW_PID | kernel.NEW_NET | kernel.NEW_IPC | kernel.NEW_UTS | kernel.NEW_CGROUP


def complete(layers: Mapping[str, str]) -> bool:
    """The layers that are on make a jail."""
    files = ON in (layers["private_root"], layers["landlock"])
    return files and layers["system_calls"] == ON and layers["limits"] == ON


class Confinement:
    """What is done to a process before it may run code that nobody trusts."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """Nothing is done yet.

        Args:
            settings: `readable` (paths), `scratch` (an empty folder), `limits` (as in `session.Limits`), and
                `leave_out` (names of layers).
        """
        self._settings = settings
        self._leave_out = frozenset(settings["leave_out"])
        self._counted_alone = False
        self.layers = {name: "off: left out" if name in self._leave_out else "off" for name in LAYERS}

    def enter_namespaces(self) -> None:
        """In the process whose children are to be in them; with a user namespace unless it is root."""
        if os.geteuid() == 0 and self._try("namespaces", lambda: kernel.unshare(_NAMESPACES)):
            return
        if self._try("namespaces", _enter_as_user):
            release = os.uname().release.split(".")
            self._counted_alone = (int(release[0]), int(release[1])) >= _COUNTS_IN_NAMESPACE

    def finish(self, keep: Sequence[int]) -> None:
        """Put on the other layers, in the child, which is single-threaded.

        Args:
            keep: file descriptors that stay open, besides 0, 1 and 2.
        """
        os.setsid()
        alone = self._counted_alone or (os.getuid() == 0 and _has_every_user())
        self._others = 0 if alone else threads_of(os.getuid() or _NOBODY)
        kernel.no_new_privileges()
        self._close_others(keep)
        if self.layers["namespaces"] == ON:
            self._try("private_root", self._enter_private_root)
        else:
            self._note("private_root", "off: needs namespaces")
        if self.layers["private_root"] != ON:
            os.chdir(self._settings["scratch"])
            self._become_nobody()
            self._try("landlock", self._restrict_files)
        else:
            self._note("landlock", "off: not needed, the root is private")
            self._become_nobody()
        os.environ["HOME"] = os.environ["TMPDIR"] = os.getcwd()
        kernel.drop_capabilities()
        kernel.hide_memory()
        kernel.die_with_parent(signal.SIGKILL)
        self._try("limits", self._set_limits)
        self._try("system_calls", kernel.filter_system_calls)

    def _note(self, layer: str, text: str) -> None:
        if layer not in self._leave_out:
            self.layers[layer] = text

    def _try(self, layer: str, step: Callable[[], None]) -> bool:
        if layer in self._leave_out:
            return False
        try:
            step()
        except OSError as error:
            self.layers[layer] = f"off: {error.strerror or error}"
            return False
        self.layers[layer] = ON
        return True

    def _close_others(self, keep: Sequence[int]) -> None:
        start = 3
        for fd in sorted(keep):
            os.closerange(start, fd)
            start = fd + 1
        os.closerange(start, 1 << 20)

    def _enter_private_root(self) -> None:
        root = self._settings["scratch"]
        kernel.unshare(kernel.NEW_NS)
        kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
        kernel.mount("tmpfs", root, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "size=1m,mode=755")
        for path in (*self._settings["readable"], *filter(os.path.exists, _DEVICES)):
            _bind(path, root + path)
        scratch = root + _SCRATCH
        os.mkdir(scratch)
        kernel.make_read_only(root)
        size = self._settings["limits"]["scratch_mb"]
        options = f"size={size}m,nr_inodes=10000,mode=777"
        kernel.mount("tmpfs", scratch, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, options)
        kernel.enter_root(root)
        os.chdir(_SCRATCH)

    def _restrict_files(self) -> None:
        devices = [path for path in _DEVICES if os.path.exists(path)]
        # Nothing can be written: what lies on a disk could not be bounded, neither in bytes nor in files.
        kernel.landlock([*self._settings["readable"], *devices, "."])

    def _become_nobody(self) -> None:
        if "user" in self._leave_out:
            return
        if os.getuid() != 0 or os.geteuid() != 0:
            self.layers["user"] = "off: not started as root"
            return
        if self.layers["private_root"] != ON:
            closed = _closed_to_others(
                [*self._settings["readable"], os.path.dirname(self._settings["scratch"])]
            )
            if closed:
                self.layers["user"] = f"off: {closed} is closed to other users"
                return
        self._try("user", self._change_user)

    def _change_user(self) -> None:
        """Become a user that nobody else is, so that its threads are counted alone; else nobody."""
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        own = _FIRST_OWN_USER + int.from_bytes(os.urandom(4), "little") % _OWN_USERS
        for user in (own, _NOBODY):
            try:
                if self.layers["private_root"] != ON:
                    os.chown(".", user, _NOBODY)
                os.setresuid(user, user, user)
            except OSError as error:
                if user == _NOBODY or error.errno != errno.EINVAL:
                    raise
            else:
                self._counted_alone = user == own
                return

    def _set_limits(self) -> None:
        limits = self._settings["limits"]
        mib = 1 << 20
        cpu = max(1, int(limits["seconds"]) + 1)
        for what, value in (
            (resource.RLIMIT_AS, limits["memory_mb"] * mib),
            (resource.RLIMIT_CPU, cpu),
            (resource.RLIMIT_FSIZE, limits["file_mb"] * mib),
            (resource.RLIMIT_NOFILE, limits["open_files"]),
            (resource.RLIMIT_NPROC, self._most_threads()),
            (resource.RLIMIT_CORE, 0),
        ):
            hard = resource.getrlimit(what)[1]
            bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(what, (bound, bound))

    def _most_threads(self) -> int:
        """The kernel's bound on threads, which it counts per user.

        Where others may be the same user theirs come on top, with room for more of them: this only keeps a
        burst small until the watcher, who counts the threads of this one process, ends it.
        """
        most = self._settings["limits"]["threads"]
        return most if self._counted_alone else 4 * most + self._others


def _enter_as_user() -> None:
    user, group = os.getuid(), os.getgid()
    kernel.unshare(_NAMESPACES | kernel.NEW_USER)
    for file, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{_NOBODY} {user} 1"),
        ("gid_map", f"{_NOBODY} {group} 1"),
    ):
        with open(f"/proc/self/{file}", "w", encoding="ascii") as out:
            out.write(text)


def _has_every_user() -> bool:
    """Whether root here may become any user, which it may not in most user namespaces."""
    with open("/proc/self/uid_map", encoding="ascii") as file:
        return int(file.readline().split()[2]) > _FIRST_OWN_USER + _OWN_USERS


def threads_of(user: int) -> int:
    """Threads on this machine that a user has."""
    total = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.stat(f"/proc/{pid}").st_uid == user:
                total += len(os.listdir(f"/proc/{pid}/task"))
        except OSError:
            continue
    return total


def _bind(source: str, target: str) -> None:
    """Show a file or folder of the old root at `target`."""
    os.makedirs(target if os.path.isdir(source) else os.path.dirname(target), exist_ok=True)
    if not os.path.isdir(source):
        os.close(os.open(target, os.O_CREAT | os.O_CLOEXEC, 0o644))
    kernel.mount(source, target, None, kernel.MS_BIND | kernel.MS_REC)


def _closed_to_others(paths: Sequence[str]) -> str | None:
    """The first folder on the way to one of the paths that another user may not enter."""
    for path in paths:
        here = os.path.realpath(path)
        while here != "/":
            here, below = os.path.dirname(here), here
            mode = os.stat(below).st_mode
            if not mode & (stat.S_IXOTH if stat.S_ISDIR(mode) else stat.S_IROTH):
                return below
    return None
