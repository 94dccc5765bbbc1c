"""Every method from one warm start, with equal rollouts: held-out accuracy against updates and wall time.

    python scripts/compare_methods.py --output runs/compare                    all methods, 3 seeds
    python scripts/compare_methods.py --methods gdpo/tiny_sort tracerl/tiny_sort --seeds 0 --updates 20
    python scripts/compare_methods.py --output runs/compare --docs docs/comparison    also for the docs

Each method runs its own recipe for the same tiny task in one process on one thread, by `cluster.backend:
local`: sampler, loss, passes and learning rate are the recipe's; model, warm start, prompts, completions per
prompt and number of updates are the same for all. The warm start is trained once. Results are JSON lines, one
file per method and seed; what is complete is not run again. The end: a Markdown table and an SVG picture.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

METHODS = (
    "gdpo/tiny_sort",
    "espo/tiny_sort",
    "spg/tiny_sort",
    "vrpo/tiny_sort",
    "wd1/tiny_sort",
    "wd1pp/tiny_sort",
    "mdpo/tiny_sort",
    "mdpo/tiny_sort_rcr",
    "tracerl/tiny_sort",
    "tracerl/tiny_sort_value",
    "agrpo/tiny_sort",
    "just_grpo/tiny_sort",
    "diffu_grpo/tiny_sort",
    "coupled_grpo/tiny_sort",
    "unigrpo/tiny_sort",
)
EVALUATE_EVERY = 10


@dataclass(frozen=True)
class Job:
    """One method with one seed."""

    recipe: str
    seed: int
    updates: int
    num_prompts: int
    warm_start: str
    file: str


def overrides(seed: int, updates: int, num_prompts: int) -> list[str]:
    """What is equal for all: 16 prompts x 8 completions per update, a constant rate after 5 updates."""
    return [
        f"run.seed={seed}",
        f"trainer.max_steps={updates}",
        "trainer.warmup_steps=5",
        "trainer.lr_scheduler_type=constant",
        "rollout.prompts_per_update=16",
        "rollout.num_generations=8",
        f"eval.num_prompts={num_prompts}",
        "eval.num_samples=1",
    ]


LOCAL = (
    *("cluster.backend=local", "cluster.num_trainers=1", "cluster.num_rollout_workers=1"),
    *("trainer.zero_stage=0", "tracking.wandb=disabled", "tracking.console=plain"),
    "tracking.rollouts_every=0",
)
"""The whole run in one process, without Ray and DeepSpeed."""


def make_warm_start(folder: Path, steps: int) -> None:
    """The common start: the quick start's model after its warm start of seed 0, as a model folder."""
    from rl4dlm.loops.train import train
    from rl4dlm.recipe import load_recipe

    short = ["trainer.max_steps=1", "trainer.warmup_steps=0", "eval.num_prompts=1", "eval.num_samples=1"]
    place = [f"run.output_dir={folder.parent}", "run.name=warm_start_run", f"warm_start.steps={steps}"]
    made = train(load_recipe("quickstart", [*LOCAL, *short, *place]))
    made.warm_start.rename(folder)
    shutil.rmtree(made.root)


def run(job: Job) -> None:
    """Train with `cluster.backend: local`; one JSON line at the start, after every `EVALUATE_EVERY` updates
    and at the end."""
    from rl4dlm.loops.train import train
    from rl4dlm.recipe import load_recipe
    from rl4dlm.tracking import RunHistory

    file = Path(job.file)
    start = ["model.init=null", "warm_start=null", f"model.path={job.warm_start}"]
    rhythm = [f"eval.steps={EVALUATE_EVERY}", f"trainer.save_steps={job.updates}"]
    place = [f"run.output_dir={file.parent / 'runs'}", f"run.name={file.stem}"]
    chosen = overrides(job.seed, job.updates, job.num_prompts)
    recipe = load_recipe(job.recipe, [*LOCAL, *chosen, *start, *rhythm, *place])
    shutil.rmtree(file.parent / "runs" / file.stem, ignore_errors=True)  # of a comparison that was cut short
    history = RunHistory.load(train(recipe).root)
    lines = []
    for row in history.evaluations:
        spent = sum(update["step_time"] for update in history.metrics if update["update"] <= row["update"])
        lines.append({"update": row["update"], "seconds": spent, "accuracy": row["eval/greedy_accuracy"]})
    partial = Path(job.file + ".partial")
    partial.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    partial.replace(job.file)
    print(
        f"{job.recipe} seed {job.seed}: {lines[0]['accuracy']:.3f} -> {lines[-1]['accuracy']:.3f}", flush=True
    )


