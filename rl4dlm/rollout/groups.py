"""Prompts to requests, and what came of them back to groups."""

from __future__ import annotations

from collections.abc import Sequence

from rl4dlm.diffusion.seeds import derive_seed
from rl4dlm.rollout.request import Request
from rl4dlm.types import Prompt, Rollout, RolloutGroup


def make_requests(prompts: Sequence[Prompt], num_samples: int, seed: int, *path: int | str) -> list[Request]:
    """Requests for `num_samples` rollouts of each prompt, seeds derived from (run seed, path, prompt,
    sample).

    A prompt that occurs twice (at the seam of two epochs) gets seeds of its own each time.
    """
    seen: dict[int, int] = {}
    requests = []
    for prompt in prompts:
        occurrence = seen.get(prompt.uid, 0)
        seen[prompt.uid] = occurrence + 1
        for sample in range(num_samples):
            rollout_seed = derive_seed(seed, *path, prompt.uid, sample, occurrence)
            requests.append(Request(prompt.uid, sample, rollout_seed, prompt.token_ids))
    return requests


def group_rollouts(prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> list[RolloutGroup]:
    """Rollouts in request order -> one group per prompt."""
    size = len(rollouts) // len(prompts)
    return [
        RolloutGroup(prompt, tuple(rollouts[i * size : (i + 1) * size])) for i, prompt in enumerate(prompts)
    ]
