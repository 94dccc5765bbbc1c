"""`rl4dlm eval --tasks`: several named tasks in one go, resumable, a table at the end."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from rl4dlm.benchmarks import (
    Benchmark,
    TaskChoice,
    choose_tasks,
    decode_settings,
    find_rows,
    task_prompts,
)
from rl4dlm.benchmarks.results import (
    TABLE_FILE,
    TaskFolder,
    disagreements,
    figure_rows,
    markdown,
    read_results,
)
from rl4dlm.benchmarks.task_run import GREEDY, SAMPLED, TaskRun, run_task, task_result
from rl4dlm.decoding import SamplerSpec
from rl4dlm.errors import CheckpointError, RecipeError
from rl4dlm.loops.session import sampling
from rl4dlm.models import inspect, load_tokenizer, options_of
from rl4dlm.models.folders import find_folder
from rl4dlm.recipe import Recipe, load_recipe
from rl4dlm.recipe.sections import RewardConfig
from rl4dlm.reward.pool import RewardPool
from rl4dlm.rollout import check_sampler
from rl4dlm.run.preflight import check_devices, check_graphs, text_format
from rl4dlm.tracking.environment import describe_environment
from rl4dlm.tracking.files import replace_file

Say = Callable[[str], None]

_SETTABLE = (
    "model.",
    "rollout.",
    "cluster.",
    "run.seed",
    "trainer.bf16",
    "reward.timeout_s",
    "tracking.wandb",
)
"""Recipe keys that mean something here; the task brings the others."""
_NOT_COMPARED = ("processors",)


@dataclass(frozen=True)
class SuiteRequest:
    """What `rl4dlm eval --tasks` was asked for."""

    tasks: str
    """`gsm8k,countdown`, a file by `gsm8k=FILE`."""
    model: str
    """Folder or hub name."""
    output: Path
    """Folder of results; made where it is missing."""
    data_dir: Path | None = None
    split: str = "test"
    length: int = 256
    """Tokens of a completion."""
    num_samples: int = 1
    """Sampled completions per prompt besides the greedy one; 1: greedy only."""
    temperature: float = 1.0
    """Of the sampled ones."""
    limit: int | None = None
    """Prompts per task at most."""
    wandb: bool = False
    overrides: tuple[str, ...] = ()
    """`section.key=value`, for the keys of `_SETTABLE`."""


@dataclass(frozen=True)
class _Job:
    choice: TaskChoice
    run: TaskRun
    folder: TaskFolder
    reward: RewardConfig
    sizes: dict[str, int]


def evaluate_tasks(request: SuiteRequest, console: Console | None = None) -> dict[str, dict[str, Any]]:
    """Evaluate a model on named tasks; what is finished in `output` already is not done again.

    Returns:
        Every result in the folder by file name, those of earlier evaluations among them.

    Raises:
        UserError: anything the user gave is wrong; nothing was started.
    """
    out = console or Console()
    say = partial(out.print, markup=False, highlight=False, soft_wrap=True)
    choices = choose_tasks(request.tasks)
    recipe = suite_recipe(request)
    check_devices(recipe)
    jobs = _open_jobs(request, recipe, choices)
    try:
        pending = [job for job in jobs if not _finished(job, say)]
        if pending:
            _run_jobs(pending, request, recipe, out, say)
    finally:
        for job in jobs:
            job.folder.close()
    results = read_results(request.output)
    replace_file(request.output / TABLE_FILE, markdown(results).encode("utf-8"))
    out.print(_table(results))
    for line in disagreements(results):
        out.print(f"warning: {line}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    say(f"wrote {request.output / TABLE_FILE}")
    if request.wandb:
        log_table(recipe, results, request.output, say)
    return results


def suite_recipe(request: SuiteRequest) -> Recipe:
    """The recipe that stands for the protocol, with the user's overrides.

    Raises:
        RecipeError: an override is wrong, or sets what a named task brings itself.
    """
    for override in request.overrides:
        if "=" not in override or not override.startswith(_SETTABLE):
            raise RecipeError(
                f"{override}: with --tasks only section.key=value of {', '.join(_SETTABLE)} can be set; the "
                "tasks bring their data and rewards.\n"
                "Fix: leave it out, or evaluate a recipe without --tasks."
            )
    if not 0 <= request.temperature < math.inf:
        raise RecipeError(
            f"--temperature {request.temperature:g} is not a number from 0 up.\nFix: use 0 to 1."
        )
    if request.num_samples > 1 and not request.temperature > 0:
        raise RecipeError(
            f"--temperature {request.temperature:g}: {request.num_samples} greedy samples are all the same.\n"
            "Fix: use a temperature above 0."
        )
    decode = [f"rollout.{key}={value}" for key, value in decode_settings(request.length).items()]
    fixed = [
        f"model.path={json.dumps(request.model)}",
        "data.train=named tasks",
        "reward.functions=[gsm8k]",
        "algorithm.type=gdpo",
        "trainer.zero_stage=0",  # nothing is trained, so nothing is sharded
        "run.name=eval",
    ]
    return load_recipe([], [*fixed, *decode, *request.overrides])


def _open_jobs(request: SuiteRequest, recipe: Recipe, choices: Sequence[TaskChoice]) -> list[_Job]:
    """Everything that can be known before workers start: model, rows, prompts, rewards, earlier results."""
    path = str(recipe.model.path)
    facts = inspect(path, **options_of(recipe.model))
    tokenizer, model = load_tokenizer(path, **options_of(recipe.model))
    length = recipe.rollout.max_completion_length
    specs = {
        GREEDY: SamplerSpec.from_config(recipe.rollout, temperature=0.0),
        SAMPLED: SamplerSpec.from_config(recipe.rollout, temperature=request.temperature),
    }
    check_graphs(recipe.rollout, facts)
    for sampler in specs.values():
        check_sampler(sampler, model)
    identity, template_kwargs = _model_identity(path), recipe.model.chat_template_kwargs
    jobs = []
    for choice in choices:
        task = choice.benchmark
        place = find_rows(choice, request.split, request.data_dir)
        prompts = task_prompts(
            choice,
            place,
            texts=text_format(recipe.model, tokenizer, model),
            limit=request.limit,
            max_prompt_tokens=facts.max_length - length,
        )
        reward = recipe.reward.model_copy(update={"functions": [task.reward]})
        with RewardPool(reward) as pool:
            pool.check(prompts[:2])
        settings = {
            "task": task.name,
            "split": request.split,
            "data": {"path": place.path, "split": place.split},
            "prompt": hashlib.sha256(f"{task.instruction}{task.prefill}".encode()).hexdigest()[:16],
            "chat_template": recipe.model.chat_template,
            **({"chat_template_kwargs": template_kwargs} if template_kwargs else {}),
            "model": identity,
            "dtype": "bfloat16" if recipe.trainer.bf16 else "float32",
            "decode": {mode: spec.describe() for mode, spec in specs.items()},
            "seed": recipe.run.seed,
            "reward": {"name": task.reward, "timeout_s": reward.timeout_s},
        }
        run = TaskRun(task.name, task.metric, tuple(prompts), specs, request.num_samples, recipe.run.seed)
        sizes = {"num_prompts": len(prompts), "num_samples": request.num_samples}
        jobs.append(_Job(choice, run, _task_folder(request, task, length, settings), reward, sizes))
    return jobs


def _task_folder(request: SuiteRequest, task: Benchmark, length: int, settings: dict[str, Any]) -> TaskFolder:
    try:
        request.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"--output {request.output}: the folder cannot be made: {error.strerror or error}.\n"
            "Fix: name another folder."
        ) from None
    return TaskFolder(request.output, task.name, length, settings)


def _model_identity(path: str) -> dict[str, str]:
    """Which weights these are: names, sizes and times of the folder's files, which cost nothing to read."""
    folder = find_folder(path, weights=True)
    facts = [
        (file.name, file.stat().st_size, file.stat().st_mtime_ns)
        for file in sorted(folder.iterdir())
        if file.is_file()
    ]
    return {"path": path, "files": hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]}


