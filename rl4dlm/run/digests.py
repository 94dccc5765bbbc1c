"""Digests of a folder's files: what was written is what is read back, or the file that differs is named."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import xxhash

from rl4dlm.errors import CheckpointError

_CHUNK_BYTES = 1 << 22


def digests_of(folder: Path) -> dict[str, str]:
    """`relative path -> digest` of every file below a folder (XXH3, 128 bits: against faults of disks and
    networks, not against malice)."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in files}


def file_digest(path: Path) -> str:
    """Of a file's content, in hexadecimal."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def text_digest(text: str) -> str:
    """Of a text in UTF-8, in hexadecimal."""
    return xxhash.xxh3_128_hexdigest(text.encode("utf-8"))


def require_digests(folder: Path, expected: Mapping[str, str], remedy: str) -> None:
    """Every file of a folder must be as it was when its digest was taken.

    Args:
        expected: as `digests_of` gave it; files that it does not name are not looked at.
        remedy: what the message advises.

    Raises:
        CheckpointError: a file is missing, cannot be read, or is another one.
    """
    for name, digest in expected.items():
        path = folder / name
        try:
            found = file_digest(path)
        except OSError as error:
            reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
            raise CheckpointError(f"{path} {reason}.\nFix: {remedy}") from error
        if found != digest:
            raise CheckpointError(
                f"{path} is damaged: its digest is {found}, and {digest} was written.\nFix: {remedy}"
            )


def flush_to_disk(folder: Path) -> None:
    """Return when everything below a folder, names included, would survive a power cut.

    Raises:
        OSError: the disk refused.
    """
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
