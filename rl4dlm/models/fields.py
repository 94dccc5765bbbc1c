"""Typed access to a config.json: every failure names the key and the place it was read from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rl4dlm.errors import ModelError


class Fields:
    """A JSON object whose fields are asked for by name and type.

    Args:
        data: the JSON object of config.json.
        where: file or recipe key that messages name.
        label: kind of model, for the remedy.
    """

    def __init__(self, data: Mapping[str, Any], where: str, label: str) -> None:
        self.data, self.where, self.label = data, where, label

    def get(self, key: str) -> Any:
        if key not in self.data:
            raise ModelError(
                f"{self.where}: required key {key!r} is missing. "
                "Fix: take the config.json that was published with the weights."
            )
        return self.data[key]

    def wrong(self, key: str, what: str) -> ModelError:
        return ModelError(
            f"{self.where}: {key} = {self.data.get(key)!r} {what}. "
            f"Fix: use a {self.label} checkpoint with its published config.json, or correct this key."
        )

    def integer(self, key: str, *, least: int = 1) -> int:
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.wrong(key, f"is not an integer of at least {least}")
        return value

    def number(self, key: str) -> float:
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise self.wrong(key, "is not a positive number")
        return float(value)

    def flag(self, key: str) -> bool:
        value = self.get(key)
        if not isinstance(value, bool):
            raise self.wrong(key, "is neither true nor false")
        return value

    def token(self, key: str, rows: int) -> int:
        value = self.integer(key, least=0)
        if value >= rows:
            raise self.wrong(key, f"lies beyond the {rows} rows of the embedding matrix")
        return value

    def require(self, expected: Mapping[str, Any]) -> None:
        """Each key that is there must have this value: another one means another architecture."""
        for key, value in expected.items():
            if key in self.data and self.data[key] != value:
                raise self.wrong(key, f"is not supported: this implementation needs {value!r}")

    def heads(self, width: int, heads: str, kv_heads: str, head_dim: int | None) -> tuple[int, int, int]:
        """Numbers of query and key heads, and the width of one; `head_dim` None: `width / heads`."""
        num_heads, num_kv_heads = self.integer(heads), self.integer(kv_heads)
        if head_dim is None and width % num_heads:
            raise self.wrong(heads, f"does not divide the width {width}")
        size = width // num_heads if head_dim is None else head_dim
        if size % 2:
            raise self.wrong(heads, f"gives heads of odd width {size}")
        if num_heads % num_kv_heads:
            raise self.wrong(kv_heads, f"does not divide {heads} = {num_heads}")
        return num_heads, num_kv_heads, size
