"""Write a GGUF file, a folder or a hub name as a plain model folder, or as a diffusion model."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

from rl4dlm.errors import ModelError, UserError
from rl4dlm.models import inspect, load, load_tokenizer, save
from rl4dlm.models.families import find_family, is_autoregressive
from rl4dlm.models.folders import HUB_NAME, SMALL_FILES, find_folder, new_folder
from rl4dlm.models.gguf import is_gguf, require_convertible, write_plain_folder
from rl4dlm.models.weights import read_headers, read_json

To = Literal["blocks", "full"]


@dataclass(frozen=True)
class ConvertRequest:
    """What `rl4dlm convert` is asked for."""

    source: str
    """A GGUF file, a folder in Hugging Face layout, or `owner/name` on the hub."""
    folder: Path
    """To be written; must not exist, or be empty."""
    to: To | None = None
    """A diffusion model that attends in blocks or fully; None: the model as it is."""
    block_length: int | None = None
    """Of `blocks`, tokens."""
    logit_shift: bool | None = None
    """Whether a token is read off the row before it; None: `load`'s default."""
    mask_token: str | None = None
    """See `rl4dlm.models.conversion.add_mask_token`."""

    def check(self) -> None:
        """Refuse options that do not go together.

        Raises:
            UserError: they do not.
        """
        given = {
            "--block-length": self.block_length,
            "--shift": self.logit_shift,
            "--mask-token": self.mask_token,
        }
        extra = next((name for name, value in given.items() if value is not None), None)
        if self.to is None and extra is not None:
            raise UserError(
                f"{extra} is about a diffusion model, and none is asked for.\n"
                "Fix: add --to blocks --block-length N, or leave it out."
            )
        if self.to == "blocks" and self.block_length is None:
            raise UserError("--to blocks needs the length of a block.\nFix: add --block-length, e.g. 4.")
        if self.to == "full" and self.block_length is not None:
            raise UserError("--to full has no blocks.\nFix: use --to blocks, or leave --block-length out.")


def convert_model(request: ConvertRequest) -> str:
    """Write the folder; it appears under its name only when it is complete.

    Returns:
        What was written, for the user.

    Raises:
        UserError: the options, the source or the target cannot be used.
    """
    request.check()
    source = Path(request.source).expanduser()
    head_dim = require_convertible(source) if is_gguf(source) else None
    with new_folder(request.folder) as partial, _as_folder(request.source, partial, head_dim) as folder:
        file = folder / "config.json"
        data = read_json(file)
        family = "a2d" if is_autoregressive(data) else find_family(data, "auto", str(file)).name
        if request.to is None:
            _copy(folder, partial, family)
        elif is_autoregressive(data):
            _write_diffusion(folder, partial, request)
        else:
            raise ModelError(
                f"{request.source} is a diffusion model already. "
                "Fix: leave --to out, or name the autoregressive model."
            )
        return _summary(request, partial)


@contextmanager
def _as_folder(source: str, beside: Path, head_dim: int | None) -> Iterator[Path]:
    """The source as a folder with safetensors; of a GGUF file one is made inside `beside` and removed."""
    path = Path(source).expanduser()
    if not is_gguf(path):
        if not path.is_dir() and not HUB_NAME.fullmatch(source):
            raise ModelError(
                f"{source} is no GGUF file, model folder or hub name. "
                "Fix: correct the path, or write owner/name."
            )
        yield find_folder(source, weights=True)
        return
    made = beside / "unpacked"
    made.mkdir()
    write_plain_folder(path, made, head_dim)
    yield made
    shutil.rmtree(made)


def _copy(folder: Path, partial: Path, family: str) -> None:
    """Configuration, weights and tokenizer, once they have been found to be whole."""
    inspect(folder, family=family)
    load_tokenizer(folder, family=family)
    files = {Path(header.file).name for header in read_headers(folder).values()}
    small = {file.name for pattern in SMALL_FILES for file in folder.glob(pattern) if file.is_file()}
    for name in sorted(files | small):
        shutil.copyfile(folder / name, partial / name)


def _write_diffusion(folder: Path, partial: Path, request: ConvertRequest) -> None:
    shift = None if request.logit_shift is None else int(request.logit_shift)
    loaded = load(
        folder,
        family="a2d",
        block_length=request.block_length,
        logit_shift=shift,
        mask_token=request.mask_token,
    )
    made = save(loaded, partial / "converted", loaded.tokenizer)
    for file in made.iterdir():
        file.rename(partial / file.name)
    made.rmdir()


def _summary(request: ConvertRequest, written: Path) -> str:
    headers = read_headers(written).values()
    dtype = str(next(iter(headers)).torch_dtype).removeprefix("torch.")
    text = f"wrote {request.folder}: {sum(prod(header.shape) for header in headers):,} parameters, {dtype}"
    if request.to is None:
        return text
    tokenizer, spec = load_tokenizer(written)
    attention = "attends fully" if spec.block_length is None else f"attends in blocks of {spec.block_length}"
    return (
        f"{text}; {attention}, logit_shift {spec.logit_shift}, mask token {tokenizer.mask_token} "
        f"(id {spec.mask_id})"
    )
