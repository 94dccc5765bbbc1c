"""Evaluation: seeds that belong to the prompt, what counts as correct, and the figures made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tiny import tiny_denoiser, tiny_rollout

from rl4dlm.decoding import SamplerSpec
from rl4dlm.loops.evaluate import evaluate, verify_steps
from rl4dlm.recipe import load_recipe
from rl4dlm.recipe.sections import RewardConfig
from rl4dlm.reward.batch import Groups
from rl4dlm.reward.rollout_scores import is_correct, score_steps
from rl4dlm.rollout import Request
from rl4dlm.rollout.groups import group_rollouts, make_requests
from rl4dlm.types import Predictions, Prompt, Rollout, Scores

NAN = float("nan")


def prompts_of(*uids: int) -> list[Prompt]:
    return [Prompt(uid, f"question {uid}", f"text {uid}", (0, 1), {"answer": str(uid)}) for uid in uids]


def seeds(requests: Sequence[Request]) -> dict[tuple[int, int], int]:
    return {(request.prompt_uid, request.sample): request.seed for request in requests}


def test_every_sample_has_a_seed_of_its_own() -> None:
    requests = make_requests(prompts_of(*range(40)), 8, 0, "rollout", 1)
    assert [request.sample for request in requests[:9]] == [0, 1, 2, 3, 4, 5, 6, 7, 0]
    assert len({request.seed for request in requests}) == 320


def test_a_seed_belongs_to_prompt_and_sample_not_to_the_batch() -> None:
    alone = seeds(make_requests(prompts_of(3), 2, 0, "evaluation"))
    batch = seeds(make_requests(prompts_of(9, 3, 5), 4, 0, "evaluation"))
    shuffled = seeds(make_requests(prompts_of(5, 9, 3), 4, 0, "evaluation"))
    assert alone.items() <= batch.items() and batch == shuffled


def test_run_seed_and_purpose_change_every_draw() -> None:
    draws = [
        set(seeds(make_requests(prompts_of(1, 2), 2, seed, *path)).values())
        for seed, path in [
            (0, ("rollout", 1)),
            (1, ("rollout", 1)),
            (0, ("rollout", 2)),
            (0, ("evaluation",)),
        ]
    ]
    assert len(set.union(*draws)) == 16


def test_a_prompt_that_occurs_twice_in_a_batch_is_not_drawn_twice() -> None:
    requests = make_requests(prompts_of(7, 8, 7), 3, 0, "rollout", 1)
    assert len({request.seed for request in requests}) == 9
    # Its first occurrence draws what it would draw alone.
    assert requests[:3] == make_requests(prompts_of(7), 3, 0, "rollout", 1)


def test_rollouts_are_grouped_in_request_order() -> None:
    drawn = [tiny_rollout([0], [1, 2], uid=uid, sample=sample) for uid in (4, 6) for sample in range(3)]
    groups = group_rollouts(prompts_of(4, 6), drawn)
    assert [group.prompt.uid for group in groups] == [4, 6]
    assert [[(r.prompt_uid, r.sample) for r in group.rollouts] for group in groups] == [
        [(4, 0), (4, 1), (4, 2)],
        [(6, 0), (6, 1), (6, 2)],
    ]


def scores_of(reward: Sequence[float], **components: Sequence[float]) -> Scores:
    values = np.array(reward, dtype=np.float32)
    named = {name: np.array(v, dtype=np.float32) for name, v in components.items()}
    named = named or {"r": values}
    return Scores(values, named, {}, np.isnan(values), bounds=dict.fromkeys(named, (0.0, 1.0)))


def test_a_failed_reward_is_not_correct_and_rounding_is_forgiven() -> None:
    config = RewardConfig(functions=["sort"])
    scores = scores_of([1.0, 0.9999999, 0.99, NAN, 2.0, -np.inf])
    assert is_correct(scores, config).tolist() == [True, True, False, False, True, False]


def test_the_recipe_may_name_the_reward_that_decides() -> None:
    config = RewardConfig(functions=["sort", "format"], accuracy="format", correct_threshold=0.5)
    scores = scores_of([3, 3, 0, NAN], sort=[3, 2.6, 0, NAN], format=[0, 0.4, 0.5, NAN])
    assert is_correct(scores, config).tolist() == [False, False, True, False]


@pytest.mark.parametrize(
    ("bounds", "weights", "defined"),
    [
        ({"a": (0, 1), "b": (0, 1)}, [0.8, 0.2], True),  # their sum lies in [0, 1]
        ({"a": (0, 1), "b": (0, 1)}, None, False),  # in [0, 2]: 1 may be half of the marks
        ({"a": (0, 1), "b": (0, 1)}, [2.0, -1.0], False),  # in [-1, 2]
        ({"a": (0, 1), "b": (-1, 0)}, None, False),
        ({"a": (0, 1)}, [1.0, 0.0], False),  # b says nothing
        ({"a": (0, 0.5), "b": (0, 0.5)}, None, True),
    ],
)
def test_correct_is_defined_where_the_total_lies_between_0_and_1(
    bounds: dict[str, tuple[float, float]], weights: list[float] | None, defined: bool
) -> None:
    config = RewardConfig(functions=["a", "b"], reward_weights=weights)
    values = np.ones(2, np.float32)
    scores = Scores(values, {"a": values, "b": values}, {}, np.zeros(2, bool), bounds=bounds)
    assert (is_correct(scores, config) is not None) == defined
    named = config.model_copy(update={"accuracy": "a"})
    assert is_correct(scores, named).tolist() == [True, True]


class FakePool:
    """Answers `generate` with one-token rollouts, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[Request], SamplerSpec, int]] = []

    def generate(self, requests: Sequence[Request], spec: SamplerSpec, version: int) -> list[Rollout]:
        self.asked.append((list(requests), spec, version))
        return [tiny_rollout(r.prompt_ids, [1, 3, 3], uid=r.prompt_uid, sample=r.sample) for r in requests]


