"""`cluster.backend: local`: every method, every feature and both commands in one process, as on a cluster."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import launch
import pytest

from rl4dlm.errors import CheckpointError
from rl4dlm.loops.finetune import finetune
from rl4dlm.loops.train import train
from rl4dlm.recipe import Recipe, SFTRecipe, list_recipes, load_recipe
from rl4dlm.run.folder import RunFolder

pytestmark = pytest.mark.slow

LOCAL = (
    *("cluster.backend=local", "cluster.num_trainers=1", "cluster.num_rollout_workers=1"),
    "trainer.zero_stage=0",
)
ON_RAY = ("cluster.num_trainers=1", "cluster.num_rollout_workers=1", "trainer.zero_stage=0")
SMALL = (
    *("trainer.max_steps=3", "trainer.save_steps=1", "trainer.save_total_limit=9", "trainer.warmup_steps=0"),
    *("eval.steps=0", "eval.num_prompts=4", "eval.num_samples=1"),
    *("tracking.wandb=disabled", "tracking.console=plain"),
)
RL = ("rollout.prompts_per_update=3", "rollout.num_generations=4", "rollout.slots=16")
TINY_RL = sorted(name for name in list_recipes() if "/tiny_" in name and not name.startswith("sft/"))
METHODS = [name for name in TINY_RL if "/tiny_sort" in name]
TINY_SFT = sorted(name for name in list_recipes() if name.startswith("sft/tiny_"))


class WarmModels(dict[str, Path]):
    """By task a small model that can do a little of it: the start of all runs, made when it is asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def __missing__(self, task: str) -> Path:
        sizes = ("model.init.d_model=32", "model.init.n_layers=1", "model.init.mlp_hidden_size=64")
        steps = ("warm_start.steps=30", "warm_start.batch_size=32", "trainer.max_steps=1")
        place = (f"run.output_dir={self._folder}", f"run.name={task}")
        recipe = load_recipe(f"gdpo/{task}", [*LOCAL, *SMALL, *RL, *sizes, *steps, *place])
        self[task] = train(recipe).warm_start
        return self[task]


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> WarmModels:
    return WarmModels(tmp_path_factory.mktemp("warm"))


