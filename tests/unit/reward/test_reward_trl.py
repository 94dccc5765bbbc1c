"""TRL's own reward functions give here what they give in TRL."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_rollout

from rl4dlm.recipe.sections import RewardConfig
from rl4dlm.reward.pool import RewardPool
from rl4dlm.reward.rollout_scores import score_groups, trainer_state
from rl4dlm.types import Prompt, RolloutGroup

PLUGIN = """
from trl.rewards import (
    accuracy_reward,
    get_cosine_scaled_reward,
    get_repetition_penalty_reward,
    get_soft_overlong_punishment,
    reasoning_accuracy_reward,
    think_format_reward,
)

overlong = get_soft_overlong_punishment(8, 2)
repetition = get_repetition_penalty_reward(ngram_size=2)
cosine = get_cosine_scaled_reward(max_len=8)

def curriculum(completions, trainer_state, **kwargs):
    return [trainer_state.global_step / trainer_state.max_steps] * len(completions)
"""
STOP = 3
CHAT = [{"role": "user", "content": "What is a half?"}]
TEXTS = [
    "<think>\nhalve it\n</think>\nIt is $\\boxed{\\frac{1}{2}}$",
    "It is $\\boxed{\\frac{1}{2}}$",
    "<think></think> $\\boxed{\\frac{1}{3}}$",
]
# On a canvas of 8: three tokens and the stop id, seven without repetition, eight without an end.
CANVASES = [[0, 1, 2, 3, 3, 3, 3, 3], [0, 1, 0, 2, 1, 2, 3, 3], [0, 0, 0, 0, 0, 0, 0, 0]]


def group_of(prompt: str | list[dict[str, str]], solution: str) -> RolloutGroup:
    rollouts = []
    for sample, (canvas, text) in enumerate(zip(CANVASES, TEXTS, strict=True)):
        drawn = tiny_rollout([0], canvas, uid=1, sample=sample)
        rollouts.append(type(drawn)(**{**vars(drawn), "text": text}))
    return RolloutGroup(Prompt(1, prompt, "p", (0,), {"solution": solution}), tuple(rollouts))


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("trl") / "borrowed.py"
    file.write_text(PLUGIN)
    return file


def scored(plugin: Path, names: Sequence[str], group: RolloutGroup, updates_done: int = 0) -> dict[str, list]:
    config = RewardConfig(functions=[f"{plugin}:{name}" for name in names], timeout_s=60.0)
    with RewardPool(config, load_timeout_s=120.0) as rewards:
        scores = score_groups(rewards, [group], trainer_state(updates_done, 4))
    assert scores.errors == {} and scores.warnings == {}, scores
    return {
        name: np.round(values.astype(float), 4).tolist() for name, values in scores.components.items()
    } | {"extra": scores.extra}


def test_functions_of_chat_completions_and_token_ids(plugin):
    names = (
        "overlong",
        "repetition",
        "cosine",
        "accuracy_reward",
        "reasoning_accuracy_reward",
        "think_format_reward",
        "curriculum",
    )
    found = scored(plugin, names, group_of(CHAT, "$\\frac{1}{2}$"), updates_done=3)
    # 4 <= 8 - 2 tokens; 7 tokens are (6 - 7) / 2; 8 are (6 - 8) / 2.
    assert found["overlong"] == [0.0, -0.5, -1.0]
    # Pairs 01 12 23 differ; of 01 10 02 21 12 23 all differ; of seven 00 one is new: -(1 - 1 / 7).
    assert found["repetition"] == [0.0, 0.0, -0.8571]
    assert found["accuracy_reward"] == [1.0, 1.0, 0.0]
    # Right: 0.5 + 0.25 (1 + cos(4 pi / 8)), 0.5 + 0.25 (1 + cos(7 pi / 8)). Wrong, of 8 tokens: -0.5.
    assert found["cosine"] == [0.75, 0.519, -0.5]
    assert found["reasoning_accuracy_reward"] == [1.0, 0.0, 0.0]
    assert found["think_format_reward"] == [1.0, 0.0, 1.0]
    assert found["curriculum"] == [0.75] * 3
    # TRL's functions log these for the table of completions.
    assert found["extra"]["solution"] == ("$\\frac{1}{2}$",) * 3
    assert len(found["extra"]["answer_parsed"]) == 3


def test_a_reference_that_cannot_be_read_does_not_apply(plugin):
    found = scored(plugin, ["accuracy_reward", "curriculum"], group_of(CHAT, ""))
    assert np.isnan(found["accuracy_reward"]).all() and found["curriculum"] == [0.0] * 3


def test_text_prompts_have_text_completions(tmp_path):
    (tmp_path / "seen.py").write_text(
        "def seen(prompts, completions, completion_ids, **columns):\n"
        "    right = prompts == ['p'] * 3 and all(isinstance(c, str) for c in completions)\n"
        "    return [right * float(len(ids)) for ids in completion_ids]\n"
    )
    assert scored(tmp_path / "seen.py", ["seen"], group_of("p", "s"))["seen"] == [4.0, 7.0, 8.0]
