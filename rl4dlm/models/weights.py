"""Tensors in safetensors files: headers without weights, exact agreement of names, streaming, shards."""

from __future__ import annotations

import json
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rl4dlm.errors import ModelError
from rl4dlm.recipe.bounded import Unreadable, parse_json

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_MAX_HEADER_BYTES = 100_000_000
"""What safetensors itself allows."""
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class TensorHeader:
    """What a safetensors header says about one tensor."""

    file: str
    """The file, for messages and for opening."""
    dtype: str
    """Safetensors' name: F32, BF16, ..."""
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Size of the data."""
        return prod(self.shape) * _DTYPES[self.dtype].itemsize

    @property
    def torch_dtype(self) -> torch.dtype:
        return _DTYPES[self.dtype]


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a model folder.

    Raises:
        ModelError: the file is missing, cannot be read, or does not hold an object.
    """
    try:
        data = parse_json(file.read_bytes(), finite=True)
    except FileNotFoundError:
        raise ModelError(
            f"{file} is missing. "
            "Fix: give a folder in Hugging Face layout (config.json, *.safetensors, tokenizer.json)."
        ) from None
    except (OSError, Unreadable) as error:
        raise ModelError(f"{file} cannot be read ({error}). Fix: download or write the file again.") from None
    if not isinstance(data, dict):
        raise ModelError(f"{file} holds a {type(data).__name__}, not a JSON object. Fix: download it again.")
    return data


def read_headers(folder: Path) -> dict[str, TensorHeader]:
    """Headers of all tensors of a folder; no weight is read.

    Returns:
        By tensor name, in the order of files and headers.

    Raises:
        ModelError: no safetensors file, pickle format, a file that is missing, truncated or damaged, an index
            that does not say what the files hold, or a dtype that is not a float.
    """
    if (folder / SINGLE_FILE).is_file():
        return _read_header(folder / SINGLE_FILE)
    if (folder / INDEX_FILE).is_file():
        return _read_sharded(folder)
    pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
    if pickles:
        raise ModelError(
            f"{folder}: the weights are in pickle format ({pickles[0]}), which can run code when opened. "
            "Fix: convert them to safetensors (load with the code that wrote them, then "
            "`safetensors.torch.save_file(state_dict, 'model.safetensors')`)."
        )
    raise ModelError(
        f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE}. Fix: download the weights into it."
    )


def _read_sharded(folder: Path) -> dict[str, TensorHeader]:
    index = folder / INDEX_FILE
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(f, str) for f in weight_map.values()):
        raise ModelError(f"{index} has no weight_map from tensors to files. Fix: download the index again.")
    outside = next((f for f in weight_map.values() if Path(f).name != f), None)
    if outside is not None:
        raise ModelError(
            f"{index} puts a tensor into {outside!r}, which is no file of this folder. "
            "Fix: download the index again."
        )
    headers: dict[str, TensorHeader] = {}
    for name in dict.fromkeys(weight_map.values()):
        if not (folder / name).is_file():
            raise ModelError(
                f"{folder / name} is missing, but {INDEX_FILE} names it. Fix: download this shard."
            )
        headers.update(_read_header(folder / name))
    for tensor, name in weight_map.items():
        if tensor not in headers or headers[tensor].file != str(folder / name):
            raise ModelError(
                f"{folder / name}: tensor {tensor} is missing, but {INDEX_FILE} puts it there. "
                "Fix: download index and shards again, from one revision."
            )
    return headers


