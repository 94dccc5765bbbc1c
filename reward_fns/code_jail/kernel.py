"""The kernel's side of the jail, through ctypes: mounts, namespaces, Landlock, and a filter on system calls.

Every function raises OSError with the kernel's reason where it is refused. Linux on x86_64 and aarch64.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Sequence

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_SECCOMP_MODE_FILTER = 2

NEW_NS, NEW_CGROUP, NEW_UTS, NEW_IPC = 0x20000, 0x02000000, 0x04000000, 0x08000000
NEW_USER, NEW_PID, NEW_NET = 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
_MNT_DETACH = 2
_MOUNT_SETATTR, _LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 442, 444, 445, 446
_AT_FDCWD, _AT_RECURSIVE, _ATTR_RDONLY, _ATTR_NOSUID = -100, 0x8000, 1, 2
_THREAD = 0x10000

# Names, then numbers on x86_64 and aarch64 (0: does not exist there). What a filtered process may not do:
_DENIED = """
    fork 57 0, vfork 58 0, execve 59 221, execveat 322 281,
    socket 41 198, connect 42 203, accept 43 202, accept4 288 242, bind 49 200, listen 50 201,
    kill 62 129, tkill 200 130, tgkill 234 131, rt_sigqueueinfo 129 138, rt_tgsigqueueinfo 297 240,
    ptrace 101 117, process_vm_readv 310 270, process_vm_writev 311 271, kcmp 312 272,
    setsid 112 157, setpgid 109 154, setpriority 141 140, sched_setparam 142 118, sched_setscheduler 144 119,
    sched_setaffinity 203 122, sched_setattr 314 274, ioprio_set 251 30, migrate_pages 256 238,
    move_pages 279 239, prctl 157 167, seccomp 317 277, personality 135 92,
    chmod 90 0, fchmod 91 52, fchmodat 268 53, chown 92 0, fchown 93 55, lchown 94 0, fchownat 260 54,
    utime 132 0, utimes 235 0, futimesat 261 0, utimensat 280 88, mknod 133 0, mknodat 259 33,
    setxattr 188 5, lsetxattr 189 6, fsetxattr 190 7, removexattr 197 14, lremovexattr 198 15,
    fremovexattr 199 16,
    shmget 29 194, shmat 30 196, shmctl 31 195, semget 64 190, semop 65 193, semctl 66 191,
    semtimedop 220 192,
    msgget 68 186, msgsnd 69 189, msgrcv 70 188, msgctl 71 187, mq_open 240 180, memfd_create 319 279,
    unshare 272 97, setns 308 268, mount 165 40, umount2 166 39, pivot_root 155 41, chroot 161 51,
    name_to_handle_at 303 264, open_by_handle_at 304 265, fanotify_init 300 262, quotactl 179 60,
    swapon 167 224, swapoff 168 225, acct 163 89, reboot 169 142, sethostname 170 161, setdomainname 171 162,
    settimeofday 164 170, clock_settime 227 112, adjtimex 159 171, clock_adjtime 305 266, iopl 172 0,
    ioperm 173 0,
    init_module 175 105, finit_module 313 273, delete_module 176 106, kexec_load 246 104,
    kexec_file_load 320 294, add_key 248 217, request_key 249 218, keyctl 250 219, bpf 321 280,
    perf_event_open 298 241, userfaultfd 323 282, syslog 103 116
"""
# From this number on the numbers are the same everywhere; all but a few are refused, unknown ones included.
_FIRST_COMMON = 424
_COMMON_ALLOWED = (436, 439, 441, 449)  # close_range, faccessat2, epoll_pwait2, futex_waitv
_MACHINES = {"x86_64": (0, 0xC000003E, 155), "aarch64": (1, 0xC00000B7, 41)}


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _syscall(number: int, what: str, *arguments: object) -> int:
    return _checked(_LIBC.syscall(ctypes.c_long(number), *arguments), what)


def _prctl(option: int, value: int, what: str) -> None:
    _checked(_LIBC.prctl(option, ctypes.c_ulong(value), 0, 0, 0), what)


def _machine() -> tuple[int, int, int]:
    """Column of the table above, audit number, number of `pivot_root`."""
    name = platform.machine()
    if name not in _MACHINES:
        raise OSError(errno.ENOSYS, f"no table of system calls for {name}")
    return _MACHINES[name]


def die_with_parent(signal: int) -> None:
    """Have `signal` sent to this process when its parent ends. A change of user undoes it."""
    _prctl(_PR_SET_PDEATHSIG, signal, "PR_SET_PDEATHSIG")


def hide_memory() -> None:
    """Keep other processes of this user from reading this process's memory."""
    _prctl(_PR_SET_DUMPABLE, 0, "PR_SET_DUMPABLE")


def no_new_privileges() -> None:
    """No program started from here gains rights."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1, "PR_SET_NO_NEW_PRIVS")


def drop_capabilities() -> None:
    """Give up every capability."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0))
    _checked(_LIBC.capset(header, ctypes.create_string_buffer(24)), "capset")


def unshare(flags: int) -> None:
    """Leave the namespaces that `flags` name."""
    _checked(_LIBC.unshare(ctypes.c_int(flags)), "unshare")


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """`mount(2)`."""
    arguments = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
    result = _LIBC.mount(*arguments, ctypes.c_ulong(flags), os.fsencode(options))
    _checked(result, f"mount on {target}")


