"""Longer contexts than a model was trained for, by another base of its rotary angles."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rl4dlm.errors import ModelError
from rl4dlm.models.decoder_config import DecoderConfig
from rl4dlm.models.llada_config import LLaDAConfig


def ntk_factor(theta: float, dim: int, trained: int, target: int) -> float:
    """What the rotary base is multiplied by, so that positions up to `target` turn no further than seen.

    Source: LongLLaDA, arXiv:2506.14429 (specs: models 16): of `dim` dimensions,
    `d = 2 ceil(dim/2 log_theta(trained / 2 pi))` have gone through a full period in training; the factor is
    `(target / 2 pi)^(dim / d) / theta`.

    Args:
        theta: base of the rotary angles.
        dim: rotated dimensions of a head.
        trained, target: lengths, tokens.
    """
    seen = 2 * math.ceil(dim / 2 * math.log(trained / (2 * math.pi), theta))
    return (target / (2 * math.pi)) ** (dim / seen) / theta


def lengthened(config: Any, max_length: int | None, where: str) -> Any:
    """A configuration whose positions reach `max_length`; None: as it is.

    Raises:
        ModelError: the positions reach that far already, or the model's angles cannot be scaled.
    """
    if max_length is None:
        return config
    trained = config.max_position_embeddings
    if max_length <= trained:
        raise ModelError(
            f"{where}: the model's positions reach {trained} tokens, and model.max_length = {max_length}. "
            "Fix: leave model.max_length out."
        )
    if isinstance(config, LLaDAConfig):
        theta = config.rope_theta * ntk_factor(config.rope_theta, config.head_dim, trained, max_length)
        changed = {"rope_theta": theta, "max_sequence_length": max_length}
        return replace(config, **changed, published={**config.published, **changed})
    if not isinstance(config, DecoderConfig) or config.rope["rope_type"] != "default":
        raise ModelError(
            f"{where}: the rotary angles of this model cannot be scaled to model.max_length = {max_length}. "
            "Fix: leave model.max_length out."
        )
    theta = config.rope["rope_theta"]
    rope = {**config.rope, "rope_theta": theta * ntk_factor(theta, config.rotary_dim, trained, max_length)}
    return replace(
        config,
        rope=rope,
        max_position_embeddings=max_length,
        published={
            **config.published,
            "max_position_embeddings": max_length,
            **_spelled_as_in(config.published, rope),
        },
    )


def _spelled_as_in(published: Mapping[str, Any], rope: dict[str, Any]) -> dict[str, Any]:
    """Rotary parameters under the keys that a config.json has for them."""
    return {"rope_parameters": rope} if "rope_parameters" in published else {"rope_theta": rope["rope_theta"]}
