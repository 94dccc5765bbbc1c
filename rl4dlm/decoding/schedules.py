"""Schedules: how many positions each step of a block commits, where the sampler fixes it beforehand."""

from __future__ import annotations

from typing import Literal

from rl4dlm.diffusion.schedule import commit_counts

Schedule = Literal["linear", "time_grid"]

# Dream's last time, so that no step has infinite weight.
TIME_EPS = 1e-3


def block_schedule(schedule: Schedule, block_length: int, num_steps: int) -> tuple[int, ...]:
    """Commits of each step of a block; steps that would commit nothing are left out.

    Args:
        schedule: `linear`: LLaDA's even split. `time_grid`: Dream's expected number of reveals, rounded down,
            between the times of a linear grid from 1 to `TIME_EPS`; all that is left on the last step
            (arXiv:2508.15487).
        block_length: tokens.
        num_steps: at most `block_length`.
    """
    counts = (
        commit_counts(block_length, num_steps)
        if schedule == "linear"
        else _time_grid(block_length, num_steps)
    )
    return tuple(count for count in counts if count)


def _time_grid(num_masked: int, num_steps: int) -> list[int]:
    times = [1 - (1 - TIME_EPS) * step / num_steps for step in range(num_steps + 1)]
    counts, left = [], num_masked
    for step in range(num_steps - 1):
        counts.append(int(left * (1 - times[step + 1] / times[step])))
        left -= counts[-1]
    return [*counts, left]