def _finished(job: _Job, say: Say) -> bool:
    if job.folder.finished(job.sizes) is None:
        return False
    say(f"{job.run.task}: finished before, {job.folder.result_file} is kept")
    return True


def _run_jobs(jobs: Sequence[_Job], request: SuiteRequest, recipe: Recipe, out: Console, say: Say) -> None:
    """Sample, score and write, task after task, with one set of workers."""
    batch = recipe.rollout.slots * recipe.cluster.num_rollout_workers
    with sampling(recipe, str(recipe.model.path), say) as (sampler, workers):
        for job in jobs:
            say(f"{job.run.task}: {job.run.num_missing(job.folder.rows)} completions to sample")
            with closing(workers.scorer(job.reward)) as scorer, _progress(out, job) as show:
                for rows in run_task(job.run, sampler.generate, scorer, job.folder.rows, batch):
                    job.folder.add(rows)
                    show(len(rows))
            result = task_result(job.run, job.folder.rows)
            if result["num_failed"]:
                say(f"warning: {job.run.task}: {result['num_failed']} rewards failed and count as wrong")
            job.folder.finish(result | job.sizes | _stamp(recipe, job))


def _stamp(recipe: Recipe, job: _Job) -> dict[str, Any]:
    """What stands beside a score: model, decode settings, environment."""
    environment = {name: value for name, value in describe_environment().items() if name not in _NOT_COMPARED}
    device = "cuda" if recipe.cluster.gpus_per_rollout_worker else "cpu"
    dtype = "bfloat16" if recipe.trainer.bf16 else "float32"
    return {
        "model": recipe.model.path,
        "decode": {mode: spec.describe() for mode, spec in job.run.specs.items()},
        "environment": environment | {"device": device, "dtype": dtype},
    }


