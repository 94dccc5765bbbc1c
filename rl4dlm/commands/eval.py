"""Evaluate a model on held-out prompts, where the recipe works."""

from __future__ import annotations

import json
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rl4dlm.errors import RecipeError
from rl4dlm.loops.evaluate import evaluate
from rl4dlm.loops.session import sampling
from rl4dlm.recipe import Recipe
from rl4dlm.run.folder import storage
from rl4dlm.run.preflight import Preflight, preflight
from rl4dlm.tracking import Evaluation
from rl4dlm.tracking.environment import describe_environment
from rl4dlm.tracking.names import format_measured, headline_names
from rl4dlm.tracking.samples import visible


def evaluate_model(recipe: Recipe, output: Path | None, console: Console | None = None) -> Evaluation:
    """Evaluate the recipe's model on its held-out prompts, with the recipe's sampler.

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
    for name in headline_names(evaluation.metrics):
        table.add_row(name, format_measured(name, evaluation.metrics))
    table.add_row("decode", json.dumps(evaluation.decode["greedy"]))
    out.print(table)
    for warning in evaluation.warnings.values():
        out.print(f"warning: {visible(warning, lines=True)}", style="yellow", markup=False, highlight=False)
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

    def say(text: str) -> None:
        out.print(text, markup=False, highlight=False)

    with tempfile.TemporaryDirectory() as scratch:
        path = recipe.model.path
        if path is None:
            model = checks.make_model()
            path = str(save(model, Path(scratch) / "model", model.tokenizer))
        with (
            sampling(recipe, path, say) as (sampler, workers),
            closing(workers.scorer(recipe.reward)) as scorer,
        ):
            prompts = checks.prompts.eval_prompts(recipe.eval.num_prompts)
            return evaluate(sampler.generate, scorer, prompts, recipe, version=0, update=0)


def _evaluation_record(recipe: Recipe, evaluation: Evaluation) -> dict[str, Any]:
    """Scores with what they depend on beside them."""
    shown = recipe.shown()
    return {
        "metrics": evaluation.metrics,
        "decode": evaluation.decode,
        "model": shown["model"]["path"] or shown["model"]["init"],
        "data": shown["data"],
        "rewards": shown["reward"],
        "seed": recipe.run.seed,
        "environment": describe_environment()
        | {
            "device": "cuda" if recipe.cluster.gpus_per_rollout_worker else "cpu",
            "dtype": "bfloat16" if recipe.trainer.bf16 else "float32",
        },
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "samples": [vars(row) for row in evaluation.samples],
    }
