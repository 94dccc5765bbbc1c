"""Model folders: found here or on the hub, and written so that a half-written one never looks finished."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rl4dlm.errors import ModelError, StorageError
from rl4dlm.models.weights import TensorHeader, read_headers

SMALL_FILES = ["*.json", "*.jinja", "*.txt", "*.model"]
_TOKENIZER_CODE = ["tokenization*.py"]
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def find_folder(path: str | Path, *, weights: bool, trust_remote_code: bool = False) -> Path:
    """The local folder of a model: the path itself, or a snapshot of a hub repository.

    Args:
        path: local folder, or `owner/name` on the hub.
        weights: download the safetensors files too, not only configuration and tokenizer.
        trust_remote_code: download the tokenizer's Python files too.

    Raises:
        ModelError: no such folder, or the hub cannot give it.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ModelError(f"{path} is a file. Fix: give the folder that holds config.json.")
    if not HUB_NAME.fullmatch(str(path)) or str(path).startswith("."):
        raise ModelError(f"{path}: no such folder. Fix: correct model.path.")
    patterns = SMALL_FILES + (["*.safetensors"] if weights else [])
    return _snapshot(str(path), patterns + (_TOKENIZER_CODE if trust_remote_code else []))


def _snapshot(name: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    with _hub_errors(name):
        return Path(snapshot_download(name, allow_patterns=patterns))


@contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    """Turn what the hub client raises into one message with the remedy."""
    from huggingface_hub.errors import GatedRepoError, HFValidationError, HTTPError, RepositoryNotFoundError

    try:
        yield
    except GatedRepoError as error:
        raise ModelError(
            f"{name}: access to this hub repository must be granted first. "
            "Fix: accept its terms on the hub, then set HF_TOKEN or run `hf auth login`."
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelError(
            f"{name} is neither a folder here nor a repository on the hub. Fix: correct model.path, "
            "or set HF_TOKEN where the repository is private."
        ) from error
    except (OSError, HTTPError) as error:
        raise ModelError(
            f"{name} is not a folder here and the hub cannot be reached ({_first_line(error)}). "
            f"Fix: with a network, run `hf download {name}` once, or give model.path a local folder."
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def headers_of(path: str | Path, folder: Path) -> dict[str, TensorHeader]:
    """Headers of all tensors; for a hub name whose weights are not here they are read over the network.

    Raises:
        ModelError: as `read_headers`, or the hub cannot be reached.
    """
    is_local = Path(path).expanduser().is_dir() or any(folder.glob("*.safetensors"))
    return read_headers(folder) if is_local else _remote_headers(str(path))


def _remote_headers(name: str) -> dict[str, TensorHeader]:
    from huggingface_hub import get_safetensors_metadata
    from huggingface_hub.errors import NotASafetensorsRepoError

    with _hub_errors(name):
        try:
            metadata = get_safetensors_metadata(name)
        except NotASafetensorsRepoError as error:
            raise ModelError(
                f"{name} has no safetensors weights on the hub. "
                "Fix: download it, convert it and give model.path the local folder."
            ) from error
    return {
        tensor: TensorHeader(f"{name}/{file}", info.dtype, tuple(info.shape))
        for file, content in metadata.files_metadata.items()
        for tensor, info in content.tensors.items()
    }


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder that appears under its name only when it is complete.

    Yields a sibling to write into; it is renamed at the end and removed when anything fails.

    Raises:
        ModelError: something lies there already; nothing is overwritten.
        StorageError: the disk is full or refuses.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ModelError(
            f"{folder} already exists and is not empty. Fix: choose another folder, or remove it."
        )
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        os.replace(partial, folder)
    except Exception as error:
        if not _is_disk_error(error):
            raise
        raise StorageError(
            f"{folder} could not be written ({_first_line(error)}). Fix: free space or choose another disk; "
            "nothing was left under this name."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _is_disk_error(error: Exception) -> bool:
    """The libraries written in Rust (safetensors, tokenizers) pass an `OSError` on as text alone."""
    return isinstance(error, OSError) or "(os error " in str(error)
