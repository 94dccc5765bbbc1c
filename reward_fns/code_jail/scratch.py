"""Taking away a folder that a hostile program has filled."""

from __future__ import annotations

import os
import secrets

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove(folder: str) -> None:
    """Remove a folder and all that is in it, however deep, as far as this user may.

    It goes by descriptor, one level at a time: what lies in a folder is moved up before it is removed.
    So no path grows too long, no link is followed, and no more than two folders are open.
    """
    try:
        root = os.open(folder, _FOLDER)
    except OSError:
        return
    try:
        while _clear_level(root):
            continue
        os.rmdir(folder)
    except OSError:
        # What cannot be removed by its owner stays; there is nobody here to tell.
        return
    finally:
        os.close(root)


def _clear_level(root: int) -> bool:
    """Remove the files of a folder and empty its folders into it; whether there were any folders."""
    with os.scandir(root) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_folder in found:
        if is_folder:
            _move_up(name, root)
        else:
            os.unlink(name, dir_fd=root)
    return any(is_folder for _, is_folder in found)


def _move_up(name: str, root: int) -> None:
    os.chmod(name, 0o700, dir_fd=root)
    inner = os.open(name, _FOLDER, dir_fd=root)
    try:
        for child in os.listdir(inner):
            os.rename(child, secrets.token_hex(16), src_dir_fd=inner, dst_dir_fd=root)
    finally:
        os.close(inner)
    os.rmdir(name, dir_fd=root)
