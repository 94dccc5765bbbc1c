"""Longer contexts than a model was trained for, by another base of its rotary angles."""

from __future__ import annotations

import math
from dataclasses import replace

from rl4dlm.errors import ModelError
from rl4dlm.models.network_config import NetworkConfig, released


def ntk_factor(theta: float, dim: int, trained: int, target: int) -> float:
    """What the rotary base is multiplied by, so that positions up to `target` turn no further than seen.

    Source: LongLLaDA, arXiv:2506.14429: of `dim` dimensions,
    `d = 2 ceil(dim/2 log_theta(trained / 2 pi))` have gone through a full period in training; the factor is
    `(target / 2 pi)^(dim / d) / theta`.

    Args:
        theta: base of the rotary angles.
        dim: rotated dimensions of a head.
        trained, target: lengths, tokens.
    """
    seen = 2 * math.ceil(dim / 2 * math.log(trained / (2 * math.pi), theta))
    return (target / (2 * math.pi)) ** (dim / seen) / theta


def lengthened(config: NetworkConfig, max_length: int | None, where: str) -> NetworkConfig:
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
    if config.rope.get("rope_type") != "default":
        raise ModelError(
            f"{where}: the rotary angles of this model cannot be scaled to model.max_length = {max_length}. "
            "Fix: leave model.max_length out."
        )
    theta = config.rope["rope_theta"]
    theta = theta * ntk_factor(theta, config.rotary_dim, trained, max_length)
    fields = released(config.family, config.published).fields
    published = fields["max_position_embeddings"].put(config.published, max_length)
    for spelling, _ in fields["rope_theta"].find(published):  # some writers state it twice
        published = replace(fields["rope_theta"], key=spelling, aliases=()).put(published, theta)
    return replace(
        config,
        rope={**config.rope, "rope_theta": theta},
        max_position_embeddings=max_length,
        published=published,
    )
