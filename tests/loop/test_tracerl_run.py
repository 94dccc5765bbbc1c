"""TraceRL with a value model on a block-causal model, under ZeRO-3 and over two ranks: whole runs."""

from __future__ import annotations

from pathlib import Path

import launch
import pyarrow.parquet as pq
import pytest

from rl4dlm.loops.train import train
from rl4dlm.recipe import Recipe, load_recipe
from rl4dlm.run.folder import RunFolder

pytestmark = pytest.mark.slow

OVERRIDES = [
    "model.family=sdar",
    "model.block_length=2",
    "rollout.remasking=random",
    "algorithm={type: tracerl, beta: 0.05, value: {learning_rate: 1e-3, warmup_updates: 1}, process_chunk: 2,"
    " importance_correction: truncated, num_iterations: 2}",
    "trainer.zero_stage=3",
    "eval.steps=0",
]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    output = tmp_path_factory.mktemp("tracerl")
    return load_recipe(launch.write_recipe(output), [f"run.output_dir={output}", *OVERRIDES])


@pytest.fixture(scope="module")
def run(recipe: Recipe) -> RunFolder:
    return train(recipe)


def test_values_advantages_and_ratios_are_reported(run: RunFolder) -> None:
    first, *later = launch.rows(run.root / "metrics.jsonl")
    assert first["value/loss"] > 0 and "loss/policy" not in first  # the value model warms up alone
    for row in later:
        assert row["replay/logprob_abs_diff"] < 1e-5
        assert row["importance/mean"] == pytest.approx(1.0, abs=1e-3)
        assert {"value/explained_var", "value/grad_norm", "loss/policy", "trust_kl", "kl"} <= row.keys()
        assert 0 < row["reward/step_texts_scored"] <= row["reward/step_texts"] <= 32


def test_a_resumed_run_ends_with_the_same_weights(recipe: Recipe, run: RunFolder) -> None:
    rows = [launch.without_clock(row) for row in launch.rows(run.root / "metrics.jsonl")]
    weights = launch.weights_digest(run.model)
    assert (Path(run.find().folder) / "value").is_dir()
    train(recipe, resume=True, step=2)
    again = [launch.without_clock(row) for row in launch.rows(run.root / "metrics.jsonl")]
    assert again == rows
    assert launch.weights_digest(run.model) == weights


def test_blocks_are_enlarged_while_a_run_lasts_and_still_replay(tmp_path: Path) -> None:
    enlarged = "algorithm={type: tracerl, enlarge: {block_length: 4, rollouts_after: 1}}"
    overrides = [
        "trainer.max_steps=2",
        "eval.steps=0",
        "cluster.num_trainers=1",
        "cluster.num_rollout_workers=1",
    ]
    settings = [f"run.output_dir={tmp_path}", *OVERRIDES[:3], enlarged, *overrides]
    run = train(load_recipe(launch.write_recipe(tmp_path), settings))
    for row in launch.rows(run.root / "metrics.jsonl"):
        assert row["replay/logprob_abs_diff"] < 1e-5
    # Blocks count from the start of the sequence: after 5 prompt tokens, 4 more lie in 3 blocks of 2, 2 of 4.
    last_block = [
        max(max(steps) for steps in pq.read_table(path).column("step_block").to_pylist())
        for path in sorted(run.rollouts.glob("*.parquet"))
    ]
    assert last_block == [2, 1]
