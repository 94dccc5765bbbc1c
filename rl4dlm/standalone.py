"""Commands that need a model or a reward but no training run: evaluate, sample, try a reward."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rl4dlm.errors import DataError, RecipeError
from rl4dlm.evaluate import Evaluation, evaluate, rollout_workers
from rl4dlm.preflight import Preflight, preflight
from rl4dlm.recipe import Recipe
from rl4dlm.recipe.sections import DataConfig
from rl4dlm.run_folder import storage
from rl4dlm.tracking.environment import describe_environment


def evaluate_model(recipe: Recipe, output: Path | None, console: Console | None = None) -> Evaluation:
    """Evaluate the recipe's model on its held-out prompts, on Ray workers, with the recipe's sampler.

    Args:
        output: JSON with scores, decode settings, environment and every completion; None: only the table.
    """
    out = console or Console()
    if output is not None and output.exists():
        raise RecipeError(f"{output} exists; nothing was overwritten.\nFix: name another --output file.")
    if output is not None and not output.parent.is_dir():
        raise RecipeError(f"{output.parent} is no folder.\nFix: make it, or name another --output file.")
    checks = preflight(recipe)
    for note in checks.notes:
        out.print(note, markup=False, highlight=False)
    evaluation = _evaluate_on_workers(recipe, checks, out)
    table = Table(title="Evaluation", title_justify="left", show_header=False)
    for name, value in evaluation.metrics.items():
        table.add_row(name, f"{value:.4g}")
    table.add_row("decode", json.dumps(evaluation.decode["greedy"]))
    out.print(table)
    if output is not None:
        with storage(f"{output} could not be written"):
            output.write_text(
                json.dumps(_evaluation_record(recipe, evaluation), indent=2) + "\n", encoding="utf-8"
            )
        out.print(f"wrote {output}", markup=False, highlight=False)
    return evaluation


def _evaluate_on_workers(recipe: Recipe, checks: Preflight, out: Console) -> Evaluation:
    import tempfile

    from rl4dlm.models import save
    from rl4dlm.workers.reward_worker import RewardWorkers

    def say(text: str) -> None:
        out.print(text, markup=False, highlight=False)

    with tempfile.TemporaryDirectory() as scratch:
        path = recipe.model.path
        if path is None:
            model = checks.make_model()
            path = str(save(model, Path(scratch) / "model", model.tokenizer))
        with rollout_workers(recipe, path, say) as (rollouts, placement):
            rewards = RewardWorkers(recipe.reward, placement.rewards, say)
            try:
                prompts = checks.prompts.eval_prompts(recipe.eval.num_prompts)
                return evaluate(rollouts, rewards, prompts, recipe, version=0, update=0)
            finally:
                rewards.close()


def _evaluation_record(recipe: Recipe, evaluation: Evaluation) -> dict[str, Any]:
    """Scores with what they depend on beside them."""
    return {
        "metrics": evaluation.metrics,
        "decode": evaluation.decode,
        "model": recipe.model.path or recipe.model.model_dump(mode="json")["init"],
        "data": recipe.data.model_dump(mode="json"),
        "rewards": recipe.reward.model_dump(mode="json"),
        "seed": recipe.run.seed,
        "environment": describe_environment()
        | {
            "device": "cuda" if recipe.cluster.gpus_per_rollout_worker else "cpu",
            "dtype": "bfloat16" if recipe.trainer.bf16 else "float32",
        },
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "samples": [vars(row) for row in evaluation.samples],
    }


def sample_model(
    path: str, prompt: str, recipe: str | None, settings: list[str], num_samples: int, seed: int
) -> None:
    """Sample completions of one prompt in this process; on a terminal the denoising is shown as it
    happens."""
    from rl4dlm.data import open_renderer
    from rl4dlm.decoding import SamplerSpec
    from rl4dlm.diffusion.seeds import derive_seed
    from rl4dlm.models import denoiser, encode, load
    from rl4dlm.rollout import Engine, Request

    rollout = _sampler_section(recipe, settings)
    loaded = load(path)
    renderer = open_renderer(DataConfig(train="--prompt"), loaded.tokenizer, "auto")
    text = renderer.text(prompt, {}, "--prompt")
    ids = encode(loaded.tokenizer, text)
    requests = [
        Request(0, index, derive_seed(seed, "sample", prompt, index), ids) for index in range(num_samples)
    ]
    engine = Engine(denoiser(loaded), SamplerSpec.from_config(rollout), rollout.slots)
    decode = partial(loaded.tokenizer.decode, skip_special_tokens=True)
    console = Console()
    if not console.is_terminal:
        for drawn in engine.generate(requests, policy_version=0, decode=decode):
            console.print(drawn.text, markup=False, highlight=False)
        return
    with Live(console=console, auto_refresh=False) as live:
        watch = partial(_show_step, live, loaded.tokenizer, loaded.spec.mask_id, text)
        drawn_all = engine.generate(requests, policy_version=0, decode=decode, on_step=watch)
    for drawn in drawn_all:
        steps = f"{drawn.num_steps} steps, {drawn.completion_len} tokens"
        console.print(Text(f"{text}{drawn.text}"), Text(f"  ({steps})", style="dim"))


def _sampler_section(recipe: str | None, settings: list[str]) -> Any:
    """The rollout section of a recipe, or the defaults, with settings changed."""
    from rl4dlm.recipe import load_recipe
    from rl4dlm.recipe.loader import check, parse_override

    overrides = [f"rollout.{setting}" for setting in settings]
    if recipe is not None:
        inside = Path(recipe) / "recipe.yaml"
        return load_recipe(inside if inside.is_file() else recipe, overrides, rules=()).rollout
    rollout: dict[str, Any] = {}
    for override in overrides:
        rollout |= parse_override(override)["rollout"]
    values = {
        "model": {"path": "given with --model"},
        "data": {"task": {"name": "sort"}},
        "reward": {"functions": ["sort"]},
        "algorithm": {"type": "gdpo"},
        "rollout": rollout,
    }
    return check(values, where="--set", rules=()).rollout


def _show_step(live: Live, tokenizer: Any, mask_id: int, prompt: str, view: Any) -> None:
    """Masked positions as blocks, committed tokens coloured by the confidence they were committed with."""
    lines = []
    for canvas, scores in zip(view.canvas, view.score, strict=True):
        line = Text(prompt, style="dim")
        for token, score in zip(canvas.tolist(), scores.tolist(), strict=True):
            if token == mask_id:
                line.append("▒", style="bright_black")
                continue
            colour = "green" if score > 0.9 else "yellow" if score > 0.5 else "red"
            line.append(tokenizer.decode([token], skip_special_tokens=True), style=colour)
        lines.append(line)
    live.update(Text("\n").join(lines), refresh=True)


def test_reward(
    name: str,
    data: Path | None,
    kwargs: Mapping[str, Any] | None = None,
    timeout_s: float = 5.0,
    console: Console | None = None,
) -> bool:
    """Try a reward function and print what was found; True when everything held.

    Args:
        data: rows instead of the function's own examples.
        kwargs: settings, as in a recipe.
        timeout_s: deadline per call, seconds.

    Raises:
        DataError: the rows cannot be read.
        PluginError: the function cannot be loaded.
    """
    from rl4dlm.reward.selftest import selftest

    rows = None if data is None else _rows_to_try(data)
    report = selftest(name, rows, kwargs=kwargs, timeout_s=timeout_s)
    table = Table(title=f"reward {name}", title_justify="left")
    for column in ("", "check", "found"):
        table.add_column(column)
    verdicts = {True: "[green]ok[/]", False: "[red]fails[/]", None: "[yellow]-[/]"}
    for check in report.checks:
        table.add_row(verdicts[check.passed], check.name, Text(check.detail))
    table.add_row("", "time per call", f"{report.seconds_per_call:.3g} s with one completion")
    (console or Console()).print(table)
    return bool(report.passed)


def _rows_to_try(data: Path) -> list[dict[str, Any]]:
    """The first rows of a file; with a column `completion` in all of them or in none."""
    from rl4dlm.reward.selftest import MAX_EXAMPLES
    from rl4dlm.score import SavedRows

    rows = list(islice(SavedRows(data), MAX_EXAMPLES))
    lacking = [index for index, row in enumerate(rows) if "completion" not in row]
    if 0 < len(lacking) < len(rows):
        raise DataError(
            f"{data}, row {lacking[0]}: no column `completion`, which other rows have.\n"
            "Fix: give every row its gold completion, or none, where they have a reference."
        )
    return rows
