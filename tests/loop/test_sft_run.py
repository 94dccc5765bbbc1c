"""`rl4dlm sft` as a user starts it: a killed run resumes to bit-equal weights, and what it exports trains."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import launch
import pytest
from launch import rows, wait_for, weights_digest, without_clock

from rl4dlm.commands.export import export
from rl4dlm.loops.finetune import finetune
from rl4dlm.loops.train import train
from rl4dlm.models import build_char_tokenizer, create, save
from rl4dlm.recipe import load_recipe
from rl4dlm.recipe.sections import ModelInit

pytestmark = pytest.mark.slow

INIT = launch.TINY["model"]["init"]
GROWING = {
    "model": {"family": "sdar", "block_length": 2, "init": INIT},
    "data": {"task": {"name": "sort", "num_digits": 4}, "task_answers": "gold"},
    "sft": {"objective": {"type": "block", "growth": [1, 2]}, "batch_size": 16},
    "rollout": {"max_completion_length": 4, "block_length": 2, "diffusion_steps": 4},
    "trainer": {"max_steps": 4, "learning_rate": 1e-3, "zero_stage": 2, "save_steps": 2},
    "cluster": {"num_trainers": 2},
    "eval": {"steps": 2, "num_prompts": 8},
    "tracking": {"console": "plain", "wandb": "disabled"},
}


def test_a_killed_run_resumes_to_bit_equal_weights(tmp_path: Path) -> None:
    recipe = tmp_path / "growing.yaml"
    recipe.write_text(json.dumps(GROWING))  # JSON is YAML

    def start(name: str, *arguments: str):
        return launch.start_driver(recipe, tmp_path, f"run.name={name}", *arguments, command="sft")

    launch.finish(start("whole"), tmp_path)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    first = start("killed")
    wait_for(lambda: len(rows(killed / "metrics.jsonl")) >= 3, "step 3, after the checkpoint of step 2")
    first.send_signal(signal.SIGKILL)
    first.wait()
    launch.finish(start("killed", "--resume"), tmp_path)

    assert weights_digest(killed / "model") == weights_digest(whole / "model")
    for file in ("metrics.jsonl", "evaluations.jsonl"):
        clockless = [
            [
                {k: v for k, v in without_clock(row).items() if k != "sft/tokens_per_s"}
                for row in rows(run / file)
            ]
            for run in (killed, whole)
        ]
        assert clockless[0] == clockless[1]
    assert [row["sft/block_length"] for row in rows(whole / "metrics.jsonl")] == [1, 1, 2, 2]
    before, *_, after = rows(whole / "evaluations.jsonl")
    assert after["eval/elbo"] > before["eval/elbo"] and after["decode"]["elbo"]["objective"] == "block"
    assert (whole / "report.html").is_file() and "elbo" in (whole / "report.html").read_text()


def test_adapters_learn_pairs_and_the_export_trains_by_rl(tmp_path: Path) -> None:
    tokenizer = build_char_tokenizer("0123456789=")
    base = save(create(ModelInit(**INIT), tokenizer, seed=3), tmp_path / "base", tokenizer)
    data = tmp_path / "pairs.jsonl"
    lines = [{"prompt": f"{i:04d}=", "completion": "".join(sorted(f"{i:04d}"))} for i in range(60)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe = tmp_path / "pairs.yaml"
    values = GROWING | {
        "model": {"path": str(base)},
        "data": {"train": str(data), "max_prompt_length": 8},
        "sft": {"batch_size": 8, "fill": "none"},
        "reward": {"functions": ["sort"]},
        "trainer": {
            "max_steps": 2,
            "learning_rate": 1e-2,
            "zero_stage": 2,
            "lora": {"r": 4, "lora_alpha": 8},
            "micro_batch_tokens": 30,
        },
        "cluster": {"num_trainers": 1},
        "eval": {"steps": 0, "num_prompts": 4, "num_samples": 1},
    }
    recipe.write_text(json.dumps(values))
    run = finetune(load_recipe(recipe, [f"run.output_dir={tmp_path}", "run.name=lora"]))
    metrics = rows(run.root / "metrics.jsonl")
    assert len(metrics) == 2 and all(row["grad_norm"] > 0 for row in metrics)
    evaluations = rows(run.root / "evaluations.jsonl")
    assert [row["update"] for row in evaluations] == [0, 2]
    assert all({"eval/elbo", "eval/greedy_accuracy"} <= row.keys() for row in evaluations)
    assert weights_digest(run.model) != weights_digest(base)
    newest = run.find()
    assert newest is not None and newest.parts.adapter.is_dir() and not newest.parts.model.exists()
    assert weights_digest(export(run.root, tmp_path / "merged")) == weights_digest(run.model)

    overrides = [f"run.output_dir={tmp_path}", "run.name=rl", "model.init=null", f"model.path={run.model}"]
    overrides += ["warm_start=null", "trainer.max_steps=1", "eval.steps=0", "cluster.num_trainers=1"]
    trained = train(load_recipe(launch.write_recipe(tmp_path), overrides))
    (row,) = rows(trained.root / "metrics.jsonl")
    assert row["replay/logprob_abs_diff"] < 1e-5
