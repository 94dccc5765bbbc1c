"""Rollouts as completions for reward functions, finished ones and partial decodes; what counts as correct."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

import numpy as np

from rl4dlm.recipe.sections import RewardConfig
from rl4dlm.reward.batch import Groups, Scorable
from rl4dlm.types import Prompt, Rollout, RolloutGroup, Scores

DecodeText = Callable[[Sequence[int]], str]


class Scorer(Protocol):
    """Whatever scores completions: reward workers, or a pool in this process."""

    def score(self, groups: Groups, *, trainer_state: Mapping[str, Any]) -> Scores:
        """Scores in the order of the flattened groups."""
        ...


def trainer_state(updates_done: int, max_steps: int) -> dict[str, int]:
    """What reward functions see as TRL's `trainer_state`.

    Args:
        updates_done: updates that the policy has had: 0 while the first one is under way.
        max_steps: updates of the whole run.
    """
    return {"global_step": updates_done, "max_steps": max_steps}


def score_groups(rewards: Scorer, groups: Sequence[RolloutGroup], state: Mapping[str, Any]) -> Scores:
    """Score every rollout in the canonical order; functions see columns, token ids, trajectories and `state`.

    Args:
        state: see `trainer_state`.
    """
    completions = [[_completion(group.prompt, row) for row in group.rollouts] for group in groups]
    return rewards.score(completions, trainer_state=state)


def _completion(prompt: Prompt, rollout: Rollout) -> Scorable:
    return Scorable(
        prompt.prompt,
        rollout.text,
        dict(prompt.columns),
        rollout.completion_ids[: rollout.completion_len].tolist(),
        {
            "completion_ids": rollout.completion_ids,
            "step_map": rollout.trace.step_map,
            "num_steps": rollout.num_steps,
        },
    )


def score_steps(
    rewards: Scorer,
    groups: Sequence[RolloutGroup],
    decodes: Sequence[Sequence[np.ndarray]],
    decode: DecodeText,
    stop_ids: Collection[int],
    state: Mapping[str, Any],
) -> tuple[list[np.ndarray], Scores | None]:
    """Score partial decodes of every rollout; the same text of one prompt is scored once.

    Args:
        decodes: per rollout in the canonical order, token ids of each text, a stop id at most at its end.
        decode: token ids -> text.
        stop_ids: which end a text.
        state: see `trainer_state`.

    Returns:
        Per rollout float32 `[texts]`, NaN where the reward failed; and the scores of the distinct texts, None
        without any.
    """
    texts = step_texts(groups, decodes, decode, stop_ids)
    if not texts.distinct:
        return [np.zeros(0, dtype=np.float32) for _ in texts.index], None
    scores = score_texts(rewards, texts, state)
    return [scores.reward[row].astype(np.float32) for row in texts.index], scores


@dataclass(frozen=True)
class StepTexts:
    """Partial decodes as texts, those of one prompt without repetition and next to each other."""

    distinct: list[tuple[Prompt, Scorable]]
    index: list[list[int]]
    """Per rollout and step: which of the distinct ones."""


def step_texts(
    groups: Sequence[RolloutGroup],
    decodes: Sequence[Sequence[np.ndarray]],
    decode: DecodeText,
    stop_ids: Collection[int],
) -> StepTexts:
    """The texts of partial decodes; for the arguments see `score_steps`."""
    prompts = [group.prompt for group in groups for _ in group.rollouts]
    places: dict[int, dict[str, int]] = {}  # by prompt, in order of appearance
    found: dict[int, list[tuple[Prompt, Scorable]]] = {}
    known: dict[bytes, str] = {}  # decoding takes longer than looking up
    where: list[list[tuple[int, int]]] = []
    for prompt, row in zip(prompts, decodes, strict=True):
        where.append([])
        place = places.setdefault(prompt.uid, {})
        for ids in map(np.asarray, row):
            key = ids.tobytes()
            text = known[key] if key in known else known.setdefault(key, _text(ids, decode, stop_ids))
            if text not in place:
                place[text] = len(place)
                completion = Scorable(prompt.prompt, text, dict(prompt.columns), ids.tolist())
                found.setdefault(prompt.uid, []).append((prompt, completion))
            where[-1].append((prompt.uid, place[text]))
    first: dict[int, int] = {}
    distinct: list[tuple[Prompt, Scorable]] = []
    for uid, texts in found.items():
        first[uid] = len(distinct)
        distinct += texts
    return StepTexts(distinct, [[first[uid] + place for uid, place in row] for row in where])


def _text(ids: np.ndarray, decode: DecodeText, stop_ids: Collection[int]) -> str:
    kept = ids[:-1] if len(ids) and int(ids[-1]) in stop_ids else ids
    return decode(kept.tolist())


def score_texts(rewards: Scorer, texts: StepTexts, state: Mapping[str, Any]) -> Scores:
    """Scores of the distinct texts; those of one prompt are a group."""
    groups = [
        [completion for _, completion in members]
        for _, members in groupby(texts.distinct, key=lambda pair: pair[0].uid)
    ]
    return rewards.score(groups, trainer_state=state)


NO_VERDICT = (
    "nothing says which answers are correct: reward.accuracy names no function, and by what the functions "
    "declare (RANGE) their sum does not lie in [0, 1].\n"
    "Fix: set reward.accuracy to the name of the function that decides, and reward.correct_threshold to the "
    "value from which on it says yes; or write RANGE = (0.0, 1.0) into the file of a reward that has it."
)
"""For what cannot do without `is_correct`."""


def is_correct(scores: Scores, config: RewardConfig) -> np.ndarray | None:
    """bool `[batch]`: the deciding reward reaches the threshold; a failed reward is not correct.

    None where correctness is not defined, see `decides`.
    """
    if not decides(config, list(scores.components), scores.bounds):
        return None
    value = scores.components[config.accuracy] if config.accuracy else scores.reward
    return np.nan_to_num(value, nan=-np.inf) >= config.correct_threshold - 1e-6


def decides(config: RewardConfig, names: Sequence[str], bounds: Mapping[str, tuple[float, float]]) -> bool:
    """Whether a recipe says what is correct: by `reward.accuracy`, or since the total lies in [0, 1].

    Args:
        config: the recipe's section.
        names: of all its functions, in its order.
        bounds: by name lowest and highest value, of the functions that declare them.
    """
    if config.accuracy:
        return True
    if any(name not in bounds for name in names):
        return False
    weights = config.reward_weights or [1.0] * len(names)
    ends = [sorted(weight * end for end in bounds[name]) for name, weight in zip(names, weights, strict=True)]
    return bool(np.allclose([sum(low for low, _ in ends), sum(high for _, high in ends)], [0.0, 1.0]))
