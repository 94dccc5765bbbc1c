"""`--dry-run`: check everything, print placement and cost, then what this machine lacks; start nothing."""

from __future__ import annotations

from functools import partial

from rich.console import Console
from rich.table import Table

from rl4dlm.errors import CheckpointError, ClusterError, Rl4dlmError, StorageError
from rl4dlm.recipe import AnyRecipe, Recipe, SFTRecipe
from rl4dlm.run.cost import GIB, Cost, cost_of, sft_cost_of
from rl4dlm.run.folder import RunFolder
from rl4dlm.run.preflight import Preflight, SFTPreflight, check_devices, preflight, preflight_sft
from rl4dlm.trainers.sft import sft_batch
from rl4dlm.trainers.sft_steps import step_plan
from rl4dlm.trainers.trial import tried_method


def dry_run(recipe: Recipe, console: Console | None = None) -> None:
    """Check a recipe as `train` would, and print what it will need.

    Raises:
        UserError: as `train` would, before anything is started. What this machine lacks (GPUs, a place that
            can be written) is raised after everything has been printed.
    """
    checks = preflight(recipe, devices=False)
    tried_method(recipe, checks.spec)
    first = checks.prompts.batch(0, recipe.rollout.prompts_per_update)
    prompt_tokens = max(len(prompt.token_ids) for prompt in first)
    _print(recipe, checks, cost_of(recipe, checks.facts, prompt_tokens), console)


def dry_run_sft(recipe: SFTRecipe, console: Console | None = None) -> None:
    """Check a recipe as `sft` would, and print what it will need.

    Raises:
        UserError: as `sft` would, before anything is started; see `dry_run` on what is raised last.
    """
    checks = preflight_sft(recipe, devices=False)
    last = recipe.trainer.max_steps - 1  # block growth ends with the longest blocks
    plan = step_plan(recipe, checks.objective, checks.spec, last)
    batch = sft_batch(checks.examples.batch(0, recipe.sft.batch_size), plan, checks.spec, 0)
    longest = max(range(len(batch)), key=batch.tokens)
    cost = sft_cost_of(recipe, checks.facts, batch.tokens(longest), len(batch.completion_ids[longest]))
    _print(recipe, checks, cost, console)


def _print(recipe: AnyRecipe, checks: Preflight | SFTPreflight, cost: Cost, console: Console | None) -> None:
    out = console or Console()
    out.print(_facts_table(recipe, checks))
    out.print(_cost_tables(recipe, cost))
    out.print("Nothing was started: this was a dry run.")
    _require_machine(recipe)


def _require_machine(recipe: AnyRecipe) -> None:
    """This machine has the devices and the place that the run needs.

    Raises:
        UserError: with everything that it lacks.
        StorageError: where that is only a place to write to.
    """
    lacking: list[Rl4dlmError] = []
    for check in (partial(check_devices, recipe), RunFolder.of(recipe).try_writing):
        try:
            check()
        except (ClusterError, StorageError) as error:
            lacking.append(error)
    if len(lacking) == 1:
        raise lacking[0]
    if lacking:
        raise ClusterError("\n".join(str(error) for error in lacking))


def _run_folder(recipe: AnyRecipe) -> str:
    folder = RunFolder.of(recipe)
    try:
        folder.refuse_other_run()
    except CheckpointError:
        there = "holds a run that --resume continues" if folder.recipe.exists() else "is not empty"
        return f"{folder.root} ({there}; a new run needs another run.name)"
    return str(folder.root)


def _facts_table(recipe: AnyRecipe, checks: Preflight | SFTPreflight) -> Table:
    facts, cluster = checks.facts, recipe.cluster
    method = f"sft, {checks.objective.type}" if isinstance(checks, SFTPreflight) else recipe.method
    table = Table(title=f"{recipe.run.name}: {method}", show_header=False, title_justify="left")
    source = recipe.model.path or "made from scratch"
    table.add_row(
        "model",
        f"{facts.family}, {facts.num_parameters:,} parameters, {facts.num_layers} layers, width "
        f"{facts.hidden_size}, vocabulary {facts.vocab_size:,} ({source})",
    )
    for note in checks.notes:
        table.add_row("data", note)
    for warning in checks.warnings:
        table.add_row("warning", warning)
    if recipe.reward is not None:
        names = [f if isinstance(f, str) else f.path for f in recipe.reward.functions]
        table.add_row("rewards", ", ".join(names) + ": loaded and tried on two samples")
    table.add_row("placement", _placement(recipe))
    if cluster.schedule != "sync":
        table.add_row("schedule", f"{cluster.schedule}: the next rollouts are drawn while an update runs")
    table.add_row("run folder", _run_folder(recipe))
    return table


def _placement(recipe: AnyRecipe) -> str:
    """Who would run where."""
    cluster = recipe.cluster
    if cluster.backend == "local":
        return f"everything in this process, on {'one GPU' if cluster.gpus_per_trainer else 'the CPU'}"
    device = f"{cluster.gpus_per_trainer:g} GPU" if cluster.gpus_per_trainer else "CPU"
    worker = f"{cluster.gpus_per_rollout_worker:g} GPU" if cluster.gpus_per_rollout_worker else "CPU"
    samplers = (
        f"{cluster.num_rollout_workers} rollout worker(s) on {worker} each, {cluster.placement}; "
        f"{cluster.num_reward_workers} reward worker(s); "
    )
    return (
        f"{cluster.num_trainers} trainer rank(s) on {device} each, "
        f"{samplers if recipe.reward is not None else ''}"
        f"{'local Ray cluster' if cluster.address is None else cluster.address}"
    )


def _cost_tables(recipe: AnyRecipe, cost: Cost) -> Table:
    precision = "bf16" if recipe.trainer.bf16 else "fp32"
    local = recipe.cluster.backend == "local"
    rank = (
        f"memory of training ({precision})"
        if local
        else (f"memory per trainer rank (ZeRO-{recipe.trainer.zero_stage}, {precision})")
    )
    table = Table(title="Estimates", title_justify="left")
    table.add_column("what")
    table.add_column("parts")
    table.add_column("total", justify="right")
    table.add_row(rank, *_bytes(cost.trainer))
    if cost.trainer_host:
        table.add_row("host memory per trainer rank", "optimizer", human(cost.trainer_host))
    if cost.rollout:
        sampler = "memory of sampling besides" if local else "memory per rollout worker"
        table.add_row(sampler, *_bytes(cost.rollout))
    table.add_row("disk", *_bytes(cost.disk))
    parts = ", ".join(f"{name} {count:,.0f}" for name, count in cost.forwards.items() if count)
    table.add_row("sequence forwards per update", parts, f"{sum(cost.forwards.values()):,.0f}")
    return table


def _bytes(parts: dict[str, float]) -> tuple[str, str]:
    text = ", ".join(f"{name} {human(size)}" for name, size in parts.items() if size)
    return text, human(sum(parts.values()))


def human(size: float) -> str:
    """Bytes for people."""
    if size >= GIB / 10:
        return f"{size / GIB:.1f} GiB"
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 / 10 else f"{size / 1024:.1f} KiB"
