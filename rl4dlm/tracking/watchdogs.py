"""Guards on what an update reports: nothing to learn from, and values that are not finite."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from rl4dlm.errors import UpdateError


class NothingToLearn:
    """Notices that no group has had two different rewards since the run (or its resume) began.

    Group advantages are then all zero and the policy cannot change, while every other metric looks healthy.
    """

    def __init__(self, window: int = 10) -> None:
        """`window`: updates without a difference after which it speaks, 1 to 10."""
        if not 1 <= window <= 10:
            raise ValueError(f"window = {window} is not in 1..10")
        self._window = window
        self._rewards: list[float] = []
        self._num_unrewarded = 0
        self._done = False

    def observe(self, zero_std: float, reward: float = math.nan, *, not_applicable: float = 0) -> str | None:
        """Take in one update.

        Args:
            zero_std: share of groups whose completions all have the same reward, in [0, 1]; NaN: no group was
                scored, which counts where the functions said None.
            reward: mean reward of the update, named in the warning; NaN: unknown.
            not_applicable: completions for which every function said None.

        Returns:
            The warning, once, when the window is full; otherwise None.
        """
        unrewarded = math.isnan(zero_std) and not_applicable > 0
        if self._done or (math.isnan(zero_std) and not unrewarded):
            return None
        self._rewards.append(reward)
        self._num_unrewarded += unrewarded
        if zero_std < 1.0:
            self._done = True
            return None
        if len(self._rewards) < self._window:
            return None
        self._done = True
        if self._num_unrewarded == self._window:
            return _no_reward_at_all(self._window)
        return _nothing_to_learn(self._window, self._rewards)


def _no_reward_at_all(updates: int) -> str:
    return (
        f"nothing to learn from: in the first {_updates(updates)} every reward function said None (does not "
        "apply) for every completion, so there are no advantages and the policy does not change. Likely "
        "cause and remedy: the functions do not find what they read, such as the column of the reference; "
        "try `rl4dlm rewards test` with rows of the data, and see data.answer_column."
    )


def _nothing_to_learn(updates: int, rewards: list[float]) -> str:
    finite = [reward for reward in rewards if math.isfinite(reward)]
    low, high = (min(finite), max(finite)) if finite else (math.nan, math.nan)
    if not finite:
        found = ""
    elif low == high:
        found = f" (every reward was {low:g})"
    else:
        found = f" (the mean reward lay between {low:.4g} and {high:.4g})"
    return (
        f"nothing to learn from: in the first {_updates(updates)} every group had one and the same "
        f"reward{found}, so all advantages are zero and the policy does not change. Likely causes and "
        "remedies:\n"
        "  - the task is too hard for this model, no completion earns anything: use easier instances, a "
        "longer warm start, or a reward with partial credit;\n"
        "  - the task is solved already, every completion earns everything: use harder instances;\n"
        "  - the reward does not read these completions (format, answer column): try "
        "`rl4dlm rewards test` and look at the sampled completions;\n"
        "  - the completions of a group are identical: raise rollout.temperature or rollout.num_generations."
    )


def _updates(count: int) -> str:
    return "update" if count == 1 else f"{count} updates"


def require_finite(update: int, metrics: Mapping[str, float], names: Iterable[str], detail: str = "") -> None:
    """Stop the run when a value that must be finite is not.

    Args:
        update: named in the message.
        metrics: values by name.
        names: which of them must be finite; each must be there.
        detail: what else helps to find the cause, such as the prompt ids of the batch.

    Raises:
        UpdateError: naming every such metric, its value and the update.
    """
    bad = [f"{name} = {metrics[name]}" for name in names if not math.isfinite(metrics[name])]
    if bad:
        where = f" ({detail})" if detail else ""
        raise UpdateError(
            f"update {update}: {', '.join(bad)} is not finite{where}; the last checkpoint is untouched.\n"
            "Fix: lower trainer.learning_rate or trainer.max_grad_norm, or set trainer.bf16=false; --resume."
        )
