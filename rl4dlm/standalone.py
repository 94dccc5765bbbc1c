"""Commands that need a model or a reward but no training run: evaluate, sample, try a reward."""

from __future__ import annotations

import json
import math
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
from rl4dlm.tracking.samples import visible


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
    from rl4dlm.models import denoiser, encode, load, open_policy
    from rl4dlm.rollout import Engine, Request

    rollout = _sampler_section(recipe, settings)
    if rollout.policy:
        open_policy(rollout.policy)
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


def print_samplers(console: Console | None = None) -> None:
    """What `rollout.remasking` and `rollout.cache` may be, a line each."""
    from rl4dlm.decoding import STRATEGIES
    from rl4dlm.rollout import CACHES

    samplers = Table(title="Samplers (rollout.remasking)", title_justify="left")
    for column in ("name", "what it does", "exact law", "settings"):
        samplers.add_column(column, no_wrap=column == "name")
    for name, strategy in STRATEGIES.items():
        law = "yes" if strategy.exact_law else "no"
        samplers.add_row(name, strategy.summary, law, ", ".join(strategy.settings))
    caches = Table(title="Caches (rollout.cache)", title_justify="left")
    for column in ("name", "what it does", "exact", "attention"):
        caches.add_column(column, no_wrap=column == "name")
    for name, plan in CACHES.items():
        caches.add_row(name, plan.summary, "yes" if plan.exact else "no", plan.attention)
    out = console or Console()
    out.print(samplers)
    out.print(caches)


def inspect_rollouts(
    target: Path,
    *,
    update: int | None = None,
    output: Path | None = None,
    tokenizer: str | None = None,
    num_prompts: int = 8,
) -> Path:
    """Write the page that plays recorded trajectories.

    Args:
        target: a parquet file of rollouts, or a run's folder.
        update: of a run's folder, which update; None: the newest that was recorded.
        output: page to write, replaced where it exists; None: beside the file.
        tokenizer: model folder whose tokenizer shows the tokens; None: one of the run's, or ids.
        num_prompts: groups on the page, the first of the file.

    Returns:
        The page.

    Raises:
        DataError: there are no rollouts, or they have no traces.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from rl4dlm.rollout import from_table
    from rl4dlm.rollout.record import STEP_REWARDS
    from rl4dlm.tracking.files import replace_file
    from rl4dlm.tracking.inspect import player_page

    file = _rollout_file(target, update)
    try:
        table = pq.read_table(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{file} cannot be read: {error}.\nFix: give a parquet file of rollouts.") from None
    groups, scores = from_table(table)
    steps = table.column(STEP_REWARDS).to_pylist() if STEP_REWARDS in table.column_names else None
    token_text = _token_text(tokenizer or _tokenizer_near(file))
    page = player_page(groups[:num_prompts], scores, token_text, title=file.stem, step_rewards=steps)
    path = output or file.with_suffix(".html")
    replace_file(path, page.encode("utf-8"))
    return path


def _rollout_file(target: Path, update: int | None) -> Path:
    """The file of rollouts that a command names."""
    if target.is_file():
        return target
    folder = target / "rollouts" if (target / "rollouts").is_dir() else target
    files = sorted(folder.glob("update_*.parquet"))
    wanted = [f for f in files if update is None or f.stem == f"update_{update:06d}"]
    if not wanted:
        which = "no recorded rollouts" if update is None else f"no rollouts of update {update}"
        have = f" (there are {files[0].stem} to {files[-1].stem})" if files else ""
        raise DataError(
            f"{target} holds {which}{have}.\n"
            "Fix: give a run's folder or a parquet file; tracking.rollouts_every says when they are written."
        )
    return wanted[-1]


def _tokenizer_near(file: Path) -> str | None:
    """The model folder of the run that a file of rollouts lies in."""
    for name in ("model", "warm_start", "initial_model"):
        folder = file.resolve().parent.parent / name
        if (folder / "tokenizer.json").is_file():
            return str(folder)
    recipe = file.resolve().parent.parent / "recipe.yaml"
    if recipe.is_file():
        from rl4dlm.recipe import load_recipe

        return load_recipe(recipe, rules=()).model.path
    return None


def _token_text(path: str | None) -> Any:
    """How a token is shown: its text, or its id where no tokenizer is known."""
    if path is None:
        return lambda token: f"{token} "
    from rl4dlm.models import load_tokenizer

    found, _ = load_tokenizer(path)
    return lambda token: str(found.decode([token]))


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


# Colours of a committed token, from unsure to sure: the probability that it was committed with.
_SHADES = ((0.3, "red"), (0.5, "dark_orange"), (0.7, "yellow"), (0.9, "green_yellow"), (1.0, "green"))


def _show_step(live: Live, tokenizer: Any, mask_id: int, prompt: str, view: Any) -> None:
    """Masked positions as blocks, committed tokens coloured by the probability that they were committed
    with."""
    lines = []
    for canvas, logps in zip(view.canvas, view.logp, strict=True):
        line = Text(prompt, style="dim")
        for token, logp in zip(canvas.tolist(), logps.tolist(), strict=True):
            if token == mask_id:
                line.append("▒", style="bright_black")
                continue
            colour = next(name for bound, name in _SHADES if math.exp(logp) <= bound or bound == 1.0)
            line.append(visible(tokenizer.decode([token], skip_special_tokens=True)), style=colour)
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
