"""What drawing rollouts ahead gains: the quick start's run under both schedules, by turns.

    python scripts/bench_schedule.py [--updates 20] [--rounds 2] [--json] [section.key=value ...]

One trainer and one rollout worker with a core each; no warm start, evaluation before the first and after the
last update alone. Medians over updates of wall-clock seconds: run it on an idle machine and read the ratio.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rl4dlm.loops.train import train
from rl4dlm.recipe import Recipe, load_recipe

SCHEDULES = ("sync", "one_step_off")
SETTINGS = (
    *("cluster.num_trainers=1", "cluster.num_rollout_workers=1", "cluster.placement=separate"),
    *("warm_start=null", "eval.steps=0", "eval.num_prompts=8", "eval.num_samples=1"),
    *("tracking.console=plain", "tracking.wandb=disabled", "tracking.rollouts_every=0"),
    "sentinel.enabled=false",
)
PHASES = {"update_s": "step_time", "waits_for_rollouts_s": "timing_s/rollout", "trains_s": "timing_s/update"}
Row = dict[str, float]


def measure(schedule: str, name: str, folder: Path, updates: int, overrides: list[str]) -> list[Row]:
    """Metrics of each update of a run."""
    own = [f"cluster.schedule={schedule}", f"run.name={name}", f"run.output_dir={folder}"]
    recipe = load_recipe("quickstart", [*SETTINGS, f"trainer.max_steps={updates}", *own, *overrides])
    assert isinstance(recipe, Recipe)
    root = train(recipe).root
    return [json.loads(line) for line in (root / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def summary(rows: list[Row]) -> Row:
    """Median seconds of an update and its stages; the first updates warm up, the last draws nothing ahead."""
    return {name: statistics.median(row[key] for row in rows[2:-1]) for name, key in PHASES.items()}


def main() -> int:
    """Run the schedules by turns; the exit status."""
    parser = argparse.ArgumentParser(description="What drawing rollouts ahead gains.")
    parser.add_argument("--updates", type=int, default=20, help="of each run, at least 5")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each schedule")
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    parser.add_argument("overrides", nargs="*", help="section.key=value on top of the quick start")
    asked = parser.parse_args()
    if asked.updates < 5 or asked.rounds < 1:
        parser.error("use at least 5 updates and 1 round")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(asked.rounds):
            for schedule in SCHEDULES:
                found = measure(schedule, f"{schedule}_{turn}", Path(folder), asked.updates, asked.overrides)
                rows.append({"schedule": schedule, "round": turn + 1} | summary(found))
    seconds = {name: [row["update_s"] for row in rows if row["schedule"] == name] for name in SCHEDULES}
    factor = statistics.mean(seconds["sync"]) / statistics.mean(seconds["one_step_off"])
    if asked.json:
        print(json.dumps({"runs": rows, "speedup": factor}))
        return 0
    table = Table(title=f"one_step_off is {factor:.2f} times as fast", title_justify="left")
    for column in rows[0]:
        table.add_column(column)
    for row in rows:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
