"""A whole run that rewards every step: filtered prompts, mixed block lengths, a sampler that revises."""

from __future__ import annotations

from pathlib import Path

import launch
import pyarrow.parquet as pq
import pytest

from rl4dlm.loops.train import train
from rl4dlm.recipe import load_recipe
from rl4dlm.run.folder import RunFolder

pytestmark = pytest.mark.slow

SETTINGS = [
    "reward.correct_threshold=0.5",  # so small a model is seldom right in all four digits
    "rollout.remasking=rcr",
    "rollout.block_lengths=[2, 4]",
    "data.over_denoising={num_prompts: 400, block_lengths: [2, 4]}",
    "algorithm={type: mdpo, sample_train_steps: 2, reward_stride: 2, num_iterations: 2}",
    "trainer.save_steps=1",
    "eval.num_samples=1",
]


def recipe_of(output: Path, *overrides: str):
    return load_recipe(launch.write_recipe(output), [f"run.output_dir={output}", *SETTINGS, *overrides])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """One update, then another after a resume."""
    output = tmp_path_factory.mktemp("mdpo")
    train(recipe_of(output, "trainer.max_steps=1"))
    return train(recipe_of(output, "trainer.max_steps=2"), resume=True)


def kept(run: RunFolder) -> list[dict]:
    return [row for row in launch.rows(run.prompt_filter) if row["correct_steps"] and not row["correct"]]


def test_only_over_denoised_prompts_are_trained_on_before_and_after_a_resume(run: RunFolder) -> None:
    tried = launch.rows(run.prompt_filter)
    assert [row["number"] for row in tried] == list(range(400))
    uids = {row["uid"] for row in kept(run)}
    for update in (1, 2):
        drawn = pq.read_table(run.rollouts / f"update_{update:06d}.parquet").column("prompt_uid").to_pylist()
        assert len(drawn) == 16 and set(drawn) <= uids


def test_the_number_of_kept_prompts_is_noted(run: RunFolder) -> None:
    notes = [str(row) for row in launch.rows(run.root / "events.jsonl")]
    assert any(f"{len(kept(run))} of 400 training prompts are kept" in note for note in notes)


def test_steps_are_verified_and_the_sampler_agrees_with_the_trainer(run: RunFolder) -> None:
    for row in launch.rows(run.root / "metrics.jsonl"):
        table = pq.read_table(run.rollouts / f"update_{row['update']:06d}.parquet")
        # Of four steps the first, the third and the last are verified, of two (an early end) both.
        steps = table.column("num_steps").to_pylist()
        assert row["reward/step_texts"] == sum({4: 3, 2: 2}[number] for number in steps)
        # Four prompts at least; the same text of one prompt is scored once.
        assert 4 <= row["reward/step_texts_scored"] <= row["reward/step_texts"]
        assert row["replay/logprob_abs_diff"] < 1e-5
        assert "kl" in row and row["ratio/max"] >= 1


def test_block_lengths_differ_between_prompts_and_predictions_are_not_written(run: RunFolder) -> None:
    blocks = set()
    for update in (1, 2):
        table = pq.read_table(run.rollouts / f"update_{update:06d}.parquet")
        assert not any(name.startswith("predictions/") for name in table.column_names)
        blocks |= {max(steps) for steps in table.column("step_block").to_pylist()}
    assert blocks == {0, 1}
