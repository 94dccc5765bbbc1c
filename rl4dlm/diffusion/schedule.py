"""How many positions each denoising step commits: the linear reveal schedule, for one row and for many."""

from __future__ import annotations

from torch import Tensor


def commit_counts(num_masked: int, num_steps: int) -> list[int]:
    """Share `num_masked` commits over `num_steps` steps as evenly as possible, earlier steps taking the
    remainder.

    Source: LLaDA, arXiv:2502.09992, reference sampler: the linear noise schedule
        expects the
    same number of reveals at every step.

    Example: `commit_counts(32, 5) == [7, 7, 6, 6, 6]`.

    Args:
        num_masked: masked positions when the block begins.
        num_steps: steps that the block is given; with fewer positions than steps the last ones commit
            nothing.

    Returns:
        `num_steps` counts that sum to `num_masked` and differ by at most 1.

    Raises:
        ValueError: `num_masked` is negative or `num_steps` is not positive.
    """
    if num_masked < 0 or num_steps <= 0:
        raise ValueError(f"cannot share {num_masked} commits over {num_steps} steps")
    base, extra = divmod(num_masked, num_steps)
    return [base + (step < extra) for step in range(num_steps)]


def commit_count_at(num_masked: Tensor | int, num_steps: Tensor | int, step: Tensor) -> Tensor:
    """`commit_counts(num_masked, num_steps)[step]` for rows that are in different steps.

    Args:
        num_masked: int64 `[rows]` or one number: masked positions when the row's block began.
        num_steps: int64 `[rows]` or one number: steps of the block, positive.
        step: int64 `[rows]`: step within the block, from 0.

    Returns:
        int64 `[rows]`.
    """
    return num_masked // num_steps + (step < num_masked % num_steps)
