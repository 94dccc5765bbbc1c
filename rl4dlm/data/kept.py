"""Some of a run's training prompts: those that a filter kept."""

from __future__ import annotations

from collections.abc import Sequence

from rl4dlm.data.order import EpochOrder
from rl4dlm.data.prompts import PromptSource
from rl4dlm.errors import DataError
from rl4dlm.types import Prompt


class KeptPrompts(PromptSource):
    """Training prompts out of another source, each once per epoch; evaluation is the other source's.

    Example: `KeptPrompts(source, [4, 17, 30], seed=0, shuffle=True).batch(0, 2)`
    """

    num_train: int

    def __init__(self, source: PromptSource, kept: Sequence[int], *, seed: int, shuffle: bool) -> None:
        """
        Args:
            source: where the prompts come from.
            kept: their numbers among the source's training prompts, see `training_prompt`.
            seed: the run's.
            shuffle: draw each epoch in a seeded random order.

        Raises:
            DataError: nothing was kept.
        """
        if not kept:
            raise DataError(
                "data.over_denoising: no training prompt was kept.\n"
                "Fix: raise data.over_denoising.num_prompts, or remove the filter: of the prompts tried, the "
                "model solves some and fails at others, but spoils none that it had solved."
            )
        super().__init__(source.renderer)
        self.notes = []
        self.num_train = len(kept)
        self._source, self._kept = source, list(kept)
        self._order = EpochOrder(len(kept), seed=seed, shuffle=shuffle)

    def batch(self, update: int, n: int) -> list[Prompt]:
        if n > self.num_train:
            raise DataError(
                f"data.over_denoising: {self.num_train} training prompts were kept, and one update draws "
                f"rollout.prompts_per_update = {n} distinct ones.\n"
                "Fix: lower rollout.prompts_per_update, or raise data.over_denoising.num_prompts."
            )
        return [training_prompt(self._source, self._kept[i]) for i in self._order.rows(update, n)]

    def eval_prompts(self, n: int | None = None) -> list[Prompt]:
        return self._source.eval_prompts(n)


def training_prompt(source: PromptSource, number: int) -> Prompt:
    """Training prompt `number` of a source, in the order of its first epoch when it is drawn one by one."""
    return source.batch(number, 1)[0]