def make_read_only(tree: str) -> None:
    """Everything mounted at and below `tree` becomes read-only, without set-user-id."""
    attributes = ctypes.create_string_buffer(struct.pack("=4Q", _ATTR_RDONLY | _ATTR_NOSUID, 0, 0, 0))
    _syscall(
        _MOUNT_SETATTR,
        "mount_setattr",
        _AT_FDCWD,
        os.fsencode(tree),
        _AT_RECURSIVE,
        attributes,
        ctypes.c_size_t(32),
    )


def enter_root(root: str) -> None:
    """Make the mount at `root` the root of the file system and let go of the old one."""
    os.chdir(root)
    _syscall(_machine()[2], "pivot_root", b".", b".")
    _checked(_LIBC.umount2(b".", _MNT_DETACH), "umount2")
    os.chdir("/")


def landlock(readable: Sequence[str]) -> None:
    """Allow this process to read below `readable`, to write into `/dev/null`, and nothing else on disk.

    Raises:
        OSError: the kernel has no Landlock, or an older one than version 3 (Linux 6.2).
    """
    version = _syscall(_LANDLOCK_CREATE, "landlock", None, ctypes.c_size_t(0), ctypes.c_uint(1))
    if version < 3:
        raise OSError(errno.ENOSYS, f"Landlock version {version}; 3 is needed (Linux 6.2)")
    everything = (1 << (16 if version >= 5 else 15)) - 1
    # Since version 4 also TCP; since 6 abstract sockets and signals.
    attributes = struct.pack("=3Q", everything, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = _syscall(_LANDLOCK_CREATE, "landlock", attributes, ctypes.c_size_t(size), ctypes.c_uint(0))
    for path in readable:
        _allow(rules, path, 0b1101 if os.path.isdir(path) else 0b111 if path == os.devnull else 0b101)
    _syscall(_LANDLOCK_RESTRICT, "landlock_restrict_self", ctypes.c_int(rules), ctypes.c_uint(0))
    os.close(rules)


def _allow(rules: int, path: str, rights: int) -> None:
    handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    rule = struct.pack("=Qi", rights, handle)
    _syscall(_LANDLOCK_ADD, f"landlock_add_rule {path}", ctypes.c_int(rules), 1, rule, ctypes.c_uint(0))
    os.close(handle)


def filter_system_calls() -> None:
    """Refuse, for good, processes, programs, sockets, signals to others, and what `_DENIED` lists besides.

    Threads and `socketpair` streams remain. Needs `no_new_privileges` first.
    """
    program = b"".join(struct.pack("=HBBI", *instruction) for instruction in _program())
    code = ctypes.create_string_buffer(program)
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    result = _LIBC.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.create_string_buffer(header), 0, 0)
    _checked(result, "seccomp")


_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_KILL, _ALLOW = 0x80000000, 0x7FFF0000
_REFUSE, _UNKNOWN = 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
Instruction = tuple[int, int, int, int]


def _program() -> list[Instruction]:
    """The filter: instructions of (code, jump if true, jump if false, operand)."""
    column, architecture, _ = _machine()
    denied = [int(entry.split()[1 + column]) for entry in _DENIED.split(",")]
    newer = [step for number in _COMMON_ALLOWED for step in _returns(number, _ALLOW)]
    newer.append((_RETURN, 0, 0, _UNKNOWN))
    return [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),
        (_AT_LEAST, 0, len(newer), _FIRST_COMMON),
        *newer,
        *(step for number in denied if number for step in _returns(number, _REFUSE)),
        *_by_argument((56, 220)[column], 0, _THREAD, (_THREAD,), _ALLOW, _REFUSE),  # clone
        *_by_argument((53, 199)[column], 1, 0xF, (1,), _ALLOW, _REFUSE),  # socketpair: streams
        *_by_argument((302, 261)[column], 0, 0xFFFFFFFF, (0,), _ALLOW, _REFUSE),  # prlimit64: itself
        # fcntl F_SETOWN, F_SETSIG, F_SETOWN_EX and ioctl FIOSETOWN, SIOCSPGRP, TIOCSTI: ways to signal.
        *_by_argument((72, 25)[column], 1, 0xFFFFFFFF, (8, 10, 15), _REFUSE, _ALLOW),
        *_by_argument((16, 29)[column], 1, 0xFFFFFFFF, (0x8901, 0x8902, 0x5412), _REFUSE, _ALLOW),
        (_RETURN, 0, 0, _ALLOW),
    ]


def _returns(number: int, verdict: int) -> list[Instruction]:
    return [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, verdict)]


def _by_argument(
    number: int, argument: int, mask: int, values: Sequence[int], match: int, otherwise: int
) -> list[Instruction]:
    """For one system call: `match` where the masked argument (its low 32 bits) is one of `values`."""
    body: list[Instruction] = [(_LOAD, 0, 0, 16 + 8 * argument), (_AND, 0, 0, mask)]
    body += [step for value in values for step in _returns(value, match)]
    body.append((_RETURN, 0, 0, otherwise))
    return [(_EQUAL, 0, len(body), number), *body]