@contextmanager
def _progress(out: Console, job: _Job) -> Iterator[Callable[[int], None]]:
    """A function that is told how many completions are done; a bar where somebody watches."""
    if not out.is_terminal:
        yield lambda count: None
        return
    with Progress(console=out, transient=True) as bar:
        task = bar.add_task(job.run.task, total=job.run.num_missing(job.folder.rows))
        yield lambda count: bar.advance(task, count)


def _table(results: dict[str, dict[str, Any]]) -> Table:
    table = Table(title="Evaluation", title_justify="left")
    for column in ("task", "length", "figure", "value", "95 % interval", "n"):
        table.add_column(column)
    for row in figure_rows(results):
        interval = "" if row["low"] is None else f"{100 * row['low']:.1f} to {100 * row['high']:.1f}"
        value = f"{100 * row['value']:.1f}"
        table.add_row(row["task"], str(row["length"]), row["figure"], value, interval, str(row["n"]))
    return table


def log_table(recipe: Recipe, results: dict[str, dict[str, Any]], folder: Path, say: Say) -> None:
    """The results as a W&B table: online where an account is configured, else offline in `folder`.

    W&B is a convenience: a failure is told and ends nothing, the results are on disk.
    """
    import wandb

    from rl4dlm.tracking.wandb_sink import account_configured, wanted_mode

    mode = wanted_mode(recipe)
    if mode == "disabled":
        say("W&B: disabled by WANDB_MODE or tracking.wandb; no table is logged")
        return
    columns = ["task", "length", "figure", "value", "low", "high", "n"]
    rows = [[row[column] for column in columns] for row in figure_rows(results)]
    try:
        if mode == "auto":
            mode = "online" if account_configured() else "offline"
        with wandb.init(
            project=recipe.tracking.wandb_project,
            entity=recipe.tracking.wandb_entity,
            name=f"eval-{folder.name}",
            dir=str(folder),
            config={name: result["settings"] for name, result in results.items()},
            settings=wandb.Settings(mode=mode, silent=True, console="off"),
        ) as run:
            run.log({"eval/results": wandb.Table(columns=list(columns), data=rows)})
            say(f"W&B: {run.url or f'offline; `wandb sync {Path(run.dir).parent}` uploads it'}")
    except Exception as error:  # whatever a third party raises, with one remedy
        say(f"warning: W&B failed to log the table ({error}); {folder / TABLE_FILE} holds it")