def _read_header(file: Path) -> dict[str, TensorHeader]:
    """Parse one header and check that the file holds what the header says, and nothing else."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            size = file.stat().st_size
            if length > size - 8:
                raise ValueError("the file ends inside its header")
            if length > _MAX_HEADER_BYTES:
                raise ValueError(
                    f"its header has {length:,} bytes; {_MAX_HEADER_BYTES:,} is the most there is"
                )
            entries = parse_json(stream.read(length))
        entries.pop("__metadata__", None)
        headers = {name: _checked(file, name, entry) for name, entry in entries.items()}
        _require_extents(headers, [tuple(entry["data_offsets"]) for entry in entries.values()])
        end = sum(header.num_bytes for header in headers.values())
        if 8 + length + end != size:
            raise ValueError(f"{size} bytes, its header promises {8 + length + end}")
        return headers
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError, IndexError) as error:
        raise _damaged(file, error) from None


def _checked(file: Path, name: str, entry: Mapping[str, Any]) -> TensorHeader:
    dtype, shape = entry["dtype"], entry["shape"]
    if dtype not in _DTYPES:
        raise ModelError(
            f"{file}: tensor {name} has dtype {dtype}; only {', '.join(_DTYPES)} can be trained. "
            "Fix: use the checkpoint that is not quantised."
        )
    if not isinstance(shape, list) or any(type(size) is not int or size < 0 for size in shape):
        raise ValueError(f"tensor {name} has the shape {shape}")
    return TensorHeader(str(file), dtype, tuple(shape))


def _require_extents(headers: Mapping[str, TensorHeader], extents: Sequence[tuple[int, ...]]) -> None:
    """Tensors lie one after another, each as long as its shape says.

    Raises:
        ValueError: they do not.
    """
    place = 0
    for (begin, end), (name, header) in sorted(
        zip(extents, headers.items(), strict=True), key=lambda p: p[0]
    ):
        if begin != place or end != begin + header.num_bytes:
            raise ValueError(
                f"tensor {name} of shape {list(header.shape)} needs {header.num_bytes} bytes from {place}, "
                f"and lies at {begin} to {end}"
            )
        place = end


def _damaged(file: Path | str, error: Exception) -> ModelError:
    return ModelError(f"{file} is truncated or damaged ({error}). Fix: download or save this file again.")


def require_same_tensors(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], where: Mapping[str, str]
) -> None:
    """Exact bijection of names and shapes between a network and what is to be put into it.

    Args:
        expected: shapes by name, of the network.
        found: shapes by name, of the source.
        where: file by tensor name, for messages; the key "" names the source as a whole.

    Raises:
        ModelError: naming the first tensor that is missing, misshapen or unexpected, and how many there are.
    """
    fix = "Fix: use weights and config.json of the same model."
    missing = [name for name in expected if name not in found]
    if missing:
        raise ModelError(f"{where['']}: tensor {missing[0]} is missing ({len(missing)} missing). {fix}")
    for name, shape in expected.items():
        if found[name] != shape:
            raise ModelError(
                f"{where.get(name, where[''])}: tensor {name} has shape {list(found[name])}, "
                f"config.json asks for {list(shape)}. {fix}"
            )
    unexpected = [name for name in found if name not in expected]
    if unexpected:
        name = unexpected[0]
        raise ModelError(
            f"{where.get(name, where[''])}: tensor {name} is unexpected ({len(unexpected)} unexpected). {fix}"
        )


class TensorReader:
    """Reads tensors one at a time, cast, in memory of their own (not the mapped file's).

    One file is open at a time: whoever reads in the order of `headers` opens each once.

    Args:
        headers: by name.
        device, dtype: of the tensors.
        exact: names that are read as float32 whatever `dtype` says.
    """

    def __init__(
        self,
        headers: Mapping[str, TensorHeader],
        *,
        device: str,
        dtype: torch.dtype,
        exact: Collection[str] = (),
    ) -> None:
        self.headers, self.device, self.dtype, self.exact = headers, device, dtype, exact
        self._file: str | None = None
        self._open: Any = None

    def read(self, name: str) -> Tensor:
        """One tensor.

        Raises:
            ModelError: its file cannot be read.
        """
        file = self.headers[name].file
        try:
            if file != self._file:
                self._file, self._open = file, safe_open(file, framework="pt", device="cpu")
            dtype = torch.float32 if name in self.exact else self.dtype
            return self._open.get_tensor(name).to(device=self.device, dtype=dtype, copy=True)
        except (SafetensorError, OSError) as error:
            raise _damaged(file, error) from error


def write_shards(tensors: Mapping[str, Tensor], folder: Path, *, max_shard_bytes: int) -> None:
    """Write tensors in Hugging Face layout: one file, or numbered shards with an index.

    Args:
        tensors: by published name, on any device.
        max_shard_bytes: a shard is closed before it would exceed this; a larger tensor has one of its own.

    Raises:
        OSError, SafetensorError: the disk is full or refuses.
    """
    shards = list(_split(tensors.items(), max_shard_bytes))
    files = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    files = [SINGLE_FILE] if len(shards) == 1 else files
    for file, shard in zip(files, shards, strict=True):
        # clone: safetensors refuses views that share one buffer, as gathered parameters do
        plain = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in shard
        }
        save_file(plain, folder / file, metadata={"format": "pt"})
    if len(shards) > 1:
        weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name, _ in shard}
        total = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _split(items: Iterable[tuple[str, Tensor]], max_shard_bytes: int) -> Iterator[list[tuple[str, Tensor]]]:
    shard: list[tuple[str, Tensor]] = []
    size = 0
    for name, tensor in items:
        if shard and size + tensor.nbytes > max_shard_bytes:
            yield shard
            shard, size = [], 0
        shard.append((name, tensor))
        size += tensor.nbytes
    yield shard
