"""Exported folders on the hub."""

from __future__ import annotations

from pathlib import Path

from rl4dlm.errors import ModelError
from rl4dlm.models.folders import HUB_NAME


def require_pushable(name: str) -> None:
    """The name is one that a repository may have, and somebody is logged in.

    Raises:
        ModelError: it is not, or nobody is.
    """
    from huggingface_hub import get_token

    if not HUB_NAME.fullmatch(name):
        raise ModelError(
            f"--push-to {name} is not a repository's name. Fix: write owner/name, such as me/my-model."
        )
    if get_token() is None:
        raise ModelError(
            f"--push-to {name} needs an account on the hub. Fix: set HF_TOKEN or run `hf auth login`."
        )


def push(folder: Path, name: str, *, private: bool) -> str:
    """Upload a folder as a model repository, which is made if it does not exist; returns its address.

    Raises:
        ModelError: the hub refuses or cannot be reached. The folder stays where it is.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    api = HfApi()
    try:
        address = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(folder_path=str(folder), repo_id=name, commit_message="Exported by rl4dlm")
    except (OSError, HTTPError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"{name}: the hub did not take the model ({reason}). The folder {folder} is complete. "
            f"Fix: check the network, the account and the name, then `hf upload {name} {folder}`."
        ) from error
    return str(address)
