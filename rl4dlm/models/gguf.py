"""GGUF files (llama.cpp's format): what they hold, and the plain folder that is made of one."""

from __future__ import annotations

import importlib.util
import io
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch

from rl4dlm.errors import ModelError
from rl4dlm.models.config_tables import ARCHITECTURES
from rl4dlm.models.tokenizers import save_tokenizer

_MAGIC = b"GGUF"
_TENSOR = re.compile(
    r"(token_embd|output_norm|output)\.weight|blk\.\d+\."
    r"((attn_norm|ffn_norm|attn_(q|k|v|output)|ffn_(gate|up|down)|attn_(q|k)_norm)\.weight|attn_(q|k|v)\.bias)"
)
"""Tensors of the architectures that are read. Others change what the model computes (experts, factors of the
rotary frequencies), and transformers passes over them in silence."""


def is_gguf(path: Path) -> bool:
    """Whether a path is that of a GGUF file, by its name or its first bytes."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return path.suffix == ".gguf" or file.read(len(_MAGIC)) == _MAGIC


def require_convertible(file: Path) -> int | None:
    """Refuse a GGUF file that no diffusion model can be made of; no weight is unpacked.

    Returns:
        The size of a head, where the file says it.

    Raises:
        ModelError: `gguf` is not installed, or the file is damaged, ends early or holds another architecture.
    """
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(
            f"{file}: reading a GGUF file needs the package gguf, which is not installed. "
            "Fix: `pip install 'rl4dlm[gguf]'`, or convert a folder with safetensors."
        )
    from gguf import GGUFReader

    with file.open("rb") as stream:
        if stream.read(len(_MAGIC)) != _MAGIC:
            raise ModelError(f"{file} is no GGUF file. Fix: name a .gguf file, a model folder or a hub name.")
    with _damage_told(file):
        reader = GGUFReader(str(file))  # maps every tensor: what lies beyond the end of the file fails here
        stated = reader.get_field("general.architecture")
        architecture = None if stated is None else stated.contents()
        part = reader.get_field("split.count")
        num_parts = 1 if part is None else int(part.contents())
        scaling = reader.get_field(f"{architecture}.rope.scaling.type")
        stated = reader.get_field(f"{architecture}.attention.key_length")
        head_dim = None if stated is None else int(stated.contents())
        scaled = None if scaling is None else scaling.contents()
        unknown = next((t.name for t in reader.tensors if not _TENSOR.fullmatch(t.name)), None)
    if num_parts > 1:
        raise ModelError(
            f"{file} is one of {num_parts} parts. Fix: join them (llama.cpp's `gguf-split --merge`) first."
        )
    if architecture not in ARCHITECTURES:
        raise ModelError(
            f"{file}: the architecture {architecture!r} cannot be converted "
            f"({', '.join(ARCHITECTURES)} can). Fix: use a model of one of these."
        )
    if unknown is not None or scaled not in (None, "none"):
        what = f"the tensor {unknown}" if unknown is not None else f"rotary angles scaled by {scaled!r}"
        raise ModelError(
            f"{file}: {what} would be lost in the conversion. "
            "Fix: convert the model's folder with safetensors."
        )
    return head_dim


def write_plain_folder(file: Path, folder: Path, head_dim: int | None) -> None:
    """Unpack a GGUF file into config.json, float32 safetensors, tokenizer and chat template.

    transformers does the reading; quantised weights are unpacked, or they could not be trained.

    Args:
        folder: exists and is empty.
        head_dim: see `require_convertible`; transformers does not read it.

    Raises:
        ModelError: the file cannot be read, or holds no tokenizer.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    options: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    with _damage_told(file), _quiet():
        config = AutoConfig.from_pretrained(str(file.parent), **options)
        if head_dim is not None:
            config.head_dim = head_dim
        more = {"config": config, "dtype": torch.float32, "output_loading_info": True, **_unpacked()}
        loaded: Any = AutoModelForCausalLM.from_pretrained(str(file.parent), **options, **more)
        model, told = loaded
        if told["missing_keys"]:  # transformers fills these with random numbers
            raise ValueError(f"{min(told['missing_keys'])} is missing")
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), **options)
    vars(model.config).pop("_model_name_or_path", None)  # the name inside the file, no key of config.json
    with _quiet():
        model.save_pretrained(str(folder))
    save_tokenizer(tokenizer, folder)


def _unpacked() -> dict[str, Any]:
    """What asks transformers for plain weights; versions without the setting always give them."""
    import transformers

    config = getattr(transformers, "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}


@contextmanager
def _damage_told(file: Path) -> Iterator[None]:
    """Whatever the readers raise over a file's content, as one message; they check none of it themselves."""
    try:
        yield
    except (ModelError, MemoryError, ImportError):
        raise
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"{file} is truncated or damaged, or has no model that transformers reads ({reason}). "
            "Fix: download it again."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers draws progress bars, one whatever it is told, and warns of what is asked for here."""
    from transformers.utils import logging as theirs

    bars, level = theirs.is_progress_bar_enabled(), theirs.get_verbosity()
    theirs.disable_progress_bar()
    theirs.set_verbosity(logging.ERROR)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        theirs.set_verbosity(level)
        if bars:
            theirs.enable_progress_bar()
