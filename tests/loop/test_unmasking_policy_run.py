"""A whole run that trains the network behind the sampler while the language model is frozen."""

from __future__ import annotations

import launch
import pyarrow.parquet as pq
import pytest
import torch

from rl4dlm.loops.train import train
from rl4dlm.models import UnmaskNetConfig, load_policy, new_policy
from rl4dlm.recipe import load_recipe
from rl4dlm.run.folder import RunFolder

pytestmark = pytest.mark.slow

SETTINGS = [
    "algorithm={type: unmasking_policy, alpha: 0.5, num_iterations: 2}",
    "rollout.remasking=learned",
    "rollout.policy=new",
    "rollout.temperature=0",
    "trainer.save_steps=1",
    "eval.num_samples=1",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """One update, then another after a resume."""
    output = tmp_path_factory.mktemp("unmasking")
    recipe = launch.write_recipe(output)
    settings = [f"run.output_dir={output}", *SETTINGS]
    train(load_recipe(recipe, [*settings, "trainer.max_steps=1"]))
    return train(load_recipe(recipe, [*settings, "trainer.max_steps=2"]), resume=True)


def test_what_is_trained_saved_and_exported_is_the_network(run: RunFolder) -> None:
    assert not run.model.exists()
    first, second = (load_policy(found.parts.model) for found in run.complete())
    start = new_policy(UnmaskNetConfig(), load_recipe(run.recipe).run.seed)
    for before, after in ((start, first), (first, second)):
        assert not torch.equal(before.head.weight, after.head.weight)
    exported = load_policy(run.policy)
    assert all(torch.equal(a, b) for a, b in zip(second.parameters(), exported.parameters(), strict=True))


def test_the_trainer_agrees_with_the_sampler_before_and_after_the_resume(
    run: RunFolder,
) -> None:
    rows = launch.rows(run.root / "metrics.jsonl")
    assert [row["update"] for row in rows] == [1, 2]
    for row in rows:
        assert row["replay/logprob_abs_diff"] < 1e-5
        assert row["ratio/max"] >= 1 and row["grad_norm"] > 0
        table = pq.read_table(run.rollouts / f"update_{row['update']:06d}.parquet")
        assert row["diffusion/nfe_per_sample"] == pytest.approx(
            sum(table.column("num_forwards").to_pylist()) / table.num_rows
        )


def test_the_exported_folder_is_a_sampler(run: RunFolder) -> None:
    sampling = ["--model", str(run.warm_start), "--recipe", str(run.root), "--prompt", "3120="]
    status, text = launch.command("sample", *sampling, "--set", f"policy={run.policy}", "-n", "2")
    assert status == 0 and len(text.splitlines()) == 2
    status, text = launch.command("sample", *sampling, "--set", f"policy={run.warm_start}")
    assert status == 2 and "holds no unmasking policy" in text and "Fix: " in text
