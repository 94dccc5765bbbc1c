"""Rollouts as samples for reward functions: completions, partial decodes, and what counts as correct."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from rl4dlm.recipe.sections import RewardConfig
from rl4dlm.types import Prompt, RolloutGroup, Scores


class Scorer(Protocol):
    """Whatever scores samples: reward workers, or a pool in this process."""

    def score(
        self,
        prompts: Sequence[Any],
        completions: Sequence[str],
        columns: Sequence[dict[str, Any]],
        trajectories: Sequence[dict[str, Any]] | None,
        *,
        trainer_state: Mapping[str, Any],
    ) -> Scores:
        """Scores in order."""
        ...


def score_groups(rewards: Scorer, groups: Sequence[RolloutGroup], update: int) -> Scores:
    """Score every rollout in the canonical order; functions see columns, trajectories and the update."""
    pairs = [(group.prompt, rollout) for group in groups for rollout in group.rollouts]
    return rewards.score(
        [prompt.prompt for prompt, _ in pairs],
        [rollout.text for _, rollout in pairs],
        [dict(prompt.columns) for prompt, _ in pairs],
        [
            {"completion_ids": r.completion_ids, "step_map": r.trace.step_map, "num_steps": r.num_steps}
            for _, r in pairs
        ],
        trainer_state={"global_step": update},
    )


def score_steps(
    rewards: Scorer,
    groups: Sequence[RolloutGroup],
    decodes: Sequence[Sequence[np.ndarray]],
    decode: Callable[[Sequence[int]], str],
    update: int,
) -> tuple[list[np.ndarray], Scores | None]:
    """Score partial decodes of every rollout; the same text of one prompt is scored once.

    Args:
        decodes: per rollout in the canonical order, token ids of each text.
        decode: token ids -> text.

    Returns:
        Per rollout float32 `[texts]`, NaN where the reward failed; and the scores of the distinct texts, None
        without any.
    """
    texts = step_texts(groups, decodes, decode)
    if not texts.distinct:
        return [np.zeros(0, dtype=np.float32) for _ in texts.index], None
    scores = score_texts(rewards, texts, update)
    return [scores.reward[row].astype(np.float32) for row in texts.index], scores


@dataclass(frozen=True)
class StepTexts:
    """Partial decodes as texts, those of one prompt without repetition."""

    distinct: list[tuple[Prompt, str]]
    index: list[list[int]]
    """Per rollout and step: which of the distinct ones."""


def step_texts(
    groups: Sequence[RolloutGroup],
    decodes: Sequence[Sequence[np.ndarray]],
    decode: Callable[[Sequence[int]], str],
) -> StepTexts:
    prompts = [group.prompt for group in groups for _ in group.rollouts]
    place: dict[tuple[int, str], int] = {}
    known: dict[bytes, str] = {}  # decoding takes longer than looking up
    texts = StepTexts([], [])
    for prompt, row in zip(prompts, decodes, strict=True):
        texts.index.append([])
        for ids in row:
            key = ids.tobytes()
            text = known[key] if key in known else known.setdefault(key, decode(ids.tolist()))
            if (prompt.uid, text) not in place:
                place[prompt.uid, text] = len(texts.distinct)
                texts.distinct.append((prompt, text))
            texts.index[-1].append(place[prompt.uid, text])
    return texts


def score_texts(rewards: Scorer, texts: StepTexts, update: int) -> Scores:
    return rewards.score(
        [prompt.prompt for prompt, _ in texts.distinct],
        [text for _, text in texts.distinct],
        [dict(prompt.columns) for prompt, _ in texts.distinct],
        None,
        trainer_state={"global_step": update},
    )


def is_correct(scores: Scores, config: RewardConfig) -> np.ndarray:
    """bool `[batch]`: the deciding reward reaches the threshold; a failed reward is not correct."""
    value = scores.components[config.accuracy] if config.accuracy else scores.reward
    return np.nan_to_num(value, nan=-np.inf) >= config.correct_threshold - 1e-6
