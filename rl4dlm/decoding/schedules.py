"""Schedules: how many positions each step of a block commits, where the sampler fixes it beforehand."""

from __future__ import annotations

import numpy as np

from rl4dlm.diffusion.schedule import commit_counts
from rl4dlm.recipe.samplers import CountSchedule

# Dream's last time, so that no step has infinite weight.
TIME_EPS = 1e-3

# MaskGIT's least share of masks: no more than nothing is left after the last step.
_LEAST_SHARE = 1e-6


def block_schedule(schedule: CountSchedule, block_length: int, num_steps: int) -> tuple[int, ...]:
    """Commits of each step of a block; steps that would commit nothing are left out.

    Args:
        schedule: `even`: LLaDA's even split. `time_grid`: Dream's expected number of reveals, rounded down,
            between the times of a linear grid from 1 to `TIME_EPS`; all that is left on the last step
            (arXiv:2508.15487). The others: MaskGIT's (arXiv:2202.04200), see `maskgit_counts`.
        block_length: tokens.
        num_steps: at most `block_length`.
    """
    if schedule == "even":
        counts = commit_counts(block_length, num_steps)
    elif schedule == "time_grid":
        counts = _time_grid(block_length, num_steps)
    else:
        counts = maskgit_counts(schedule, block_length, num_steps)
    return tuple(count for count in counts if count)


def _time_grid(num_masked: int, num_steps: int) -> list[int]:
    times = [1 - (1 - TIME_EPS) * step / num_steps for step in range(num_steps + 1)]
    counts, left = [], num_masked
    for step in range(num_steps - 1):
        counts.append(int(left * (1 - times[step + 1] / times[step])))
        left -= counts[-1]
    return [*counts, left]


def maskgit_counts(schedule: CountSchedule, num_masked: int, num_steps: int) -> list[int]:
    """Commits of each step when a share of the masks that falls with progress is left, rounded down.

    Source: MaskGIT, arXiv:2202.04200; MDPO's released decoding, arXiv:2508.13148, which multiplies in
    float32 (so do we: 0.1 of 10 masks is 1, where float64 makes it 0).

    Args:
        schedule: the share as a function of progress r in (0, 1]: `linear` 1 - r, `cosine` cos(pi r / 2),
            `pow2` 1 - r^2, `pow3` 1 - r^3, `log` -log r / log n, `exp` 1 - n^(r - 1), where n is
            `num_masked`.
        num_masked: tokens of the block.
        num_steps: of the block.
    """
    left = [num_masked]
    for step in range(1, num_steps + 1):
        share = np.float32(_share_left(schedule, step / num_steps, num_masked))
        left.append(int(np.floor(np.float32(num_masked) * share)))
    return [before - after for before, after in zip(left, left[1:], strict=False)]


def _share_left(schedule: CountSchedule, progress: float, num_masked: int) -> float:
    """Share of the masks that is left, from 1 down to `_LEAST_SHARE`."""
    if schedule == "linear":
        share = 1 - progress
    elif schedule == "cosine":
        share = float(np.cos(progress * np.pi / 2))
    elif schedule in ("pow2", "pow3"):
        share = 1 - progress ** int(schedule[-1])
    elif schedule == "log":
        share = -float(np.log2(progress)) / max(float(np.log2(num_masked)), _LEAST_SHARE)
    else:
        assert schedule == "exp", schedule
        share = 1 - float(np.exp2(-np.log2(num_masked) * (1 - progress)))
    return min(max(share, _LEAST_SHARE), 1.0)
