"""One owner per run folder: a lock that ends with its process, and a refusal that names who holds it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from rl4dlm.errors import CheckpointError, StorageError, storage_error

LOCK_FILE = "run.lock"
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


@contextmanager
def owned(root: Path) -> Iterator[None]:
    """Hold a run's folder until the block ends; the folder is made where it is missing.

    The lock is the kernel's (`flock`), so it is gone with its process however that ends, and on file systems
    that share locks (NFS 4, Lustre with `flock`) it holds across machines. Where a fresh start wrote nothing
    else, the folder is gone again afterwards.

    Raises:
        CheckpointError: another process holds it; the message names that process.
        StorageError: the folder or its lock cannot be written.
    """
    made = _make(root)
    path = root / LOCK_FILE
    descriptor = _locked(path)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(_owner()).encode("utf-8"), 0)
        yield
    finally:
        # Unlinked while it is held: whoever waits for it sees that its file is not the folder's any more.
        path.unlink(missing_ok=True)
        os.close(descriptor)
        _forget_empty(root, made)


def try_writing(root: Path) -> None:
    """Find out whether a run could write into a folder, which is made where it is missing; nothing stays.

    Raises:
        StorageError: it could not.
    """
    made = _make(root)
    try:
        with tempfile.NamedTemporaryFile(dir=root, prefix=".try_"):
            pass
    except OSError as error:
        raise storage_error(f"the run's folder {root} cannot be written", error) from error
    finally:
        _forget_empty(root, made)


def _make(root: Path) -> list[Path]:
    """The folders that had to be made, the outermost first."""
    missing = [folder for folder in (root, *root.parents) if not folder.exists()]
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(f"the run's folder {root} cannot be made", error) from error
    return missing[::-1]


def _forget_empty(root: Path, made: list[Path]) -> None:
    """Remove the folders that were made for the lock, as far as nothing was written into them."""
    for folder in made[::-1]:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _locked(path: Path) -> int:
    """A descriptor of the lock file at `path`, locked."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise storage_error(f"the run's folder {path.parent} cannot be written", error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.pread(descriptor, 4096, 0)
            os.close(descriptor)
            raise _refusal(path, owner, error) from None
        if _is_still(path, descriptor):
            return descriptor
        os.close(descriptor)  # its holder removed it between our opening and locking it


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether `path` is the file behind the descriptor."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _refusal(path: Path, owner: bytes, error: OSError) -> CheckpointError | StorageError:
    if error.errno in _NO_LOCKS:
        return StorageError(
            f"{path}: this file system has no locks ({error.strerror}), and two runs in one folder would "
            "destroy each other's checkpoints.\n"
            "Fix: choose a run.output_dir on another file system, or mount this one with locks."
        )
    try:
        told = json.loads(owner)
        who = f"process {told['pid']} on {told['host']}, since {told['since']}"
    except (ValueError, KeyError, TypeError):
        who = "another process"
    return CheckpointError(
        f"{path.parent} is in use by {who}; nothing was read or written.\n"
        "Fix: wait until that run has ended or end it, or choose another run.name."
    )


def _owner() -> dict[str, int | str]:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
