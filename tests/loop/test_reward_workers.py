"""Rewards in Ray actors: a reward model, a step-wise plug-in and a rule, weighed, over two workers."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from rl4dlm.recipe.sections import ClusterConfig, RewardConfig
from rl4dlm.reward.batch import Scorable
from rl4dlm.reward.pool import RewardPool
from rl4dlm.workers.placement import ray_session, reserve
from rl4dlm.workers.reward_worker import RewardWorkers

pytestmark = pytest.mark.slow

PLUGIN = """
def first_step_share(completions, trajectory, **columns):
    return [sum(step == 0 for step in record["step_map"]) / len(record["step_map"]) for record in trajectory]
"""
TEXTS = ["good", "a much longer one", "b", "12", ""]
COLUMNS = [{"answer": "12"}, {"answer": None}, {"answer": "3"}, {"answer": "12"}, {"answer": "12"}]
STEPS = [[0, 0, 1, 1], [0, 1, 2, 3], [3, 2, 1, 1], [0, 0, 0, 0], [0, 0, 0, 1]]
SHARES = [0.5, 0.25, 0.0, 1.0, 0.75]


def checkpoint(folder: Path) -> str:
    """A random classifier with one logit whose tokens are words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokens = ["[PAD]", "[UNK]", "good", "a", "much", "longer", "one", "b", "12", "p"]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]")
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=len(tokens), num_labels=1, initializer_range=0.5, **sizes)
    BertForSequenceClassification(config).save_pretrained(folder)
    return str(folder)


@contextmanager
def reward_workers(
    config: RewardConfig, count: int, **options: Any
) -> Iterator[tuple[RewardWorkers, list[str]]]:
    """Reward workers on a Ray of their own, and what they say."""
    told: list[str] = []
    cluster = ClusterConfig(num_reward_workers=count)
    with ray_session(cluster, told.append):
        placement = reserve(cluster, told.append)
        workers = RewardWorkers(config, placement.rewards, told.append, **options)
        yield workers, told
        workers.close()
        placement.remove()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RewardConfig:
    folder = tmp_path_factory.mktemp("rewards")
    (folder / "steps.py").write_text(PLUGIN)
    functions: list[Any] = [
        {"path": "reward_model", "kwargs": {"model": checkpoint(folder / "model"), "max_length": 64}},
        f"{folder / 'steps.py'}:first_step_share",
        "sort:sort_exact",
    ]
    return RewardConfig(functions=functions, reward_weights=[2.0, 1.0, 0.5], timeout_s=60.0)


def test_workers_weigh_model_steps_and_rule_and_one_that_dies_is_replaced(config: RewardConfig) -> None:
    groups = [
        [Scorable("p", text, columns, trajectory={"completion_ids": [1, 2, 3, 4], "step_map": steps})]
        for text, columns, steps in zip(TEXTS, COLUMNS, STEPS, strict=True)
    ]
    with RewardPool(config) as pool:
        alone = pool.score(groups)
    with reward_workers(config.model_copy(update={"groups_per_call": 2}), 2) as (workers, told):
        scores = workers.score(groups, trainer_state={"global_step": 0})
        ray.kill(workers.workers[0])
        again = workers.score(groups, trainer_state={"global_step": 0})

    model = scores.components["reward_model"]
    assert len(set(model[:4].tolist())) == 4 and ((model[:4] > 0) & (model[:4] < 1)).all() and model[4] == 0
    np.testing.assert_allclose(model, alone.components["reward_model"], atol=1e-6)
    np.testing.assert_array_equal(scores.components["first_step_share"], np.array(SHARES, np.float32))
    rule = np.array([0, np.nan, 0, 1, 0], np.float32)
    np.testing.assert_array_equal(scores.components["sort_exact"], rule)
    np.testing.assert_allclose(
        scores.reward, 2 * model + np.array(SHARES) + 0.5 * np.nan_to_num(rule), atol=1e-6
    )
    assert scores.errors == {} and not scores.failed.any()
    np.testing.assert_array_equal(again.reward, scores.reward)
    assert "reward worker 0 died and is replaced" in told


GROUPED = """
def whole(completions, prompts):
    return [float(len(completions))] * len(completions)
whole.WHOLE_BATCH = True

def mates(completions, prompts):
    return [float(sum(other == mine for other in prompts)) for mine in prompts]

def has_column(completions, **columns):
    return [float("rare" in columns)] * len(completions)
"""


def test_groups_are_whole_whatever_the_number_of_workers_and_processes(tmp_path: Path) -> None:
    (tmp_path / "grouped.py").write_text(GROUPED)
    functions = [f"{tmp_path / 'grouped.py'}:{name}" for name in ("whole", "mates", "has_column")]
    sizes = [6, 5, 7, 6, 6, 1, 20]
    groups = [[Scorable(f"p{at}", "x") for _ in range(size)] for at, size in enumerate(sizes)]
    groups[0][0] = Scorable("p0", "x", {"rare": 1})  # a column that no row of the second worker has
    expected = [size for size in sizes for _ in range(size)]
    config = RewardConfig(functions=functions, num_processes=2)
    with reward_workers(config, 3) as (workers, _):
        scores = workers.score(groups, trainer_state={"global_step": 0})
    assert scores.components["mates"].tolist() == expected
    assert scores.components["whole"].tolist() == [51.0] * 51
    assert scores.components["has_column"].tolist() == [1.0] * 51


PIDS = """
import os

def pids(completions):
    return [float(os.getppid())] * len(completions)
"""


def test_a_worker_that_hangs_is_replaced_like_one_that_died(tmp_path: Path) -> None:
    (tmp_path / "pids.py").write_text(PIDS)
    config = RewardConfig(functions=[str(tmp_path / "pids.py")])
    with reward_workers(config, 1, silence_s=3.0) as (workers, told):
        before = int(workers.score([[Scorable("p", "x")]], trainer_state={"global_step": 0}).reward[0])
        os.kill(before, signal.SIGSTOP)
        after = int(workers.score([[Scorable("p", "x")]], trainer_state={"global_step": 0}).reward[0])
    assert before != after
    assert any("reward worker 0 hangs (no sign of life for 3 s) and is replaced" in line for line in told)
