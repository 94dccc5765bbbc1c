"""A method from outside the package in a whole run: its passes, its reference, its checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

from rl4dlm.loops.train import train
from rl4dlm.recipe import load_recipe

CODE = """
from rl4dlm.recipe.algorithms import ElboEstimated, SequenceLevel
from rl4dlm.trainers.elbo_states import elbo_settings, elbo_states
from rl4dlm.trainers.sequence import sequence_method


class Near(SequenceLevel, ElboEstimated):
    def build(self, setting):
        return sequence_method(self, setting, elbo_states(elbo_settings(self), setting.spec))
"""

SMALL = [
    *("cluster.backend=local", "cluster.num_trainers=1", "cluster.num_rollout_workers=1"),
    *("trainer.zero_stage=0", "trainer.max_steps=2", "trainer.warmup_steps=0", "trainer.save_steps=1"),
    *("warm_start.steps=2", "eval.num_prompts=8", "rollout.prompts_per_update=4"),
]


def test_the_settings_of_a_plug_in_take_effect_in_a_run(tmp_path: Path) -> None:
    (tmp_path / "near.py").write_text(CODE)
    own = f"path: '{tmp_path}/near.py:Near', num_iterations: 3, settings: {{beta: 0.1, sync_ref_model: true"
    recipe = load_recipe(
        "quickstart",
        [
            *SMALL,
            f"algorithm={{type: plugin, {own}, ref_model_sync_steps: 1}}}}",
            f"run.output_dir={tmp_path}",
        ],
    )
    folder = train(recipe)
    lines = [json.loads(line) for line in (folder.root / "metrics.jsonl").read_text().splitlines()]
    updates = [line for line in lines if "kl" in line]
    # Three passes: the weights move between them, away from what drew the rollouts and from the reference.
    assert len(updates) == 2 and all(line["ratio/max"] > 1 and line["kl"] > 0 for line in updates)
    assert (folder.root / "checkpoints" / "step_000002" / "reference").is_dir()
    kept = load_recipe(folder.root / "recipe.yaml").algorithm
    assert kept == recipe.algorithm and kept.num_iterations == 3