def recipe_of(name: str, warm: WarmModels, output: Path, *overrides: str) -> Recipe:
    """A shipped recipe from the common start."""
    task = "_".join(name.rpartition("/")[2].split("_")[:2])
    start = ("model.init=null", "warm_start=null", f"model.path={warm[task]}")
    return load_recipe(name, [*SMALL, *RL, *start, f"run.output_dir={output}", *overrides])


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray for all comparisons."""
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


PLACED = ("sync/", "timing_s/", "rollout/tokens_per_s", "time_s", "step_time", "sft/tokens_per_s")
"""Metrics that say where a run was done."""


def assert_alike(here: RunFolder, there: RunFolder) -> None:
    """Metrics of all updates agree to 1e-4 of their size or 1e-5: torch's and DeepSpeed's sums round alike
    but for their order."""
    for file in ("metrics.jsonl", "evaluations.jsonl"):
        one, other = launch.rows(here.root / file), launch.rows(there.root / file)
        assert len(one) == len(other) > 0
        for mine, theirs in zip(one, other, strict=True):
            names = {name for name in mine if not name.startswith(PLACED)}
            assert names == {name for name in theirs if not name.startswith(PLACED)}
            for name in names - {"decode"}:
                a, b = (math.nan if row[name] is None else row[name] for row in (mine, theirs))
                assert a == pytest.approx(b, rel=1e-4, abs=1e-5, nan_ok=True), (mine["update"], name)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_does_here_what_it_does_on_a_cluster(
    name: str, warm: WarmModels, cluster: None, tmp_path: Path
) -> None:
    here = train(recipe_of(name, warm, tmp_path, *LOCAL, "run.name=here"))
    there = train(recipe_of(name, warm, tmp_path, *ON_RAY, "run.name=there"))
    assert_alike(here, there)
    assert all(row["replay/logprob_abs_diff"] < 1e-5 for row in launch.rows(here.root / "metrics.jsonl"))


@pytest.mark.parametrize("name", sorted(set(TINY_RL) - set(METHODS)))
def test_the_other_tasks_run_here(name: str, warm: WarmModels, tmp_path: Path) -> None:
    run = train(recipe_of(name, warm, tmp_path, *LOCAL))
    assert [row["update"] for row in launch.rows(run.root / "metrics.jsonl")] == [1, 2, 3]
    assert (run.model / "config.json").is_file() and (run.root / "report.html").is_file()


@pytest.mark.parametrize("name", TINY_SFT)
def test_fine_tuning_does_here_what_it_does_on_a_cluster(name: str, cluster: None, tmp_path: Path) -> None:
    runs = []
    for place, run in ((LOCAL, "here"), (ON_RAY, "there")):
        settings = [*SMALL, *place, "sft.batch_size=8", f"run.output_dir={tmp_path}", f"run.name={run}"]
        runs.append(finetune(load_recipe(name, settings)))
    assert_alike(*runs)


FEATURES = {
    "value model": ("tracerl/tiny_sort_value", ()),
    "adapters": ("gdpo/tiny_sort", ("trainer.lora={r: 4, lora_alpha: 8}", "algorithm.beta=0.1")),
    "adapters with values": ("tracerl/tiny_sort_value", ("trainer.lora={r: 4, lora_alpha: 8}",)),
    "unmasking policy": ("unmasking_policy/tiny_sort", ()),
    "reference that follows": (
        "gdpo/tiny_sort",
        ("algorithm.beta=0.1", "algorithm.sync_ref_model=true", "algorithm.ref_model_sync_steps=1"),
    ),
    "bfloat16": ("gdpo/tiny_sort", ("trainer.bf16=true", "trainer.learning_rate=1e-2")),
    "recomputed activations": ("wd1/tiny_sort", ("trainer.gradient_checkpointing=true",)),
    "rewards of steps": ("mdpo/tiny_sort", ()),
}


@pytest.mark.parametrize("feature", FEATURES)
def test_a_resumed_run_ends_with_the_same_bytes(feature: str, warm: WarmModels, tmp_path: Path) -> None:
    name, overrides = FEATURES[feature]
    recipe = recipe_of(name, warm, tmp_path, *LOCAL, *overrides)
    run = train(recipe)
    target = run.policy if recipe.algorithm.freezes_model else run.model
    weights = launch.weights_digest(target)
    metrics = [launch.without_clock(row) for row in launch.rows(run.root / "metrics.jsonl")]
    parts = run.find(2).parts  # type: ignore[union-attr]
    assert not list(parts.engine.parent.rglob("*.pt")) and parts.engine.is_dir()
    train(recipe, resume=True, step=1)
    assert [launch.without_clock(row) for row in launch.rows(run.root / "metrics.jsonl")] == metrics
    assert launch.weights_digest(target) == weights


def test_prompts_are_filtered_once_and_a_resume_keeps_them(tmp_path: Path) -> None:
    settings = (
        "reward.correct_threshold=0.5",  # so small a model is seldom right in all four digits
        "rollout.remasking=rcr",
        "data.over_denoising={num_prompts: 200}",
        "algorithm={type: mdpo, sample_train_steps: 2, reward_stride: 2}",
    )
    place = (f"run.output_dir={tmp_path}", "run.name=run")
    recipe = load_recipe(launch.write_recipe(tmp_path), [*LOCAL, *SMALL, *settings, *place])
    run = train(recipe)
    verdicts, weights = run.prompt_filter.read_bytes(), launch.weights_digest(run.model)
    assert len(verdicts.splitlines()) == 200
    train(recipe, resume=True, step=1)
    assert run.prompt_filter.read_bytes() == verdicts and launch.weights_digest(run.model) == weights


def test_pairs_are_learned_from_and_resumed(warm: WarmModels, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{n:06d}=", "chosen": f"{n:06d}", "rejected": "999999", "answer": f"{n:06d}"}
        for n in range(40)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = (
        "algorithm={type: vrpo, pairs: offline, num_nodes: 2}",
        *("data.task=null", f"data.train={tmp_path / 'pairs.jsonl'}", "data.max_prompt_length=8"),
    )
    run = train(recipe_of("vrpo/tiny_sort", warm, tmp_path, *LOCAL, *settings))
    weights = launch.weights_digest(run.model)
    assert all("rewards/margins" in row for row in launch.rows(run.root / "metrics.jsonl"))
    recipe = recipe_of("vrpo/tiny_sort", warm, tmp_path, *LOCAL, *settings)
    train(recipe, resume=True, step=2)
    assert launch.weights_digest(run.model) == weights


def test_fine_tuning_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    settings = [*SMALL, *LOCAL, "sft.batch_size=8", f"run.output_dir={tmp_path}", "run.name=run"]
    recipe: SFTRecipe = load_recipe("sft/tiny_blocks", settings)
    run = finetune(recipe)
    weights = launch.weights_digest(run.model)
    finetune(recipe, resume=True, step=1)
    assert launch.weights_digest(run.model) == weights


def test_a_checkpoint_of_the_other_place_is_refused_by_name(warm: WarmModels, tmp_path: Path) -> None:
    run = train(recipe_of("gdpo/tiny_sort", warm, tmp_path, *LOCAL))
    before = {path: path.read_bytes() for path in run.root.rglob("*") if path.is_file()}
    other = recipe_of("gdpo/tiny_sort", warm, tmp_path, *ON_RAY, "trainer.max_steps=5")
    with pytest.raises(CheckpointError, match=r"cluster\.backend = 'local', and this recipe has 'ray'"):
        train(other, resume=True)
    assert {path: path.read_bytes() for path in run.root.rglob("*") if path.is_file()} == before


PROGRAM = """
import sys
from pathlib import Path
from rl4dlm.commands.eval import evaluate_model
from rl4dlm.loops.finetune import finetune
from rl4dlm.loops.train import train
from rl4dlm.recipe import load_recipe

small = {small!r}
run = train(load_recipe("quickstart", [*small, *{rl!r}, "warm_start.steps=2", "run.name=rl"]))
finetune(load_recipe("sft/tiny_sort", [*small, "sft.batch_size=4", "run.name=sft"]))
start = ["model.init=null", "warm_start=null", f"model.path={{run.model}}", "run.name=eval"]
evaluate_model(load_recipe("quickstart", [*small, *{rl!r}, *start]), Path({scores!r}))
print(sorted(name for name in sys.modules if name.split(".")[0] in ("ray", "deepspeed")))
"""


def test_neither_ray_nor_deepspeed_is_imported(tmp_path: Path) -> None:
    small = [*LOCAL, *SMALL, f"run.output_dir={tmp_path}", "trainer.max_steps=1"]
    program = PROGRAM.format(small=small, rl=list(RL), scores=str(tmp_path / "scores.json"))
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().splitlines()[-1] == "[]"
    row = launch.rows(tmp_path / "rl" / "evaluations.jsonl")[-1]
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["metrics"]["eval/greedy_accuracy"] == row["eval/greedy_accuracy"]
    assert scores["metrics"]["eval/greedy_reward"] == pytest.approx(row["eval/greedy_reward"])
