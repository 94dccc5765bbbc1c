"""What the engine is asked for: one completion of one prompt, with the seed of all its draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rl4dlm.decoding import SamplerSpec
from rl4dlm.diffusion.seeds import derive_seed
from rl4dlm.errors import DataError
from rl4dlm.types import DenoiserSpec, Rollout


@dataclass(frozen=True)
class Request:
    """One completion to sample.

    Example: `Request(prompt_uid=7, sample=0, seed=derive_seed(0, "rollout", 3, 7, 0), prompt_ids=(9, 8, 4))`.
    """

    prompt_uid: int
    sample: int
    """Index within its group, from 0."""
    seed: int
    """Root of every draw of this completion, 63 bits."""
    prompt_ids: Sequence[int]
    """Token ids without padding."""
    block_length: int | None = None
    """Block length of this completion; None: the sampler's."""
    steps: int | None = None
    """Denoising steps of this completion; None: the sampler's."""

    def sampler(self, spec: SamplerSpec) -> SamplerSpec:
        """The sampler of this completion; its blocks and steps must fit the canvas."""
        if self.block_length is None and self.steps is None:
            return spec
        return replace(
            spec, block_length=self.block_length or spec.block_length, steps=self.steps or spec.steps
        )


Generate = Callable[[Sequence[Request], SamplerSpec, int], list[Rollout]]
"""Samples requests, in their order, with the weights of a version."""


def mix_block_lengths(
    requests: Sequence[Request], block_lengths: Sequence[int] | None, *path: int | str
) -> list[Request]:
    """A block length for each prompt, drawn uniformly: all completions of a prompt share it.

    Args:
        block_lengths: to draw from; None leaves the requests as they are.
        path: of the seed (run seed, purpose, update); the prompt's uid completes it.
    """
    if block_lengths is None:
        return list(requests)
    draw = {uid: derive_seed(*path, uid) % len(block_lengths) for uid in {r.prompt_uid for r in requests}}
    return [replace(request, block_length=block_lengths[draw[request.prompt_uid]]) for request in requests]


def check_room(requests: Sequence[Request], gen_len: int, spec: DenoiserSpec) -> None:
    """Refuse prompts that leave no room for the canvas.

    Raises:
        DataError: naming the prompt and its length.
    """
    for request in requests:
        length = len(request.prompt_ids) + gen_len
        if length > spec.max_length:
            raise DataError(
                f"prompt uid {request.prompt_uid}: {len(request.prompt_ids)} prompt tokens and a canvas of "
                f"{gen_len} make {length}, and the model's positions end at {spec.max_length}.\n"
                f"Fix: set data.max_prompt_length to {max(0, spec.max_length - gen_len)} or less, "
                "or lower rollout.max_completion_length."
            )


def block_offset(prompt_length: int, spec: DenoiserSpec, block_length: int) -> int:
    """Prompt tokens in the block that the canvas begins in: 0 for full attention."""
    return 0 if spec.attention == "full" else prompt_length % block_length
