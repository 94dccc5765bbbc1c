"""The collapse sentinel: what completions look like, and when a run that falls apart is stopped.

A run collapses when the policy leaves the region where it earns rewards and does not come back: it repeats
itself, writes nothing, is certain of nonsense, or is random again. All numbers stay finite, so nothing else
stops such a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rl4dlm.recipe.sections import SentinelConfig
from rl4dlm.tracking.names import ENTROPY, EOS_SHARE, REPETITION, REWARD, REWARD_MIN, REWARD_SE
from rl4dlm.types import FORCED, SAMPLED, STOP_EOS, Rollout, RolloutGroup, flatten

_NGRAM = 4
_SIGMAS = 5.0  # standard errors by which a fall of the reward must stand out
_TOLERATED = 0.2  # share of the best reward that may be lost before the other signals count
_FEWEST = 3  # updates that an alarm needs


def completion_health(groups: Sequence[RolloutGroup], reward: np.ndarray) -> dict[str, float]:
    """What the completions of one update say about the policy's state.

    Args:
        groups: the update's rollouts.
        reward: float `[batch]` in the order of the flattened groups; NaN where a reward failed.

    Returns:
        `completions/repetition`, `completions/eos_share`, `entropy`; and, where any reward is known,
        `reward/min` and `reward/standard_error` (prompts are the independent unit).
    """
    rollouts = flatten(groups)
    metrics = {
        REPETITION: float(np.mean([repetition(text_ids(rollout)) for rollout in rollouts])),
        EOS_SHARE: 1 - sum(map(text_length, rollouts)) / sum(len(r.completion_ids) for r in rollouts),
        ENTROPY: surprisal(rollouts),
    }
    if not np.isfinite(reward).any():
        return metrics
    per_group = np.split(reward, np.cumsum([len(group.rollouts) for group in groups])[:-1])
    means = np.array([np.nanmean(values) for values in per_group if np.isfinite(values).any()])
    spread = float(means.std(ddof=1)) if len(means) > 1 else 0.0
    return metrics | {REWARD_MIN: float(np.nanmin(reward)), REWARD_SE: spread / len(means) ** 0.5}


def text_length(rollout: Rollout) -> int:
    """Tokens before the first stop id."""
    return rollout.completion_len - (rollout.stop_reason == STOP_EOS)


def text_ids(rollout: Rollout) -> np.ndarray:
    """The tokens before the first stop id, int32."""
    return rollout.completion_ids[: text_length(rollout)]


def repetition(ids: np.ndarray, n: int = _NGRAM) -> float:
    """Share of a text's n-grams that occurred in it before, in [0, 1); 0 for a text of n tokens or fewer.

    Example: 1 2 3 4 1 2 3 4 has five 4-grams, the last of which is the first again: 0.2.
    """
    total = len(ids) - n + 1
    if total < 2:
        return 0.0
    return 1 - len(np.unique(np.lib.stride_tricks.sliding_window_view(ids, n), axis=0)) / total


def surprisal(rollouts: Sequence[Rollout]) -> float:
    """Mean of -log p over the drawn tokens up to and including the first stop id, nats per token: an estimate
    of the entropy of what was committed, from what the sampler recorded."""
    values = []
    for rollout in rollouts:
        kind = rollout.trace.kind[: rollout.completion_len]
        drawn = (kind == SAMPLED) | (kind == FORCED)
        values.append(rollout.trace.rollout_logp[: rollout.completion_len][drawn])
    every = np.concatenate(values)
    return float(-every.mean(dtype=np.float64)) if len(every) else 0.0


@dataclass(frozen=True)
class Alarm:
    """A signal that has left its range."""

    metric: str
    before: float
    """What it was when it was good: the best window for the reward, the first for the others."""
    now: float
    """Mean over the last window."""
    meaning: str
    num_updates: int
    """Updates of that window."""


def collapse_message(alarm: Alarm, update: int, folder: Path, checkpoint: int | None) -> str:
    """What a stopped run says.

    Args:
        folder: of the run.
        checkpoint: update of the last good checkpoint; None: there is none.
    """
    kept, way_back, resume = "no checkpoint was saved while the run was good", "start again", "--resume"
    if checkpoint is not None:
        kept = f"the last good checkpoint is that of update {checkpoint}"
        way_back = (
            f"write it out (rl4dlm export {folder} FOLDER --step {checkpoint}) and start from it "
            "(model.path=FOLDER model.init=null warm_start=null)"
        )
        resume = f"--resume step={checkpoint}"
    return (
        f"update {update}: the policy has collapsed: {alarm.meaning}. {alarm.metric} went from "
        f"{alarm.before:.4g} to {alarm.now:.4g}, the mean of the last {alarm.num_updates} updates; {kept}.\n"
        f"Fix: {way_back} under another run.name with a lower trainer.learning_rate, fewer "
        "algorithm.num_iterations, or more algorithm.beta where the method has it. To continue as it is: "
        f"{resume} sentinel.enabled=false."
    )


class Sentinel:
    """Watches the metrics of a run, update by update.

    Decisions depend on the updates that it has seen alone, so a resumed run that feeds it the recorded ones
    decides as an uninterrupted run would.
    """

    def __init__(
        self, settings: SentinelConfig, history: Sequence[tuple[int, Mapping[str, float]]] = ()
    ) -> None:
        """
        Args:
            settings: the recipe's thresholds.
            history: (update, metrics) of earlier updates, oldest first.
        """
        self._settings = settings
        self._recent: list[Mapping[str, float]] = []
        self._first: dict[str, float] = {}
        self._best: tuple[float, float] | None = None  # the best window's reward, and an update's noise
        self._floor = np.inf
        self.last_good = 0
        """The newest update whose rollouts showed no sign of decline; the weights before it are good."""
        for update, metrics in history:
            self.observe(update, metrics)

    def observe(self, update: int, metrics: Mapping[str, float]) -> Alarm | None:
        """Take in one update.

        Args:
            metrics: those of the update; what is missing is not judged.

        Returns:
            The first alarm, when the last `window` updates are out of range, else None.
        """
        if not self._settings.enabled:
            self.last_good = update
            return None
        self._recent = [*self._recent, metrics][-self._settings.window :]
        self._floor = min(self._floor, metrics.get(REWARD_MIN, np.inf))
        for name in (REPETITION, EOS_SHARE, ENTROPY):
            if name in metrics:
                self._first.setdefault(name, metrics[name])
        alarm = self._judge(self._recent, 1.0)
        # Half of the way, in this update and in the window: a lucky update amid bad ones is not good.
        if self._judge([metrics], 0.5) is None and self._judge(self._recent, 0.5) is None:
            self.last_good = update
        mean = _mean(self._recent, REWARD)
        if mean is not None and (self._best is None or mean > self._best[0]):
            self._best = (mean, _mean(self._recent, REWARD_SE) or 0.0)
        return alarm if len(self._recent) >= min(_FEWEST, self._settings.window) else None

    def _judge(self, recent: Sequence[Mapping[str, float]], share: float) -> Alarm | None:
        """The first signal that has gone `share` of the way to its bound."""
        alarm = self._reward(recent, share)
        if alarm is not None or self._thrives(recent):
            return alarm
        for check in (self._repeats, self._empties, self._certain, self._random):
            alarm = check(recent, share)
            if alarm is not None:
                return alarm
        return None

    def _reward(self, recent: Sequence[Mapping[str, float]], share: float) -> Alarm | None:
        """The reward has lost a share of what it had above the lowest reward of any completion."""
        now, drop = _mean(recent, REWARD), self._settings.reward_drop
        if now is None or self._best is None or drop is None:
            return None
        best, noise = self._best
        lost, bound = best - now, drop * (best - self._floor)
        if bound > 0 and lost > share * max(bound, _SIGMAS * noise / len(recent) ** 0.5):
            return Alarm(REWARD, best, now, "it has lost what it had learnt", len(recent))
        return None

    def _thrives(self, recent: Sequence[Mapping[str, float]]) -> bool:
        """Something is earned, and little of the best reward is lost: answers may be short, alike and
        certain."""
        now = _mean(recent, REWARD)
        if now is None or self._best is None:
            return False
        best, noise = self._best
        return now > self._floor + noise and best - now <= _TOLERATED * (best - self._floor)

    def _repeats(self, recent: Sequence[Mapping[str, float]], share: float) -> Alarm | None:
        rise = self._settings.repetition_rise
        return self._beyond(recent, REPETITION, rise, share, "completions repeat themselves")

    def _random(self, recent: Sequence[Mapping[str, float]], share: float) -> Alarm | None:
        rise = self._settings.entropy_rise
        return self._beyond(recent, ENTROPY, rise, share, "tokens are drawn nearly at random")

    def _beyond(
        self,
        recent: Sequence[Mapping[str, float]],
        name: str,
        rise: float | None,
        share: float,
        meaning: str,
    ) -> Alarm | None:
        now, first = _mean(recent, name), self._first.get(name)
        if now is None or first is None or rise is None or now - first <= share * rise:
            return None
        return Alarm(name, first, now, meaning, len(recent))

    def _empties(self, recent: Sequence[Mapping[str, float]], share: float) -> Alarm | None:
        """What is left of the text."""
        now, first, left = _mean(recent, EOS_SHARE), self._first.get(EOS_SHARE), self._settings.text_left
        if now is None or first is None or left is None or 1 - now >= (1 - first) * _bound(left, share):
            return None
        return Alarm(EOS_SHARE, first, now, "completions are nearly empty", len(recent))

    def _certain(self, recent: Sequence[Mapping[str, float]], share: float) -> Alarm | None:
        now, first, left = _mean(recent, ENTROPY), self._first.get(ENTROPY), self._settings.entropy_left
        if now is None or first is None or left is None or now >= first * _bound(left, share):
            return None
        return Alarm(ENTROPY, first, now, "nothing is explored any more", len(recent))


def _bound(left: float, share: float) -> float:
    """`share` of the way from all to `left`."""
    return 1 - share * (1 - left)


def _mean(recent: Sequence[Mapping[str, float]], name: str) -> float | None:
    """Over the updates that have the metric; None without any."""
    values = [metrics[name] for metrics in recent if name in metrics and np.isfinite(metrics[name])]
    return float(np.mean(values)) if values else None