def jobs(options: argparse.Namespace, warm_start: Path) -> list[Job]:
    """What is not done yet."""
    found = []
    for recipe in options.methods:
        for seed in options.seeds:
            file = options.output / f"{recipe.replace('/', '_')}-{seed}.jsonl"
            if not file.exists():
                found.append(Job(recipe, seed, options.updates, options.prompts, str(warm_start), str(file)))
    return found


def results(folder: Path, methods: Sequence[str]) -> dict[str, list[list[dict[str, float]]]]:
    """Per method the lines of every seed that is there."""
    found: dict[str, list[list[dict[str, float]]]] = {}
    for recipe in methods:
        files = sorted(folder.glob(f"{recipe.replace('/', '_')}-[0-9]*.jsonl"))
        if files:
            found[recipe] = [
                [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] for file in files
            ]
    return found


def table(found: dict[str, list[list[dict[str, float]]]]) -> str:
    """Markdown: accuracy before, at a third, at the end, per seed and as mean; seconds per update."""
    rows = [
        "| recipe | seeds | before | after a third | after all | each seed | seconds per update |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    order = sorted(found, key=lambda name: -np.mean([lines[-1]["accuracy"] for lines in found[name]]))
    for name in order:
        seeds = found[name]
        third = [lines[len(lines) // 3]["accuracy"] for lines in seeds]
        last = [lines[-1]["accuracy"] for lines in seeds]
        each = ", ".join(f"{100 * value:.0f}" for value in last)
        pace = np.mean([lines[-1]["seconds"] / lines[-1]["update"] for lines in seeds])
        rows.append(
            f"| `{name}` | {len(seeds)} | {100 * seeds[0][0]['accuracy']:.1f} | {100 * np.mean(third):.1f} | "
            f"{100 * np.mean(last):.1f} | {each} | {pace:.2f} |"
        )
    return "\n".join(rows) + "\n"


def picture(found: dict[str, list[list[dict[str, float]]]]) -> str:
    """SVG: mean accuracy over seeds against updates, and against seconds of training."""
    from rl4dlm.tracking.panels import Line, Panel, panels_svg

    panels = []
    for title, key in (("accuracy against updates", "update"), ("accuracy against seconds", "seconds")):
        lines = []
        for name, seeds in found.items():
            x = np.mean([[line[key] for line in lines] for lines in seeds], axis=0)
            y = np.mean([[line["accuracy"] for line in lines] for lines in seeds], axis=0)
            lines.append(Line(name.removesuffix("/tiny_sort"), tuple(x.tolist()), tuple(y.tolist())))
        panels.append(Panel(title, tuple(lines), scale="linear", axis=key))
    return panels_svg(panels, axis="update")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("runs/compare"), help="folder of the results")
    parser.add_argument("--docs", type=Path, help="write DOCS.table.md and DOCS.svg")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="recipes of the same task")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--updates", type=int, default=60)
    parser.add_argument("--prompts", type=int, default=256, help="held-out prompts per evaluation")
    parser.add_argument("--warm-start-steps", type=int, default=300)
    parser.add_argument("--processes", type=int, default=max(1, (os.cpu_count() or 2) // 2))
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    options.output.mkdir(parents=True, exist_ok=True)
    warm_start = (options.output / "warm_start").resolve()
    waiting = jobs(options, warm_start)
    began = time.monotonic()
    if waiting and not warm_start.exists():
        make_warm_start(warm_start, options.warm_start_steps)
    with multiprocessing.get_context("spawn").Pool(options.processes, maxtasksperchild=1) as pool:
        for _ in pool.imap_unordered(run, waiting):
            pass
    found = results(options.output, options.methods)
    text = table(found)
    print(text)
    print(f"{len(waiting)} runs in {time.monotonic() - began:.0f} s on {options.processes} processes")
    if options.docs:
        options.docs.with_suffix(".svg").write_text(picture(found), encoding="utf-8")
        options.docs.with_suffix(".table.md").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
