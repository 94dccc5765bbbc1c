"""A run's watch over itself: rewards that fail too often, weights that fall apart, and the last good
checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

from rl4dlm.errors import CollapseError, RewardError
from rl4dlm.loops.session import Session
from rl4dlm.recipe import Recipe
from rl4dlm.reward.scores import matters_of, too_many_failures
from rl4dlm.tracking import RunHistory, Sentinel, collapse_message
from rl4dlm.types import Scores


class Health:
    """What has been seen of a run; made anew where it resumes from a checkpoint."""

    def __init__(self, session: Session, recipe: Recipe) -> None:
        self._session, self._recipe = session, recipe
        self._sentinel = self._look_back()

    def look_back(self) -> None:
        """Forget updates after the one that the run stands at."""
        self._sentinel = self._look_back()

    def _look_back(self) -> Sentinel:
        """A sentinel that has seen the updates on file up to where the run stands."""
        history = RunHistory.load(self._session.folder.root)
        rows = [row for row in history.metrics if row["update"] <= self._session.update]
        values = [{name: value for name, value in row.items() if value is not None} for row in rows]
        return Sentinel(self._recipe.sentinel, [(row["update"], row) for row in values])

    def check_rewards(self, scores: Scores, update: int) -> None:
        """Tell of failures, and of what was tried again, that are new.

        Raises:
            RewardError: too many samples failed.
        """
        self._session.tracker.warn_once(matters_of(scores))
        cause = too_many_failures(scores, self._recipe.reward)
        if cause:
            raise RewardError(f"update {update}: {cause}")

    @property
    def good_update(self) -> int | None:
        """The newest update whose weights drew rollouts without a sign of decline; None: nobody watches."""
        return self._sentinel.last_good - 1 if self._recipe.sentinel.enabled else None

    def good_checkpoint(self) -> str:
        """Which checkpoint a run that failed can be taken up from, as a clause."""
        checkpoint = self._session.folder.newest_until(self._sentinel.last_good - 1)
        if checkpoint is None:
            return "no checkpoint was saved while the run was good"
        return f"the last good checkpoint is that of update {checkpoint.update}"

    def check_metrics(self, metrics: Mapping[str, float], update: int) -> None:
        """Stop a run that falls apart, before its weights are evaluated and saved once more.

        Raises:
            CollapseError: it does.
        """
        alarm = self._sentinel.observe(update, metrics)
        if alarm is None:
            return
        folder = self._session.folder
        checkpoint = folder.newest_until(self._sentinel.last_good - 1)
        step = None if checkpoint is None else checkpoint.update
        raise CollapseError(collapse_message(alarm, update, folder.root, step))
