"""Small runs for the loop tests: a recipe that takes seconds, a driver of its own, what runs leave."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

TINY = {
    "model": {
        "init": {
            "d_model": 32,
            "n_layers": 1,
            "n_heads": 2,
            "mlp_hidden_size": 64,
            "max_sequence_length": 16,
        }
    },
    "data": {"task": {"name": "sort", "num_digits": 4}},
    "warm_start": {"steps": 60, "batch_size": 32},
    "rollout": {
        "prompts_per_update": 4,
        "num_generations": 4,
        "max_completion_length": 4,
        "block_length": 2,
        "diffusion_steps": 4,
        "slots": 8,
    },
    "reward": {"functions": ["sort"]},
    "algorithm": {"type": "gdpo", "num_nodes": 2, "num_iterations": 2},
    "trainer": {"max_steps": 4, "learning_rate": 1e-3, "zero_stage": 2, "save_steps": 2},
    "cluster": {"num_trainers": 2, "num_rollout_workers": 2},
    "eval": {"steps": 2, "num_prompts": 8, "num_samples": 2},
    "tracking": {"console": "plain", "wandb": "disabled"},
}


def write_recipe(folder: Path) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(TINY))  # JSON is YAML
    return path


def start_driver(
    recipe: Path, output: Path, *arguments: str, command: str = "train"
) -> subprocess.Popen[str]:
    """`rl4dlm train` (or `sft`) as a user starts it, output to a file beside the runs."""
    log = open(output / f"driver-{time.monotonic_ns()}.txt", "w")  # noqa: SIM115 - lives as long as the driver
    started = [sys.executable, "-c", "from rl4dlm.cli import main; main()", command, str(recipe)]
    return subprocess.Popen(
        [*started, f"run.output_dir={output}", *arguments],
        stdout=log,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def command(*arguments: str) -> tuple[int, str]:
    """Exit status and output of another `rl4dlm` command."""
    done = subprocess.run(
        [sys.executable, "-c", "from rl4dlm.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    return done.returncode, done.stdout + (done.stderr if done.returncode else "")


def finish(driver: subprocess.Popen[str], output: Path, timeout_s: float = 300) -> None:
    """Wait for a driver that must end well."""
    status = driver.wait(timeout=timeout_s)
    logs = sorted(output.glob("driver-*.txt"))
    assert status == 0, logs[-1].read_text()[-4000:]


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 240) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(0.05)


def rows(path: Path) -> list[dict]:
    """The complete lines of a JSON-lines file; none if it is not there yet."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def without_clock(row: dict) -> dict:
    """A metrics row without what depends on time and luck."""
    timed = ("time_s", "step_time", "timing_s/", "sync/pack_s", "rollout/tokens_per_s", "rollout/restarts")
    return {name: value for name, value in row.items() if not name.startswith(timed)}


def weights_digest(folder: Path) -> str:
    """Of all safetensors in a model folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def ray_workers(title: str, parent: int) -> list[psutil.Process]:
    """Processes of Ray actors of a class, among the descendants of a driver."""
    found = []
    for process in psutil.Process(parent).children(recursive=True):
        try:
            if process.cmdline() and process.cmdline()[0].startswith(f"ray::{title}"):
                found.append(process)
        except psutil.Error:
            continue
    return found
