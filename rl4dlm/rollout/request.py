"""What the engine is asked for: one completion of one prompt, with the seed of all its draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rl4dlm.decoding import SamplerSpec
from rl4dlm.errors import DataError, RecipeError
from rl4dlm.types import DenoiserSpec


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
        """The sampler of this completion.

        Raises:
            RecipeError: its blocks and steps do not fit the canvas.
        """
        if self.block_length is None and self.steps is None:
            return spec
        return replace(
            spec, block_length=self.block_length or spec.block_length, steps=self.steps or spec.steps
        )


def check_lengths(requests: Sequence[Request], gen_len: int, spec: DenoiserSpec) -> None:
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


def check_blocks(sampler: SamplerSpec, spec: DenoiserSpec) -> None:
    """Refuse blocks that a block-causal model was not made for.

    Raises:
        RecipeError: naming both lengths and the remedy.
    """
    trained = spec.block_length
    if spec.attention == "full" or trained is None:
        return
    if sampler.block_length % trained:
        raise RecipeError(
            f"rollout.block_length = {sampler.block_length} does not fit a block-causal model with blocks of "
            f"{trained}.\nFix: use {trained}, or a multiple of it to enlarge the model's blocks."
        )


def block_offset(prompt_length: int, spec: DenoiserSpec, block_length: int) -> int:
    """Prompt tokens in the block that the canvas begins in: 0 for full attention."""
    return 0 if spec.attention == "full" else prompt_length % block_length
