"""A run whose learning rate grows until the policy falls apart: it is stopped, its good weights stay."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import launch
import pytest
from launch import TINY, rows, wait_for

from rl4dlm.run.folder import RunFolder

pytestmark = pytest.mark.slow

# The warm-up never ends: update u has the learning rate 0.0007 u.
RISING = {
    **TINY,
    "model": {"init": {**TINY["model"]["init"], "d_model": 64, "n_layers": 2, "mlp_hidden_size": 128}},
    "warm_start": {"steps": 250, "batch_size": 64},
    "rollout": {**TINY["rollout"], "prompts_per_update": 16},
    "algorithm": {"type": "gdpo", "num_nodes": 2},
    "trainer": {
        **TINY["trainer"],
        "learning_rate": 0.7,
        "warmup_steps": 999,
        "max_steps": 1000,
        "save_steps": 1,
    },
    "eval": {"steps": 0, "num_prompts": 8, "num_samples": 1},
}


def test_a_collapsing_run_is_stopped_and_goes_on_from_its_last_good_checkpoint(tmp_path: Path) -> None:
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "rising"
    recipe.write_text(json.dumps(RISING))
    driver = launch.start_driver(recipe, tmp_path, "run.name=rising")
    assert driver.wait(timeout=400) == 1
    metrics = rows(run / "metrics.jsonl")
    assert len(metrics) < 100
    message = max(tmp_path.glob("driver-*.txt")).read_text()
    assert (
        f"update {len(metrics)}: the policy has collapsed" in message and "trainer.learning_rate" in message
    )
    named = re.search(r"last good checkpoint is that of update (\d+)", message)
    assert named is not None, message
    good = int(named[1])
    assert good in [checkpoint.update for checkpoint in RunFolder(run).complete()]
    assert "the policy has collapsed" in (run / "events.jsonl").read_text()

    reward = {row["update"]: row["reward"] for row in metrics}
    # The weights of `good` drew the rollouts of the next update: they are not what broke.
    assert reward[good + 1] > 0.6 * max(reward.values()) > reward[len(metrics)]
    resumed = launch.start_driver(
        recipe, tmp_path, "run.name=rising", "--resume", f"step={good}", "sentinel.enabled=false"
    )
    wait_for(lambda: [row["update"] for row in rows(run / "metrics.jsonl")][-1:] == [good + 1], "one update")
    resumed.send_signal(signal.SIGINT)
    resumed.wait(timeout=60)
    again = rows(run / "metrics.jsonl")[good]
    assert again["reward"] == pytest.approx(reward[good + 1], abs=1e-6)