class FakeRewards:
    """Correct is: greedily prompts 0 and 1; when sampled only sample 2 of prompt 0 and all of prompt 3. The
    reward of prompt 2 fails."""

    def __init__(self) -> None:
        self.states: list[dict[str, int]] = []

    def score(self, groups: Groups, *, trainer_state: dict[str, int]) -> Scores:
        self.states.append(trainer_state)
        rows = [row for group in groups for row in group]
        uids = [int(row.columns["answer"]) for row in rows]
        assert [row.prompt for row in rows] == [f"question {uid}" for uid in uids]
        assert {"completion_ids", "step_map", "num_steps"} <= rows[0].trajectory.keys()
        # The canvas is 1 3 3, and 3 ends the text.
        assert rows[0].token_ids == [1, 3] and rows[0].trajectory["completion_ids"].tolist() == [1, 3, 3]
        assert [len(group) for group in groups] == [len(uids) // 4] * 4
        if len(uids) == 4:
            return scores_of([1.0, 1.0, NAN, 0.25])
        return scores_of([0.0, 0, 1, 0] + [0.0] * 4 + [NAN] * 4 + [1.0] * 4)


def test_an_evaluation_is_greedy_accuracy_and_pass_at_k_with_the_settings_beside_it() -> None:
    recipe = load_recipe("quickstart", ["eval.num_samples=4", "eval.temperature=0.7"])
    pool, rewards = FakePool(), FakeRewards()
    found = evaluate(pool.generate, rewards, prompts_of(0, 1, 2, 3), recipe, version=5, update=40)

    assert found.metrics == pytest.approx(
        {
            "eval/greedy_accuracy": 0.5,
            # Wilson: z^2 = 3.8415; (0.5 + z^2 / 8 +- z sqrt(1 / 16 + z^2 / 64)) / (1 + z^2 / 4)
            "eval/greedy_accuracy_ci95_low": 0.150036,
            "eval/greedy_accuracy_ci95_high": 0.849964,
            # Of the three that are known: (1 + 1 + 0.25) / 3 +- 1.96 * 0.4330 / sqrt(3).
            "eval/greedy_reward": 0.75,
            "eval/greedy_reward_ci95_low": 0.2600,
            "eval/greedy_reward_ci95_high": 1.2400,
            "eval/mean_length": 2,
            "eval/nfe_per_sample": 2,
            "eval/num_prompts": 4,
            # Of 1/4, 0, 0, 1 the mean +- 1.96 * 0.4732 / 2, no further than 0.
            "eval/avg@4": 5 / 16,
            "eval/avg@4_ci95_low": 0.0,
            "eval/avg@4_ci95_high": 0.776229,
            "eval/pass@4": 2 / 4,
            "eval/pass@4_ci95_low": 0.150036,
            "eval/pass@4_ci95_high": 0.849964,
        },
        abs=1e-4,
    )
    (greedy, greedy_spec, _), (sampled, sampled_spec, version) = pool.asked
    assert (len(greedy), len(sampled), version) == (4, 16, 5)
    assert (greedy_spec.temperature, sampled_spec.temperature) == (0, 0.7)
    assert found.decode["greedy"]["temperature"] == 0 and found.decode["sampled"]["k"] == 4
    assert [row.correct for row in found.samples] == [True, True, False, False]
    assert {row.update for row in found.samples} == {40}
    assert rewards.states == [{"global_step": 40, "max_steps": recipe.trainer.max_steps}] * 2


def test_without_a_verdict_the_evaluation_is_the_mean_reward_with_its_interval() -> None:
    recipe = load_recipe("quickstart", ["eval.num_samples=2"])
    found = evaluate(
        FakePool().generate, CountingRewards(), prompts_of(0, 1, 2, 3), recipe, version=0, update=0
    )
    assert not any("accuracy" in name or "pass@" in name or "/avg@" in name for name in found.metrics)
    assert {"eval/greedy_reward", "eval/avg_reward@2"} <= found.metrics.keys()
    assert [row.correct for row in found.samples] == [None] * 4


def test_one_sample_means_greedy_only() -> None:
    pool = FakePool()
    recipe = load_recipe("quickstart", ["eval.num_samples=1"])
    found = evaluate(pool.generate, FakeRewards(), prompts_of(0, 1, 2, 3), recipe, version=0, update=0)
    assert len(pool.asked) == 1 and not any("@" in name for name in found.metrics)


def test_evaluations_of_one_run_draw_the_same_samples() -> None:
    recipe, pool = load_recipe("quickstart"), FakePool()
    for update in (0, 40):
        evaluate(pool.generate, FakeRewards(), prompts_of(0, 1, 2, 3), recipe, version=update, update=update)
    (first, _, _), _, (again, _, _), _ = pool.asked
    assert first == again


class CountingRewards:
    """Rewards a text by its length; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[tuple[Any, str, list[int]]]] = []

    def score(self, groups: Groups, *, trainer_state: Mapping[str, int]) -> Scores:
        self.asked += [[(row.prompt, row.text, list(row.token_ids)) for row in group] for group in groups]
        values = np.array([len(row.text) for group in groups for row in group], dtype=np.float32)
        return Scores(values, {"length": values}, {}, np.zeros(len(values), dtype=bool))


class PredictingPool(FakePool):
    """Rollouts of two steps: the first predicts `2 2 end`, the second, after `1` is committed, `1 1 end`."""

    def generate(self, requests: Sequence[Request], spec: SamplerSpec, version: int) -> list[Rollout]:
        assert spec.record_predictions
        drawn = super().generate(requests, spec, version)
        made = Predictions(
            ptr=np.int32([0, 3, 5]),
            token=np.int32([2, 2, 3, 1, 3]),
            logp=np.zeros(5, np.float32),
            confidence=np.ones(5, np.float32),
        )
        return [replace(r, trace=replace(r.trace, predictions=made)) for r in drawn]


def test_every_step_of_a_decode_is_verified_and_the_last_is_the_answer() -> None:
    # A text is rewarded by its length, and 2 is correct: so is the first step's answer, not the finished one.
    rewards, prompts = CountingRewards(), prompts_of(1, 2)
    recipe = load_recipe("quickstart", ["reward.correct_threshold=2", "reward.accuracy=length"])
    spec = SamplerSpec.from_config(recipe.rollout, temperature=0.0)
    texts = {(2, 2): "ab", (1, 1): "a"}
    verdicts, scores = verify_steps(
        PredictingPool().generate,
        rewards,
        prompts,
        recipe,
        spec,
        model=tiny_denoiser().spec,
        decode=lambda ids: texts[tuple(ids)],
        version=0,
    )
    assert [row.tolist() for row in verdicts] == [[True, False], [True, False]]
    assert rewards.asked == [
        [(f"question {uid}", "ab", [2, 2, 3]), (f"question {uid}", "a", [1, 1, 3])] for uid in (1, 2)
    ]
    assert len(scores.reward) == 4


def test_partial_decodes_of_one_prompt_are_scored_once_per_distinct_text() -> None:
    rewards, prompts = CountingRewards(), prompts_of(1, 2)
    rollouts = [tiny_rollout([0, 1], [1, 2, 3], uid=1 + i // 2, sample=i % 2) for i in range(4)]
    groups = group_rollouts(prompts, rollouts)
    ids = [np.array(row) for row in ([5], [5, 6], [5], [5, 6, 7, 9])]  # 9 ends a text
    decodes = [ids[:3], [ids[1], ids[3]], [ids[0]], []]
    values, scores = score_steps(
        rewards,
        groups,
        decodes,
        lambda tokens: "x" * len(tokens),
        (9,),
        {"global_step": 7},
    )
    assert [row.tolist() for row in values] == [[1.0, 2.0, 1.0], [2.0, 3.0], [1.0], []]
    assert rewards.asked == [
        [("question 1", "x", [5]), ("question 1", "xx", [5, 6]), ("question 1", "xxx", [5, 6, 7, 9])],
        [("question 2", "x", [5])],
    ]
    assert scores is not None and len(scores.reward) == 4
