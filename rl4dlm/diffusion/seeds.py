"""The seed tree: every random draw derives from (run seed, update, prompt, sample, purpose), never from a
batch.

A rollout's randomness belongs to the rollout, so the same sample comes out alone, batched, in another order,
on another worker or after a restart; corruption masks that are compared come from one seed whatever the
number of ranks.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX2 = -7723592293110705685  # 0x94D049BB133111EB


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from a path of integers and names; stable across processes, platforms and Python
    versions.

    Example: `derive_seed(0, "rollout", update, prompt_uid, sample)`.
    """
    text = "/".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch's is arithmetic)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele et al., 2014) on int64 tensors; multiplication wraps around."""
    x = (x ^ _shift_right(x, 30)) * _MIX1
    x = (x ^ _shift_right(x, 27)) * _MIX2
    return x ^ _shift_right(x, 31)


def counter_uniform(seed: Tensor, *counters: Tensor) -> Tensor:
    """Uniform numbers in (0, 1) as a pure function of integers: no state, no batch shape.

    Args:
        seed: int64 tensor, e.g. `[rows, 1]`.
        counters: int64 tensors broadcastable with `seed`, e.g. the step `[rows, 1]` and the position `[1,
            length]`.

    Returns:
        float64 of the broadcast shape, strictly inside (0, 1), 53 bits of resolution.
    """
    state = _mix(seed + _GOLDEN)
    for counter in counters:
        state = _mix(state ^ _mix(counter * _GOLDEN + _MIX2))
    # The half step is lost to rounding at the top, where the sum would be 1.
    return ((_shift_right(state, 11).to(torch.float64) + 0.5) * 2.0**-53).clamp(max=1.0 - 2.0**-53)
