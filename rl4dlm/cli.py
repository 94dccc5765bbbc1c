"""The command line. Commands import what they need when they run, so `rl4dlm --help` answers at once."""

from __future__ import annotations

import errno
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from rl4dlm import __version__
from rl4dlm.errors import Interrupted, Rl4dlmError, UserError

app = typer.Typer(
    name="rl4dlm",
    help="Reinforcement learning for diffusion language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    add_completion=False,
)
recipes_app = typer.Typer(help="Recipes that come with the package.", no_args_is_help=True)
rewards_app = typer.Typer(help="Reward functions: built in, and your own.", no_args_is_help=True)
app.add_typer(recipes_app, name="recipes")
app.add_typer(rewards_app, name="rewards")
methods_app = typer.Typer(help="Methods: of the package, and your own.", no_args_is_help=True)
app.add_typer(methods_app, name="methods")

_INTERRUPTED = 130
MAX_COUNT = 2**31 - 1
"""Largest number that an option takes for a count."""
MAX_SEED = 2**63 - 1


def _seconds(text: str) -> float:
    """A deadline."""
    return _finite(text, 0.001)


def _temperature(text: str) -> float:
    return _finite(text, 0.0)


def _finite(text: str, least: float) -> float:
    """A number as an option's value; NaN and infinity are none."""
    value = float(text)
    if not least <= value <= MAX_COUNT:
        raise ValueError(f"{text} is not a number from {least:g} to {MAX_COUNT}")
    return value


RewardSettings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Setting of the reward (kwargs in a recipe), e.g. tags=think,answer."),
]

RecipeArguments = Annotated[
    list[str], typer.Argument(help="Recipes (files or shipped names), then section.key=value overrides.")
]


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Reinforcement learning for diffusion language models."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, print the cost, start nothing.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Continue from the newest checkpoint, or from step=N.")
]


@app.command()
def train(recipe: RecipeArguments, dry_run: DryRun = False, resume: Resume = False) -> None:
    """Train by RL: rollouts, rewards, updates, evaluation.

    Example: rl4dlm train quickstart trainer.max_steps=50 run.name=mine
    """
    from rl4dlm.recipe import Recipe

    loaded, step = _run_to_start(recipe, Recipe, dry_run, resume)
    if dry_run:
        from rl4dlm.commands.dry_run import dry_run as run_dry

        run_dry(loaded)
        return
    from rl4dlm.loops.train import train as run

    run(loaded, resume=resume, step=step)


@app.command()
def sft(recipe: RecipeArguments, dry_run: DryRun = False, resume: Resume = False) -> None:
    """Fine-tune on completions: random masks, blocks, traces, next tokens; conversion of AR models.

    Example: rl4dlm sft sft/tiny_sort trainer.max_steps=100 run.name=mine
    """
    from rl4dlm.recipe import SFTRecipe

    loaded, step = _run_to_start(recipe, SFTRecipe, dry_run, resume)
    if dry_run:
        from rl4dlm.commands.dry_run import dry_run_sft

        dry_run_sft(loaded)
        return
    from rl4dlm.loops.finetune import finetune

    finetune(loaded, resume=resume, step=step)


@app.command("eval")
def evaluate(
    recipe: Annotated[
        list[str] | None,
        typer.Argument(help="Recipes and section.key=value overrides; with --tasks overrides alone."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model folder or hub name; default: the recipe's.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="JSON file of a recipe's scores; with --tasks the folder of results."),
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Named tasks, e.g. gsm8k,countdown=my.jsonl, instead of a recipe.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder with the tasks' files; default: the hub.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of the tasks: test (default) or train.")] = None,
    length: Annotated[
        int | None, typer.Option(min=1, max=MAX_COUNT, help="Tokens per completion: 128, 256 (default), 512.")
    ] = None,
    num_samples: Annotated[
        int | None,
        typer.Option(min=1, max=MAX_COUNT, help="Sampled completions per prompt, for avg@n and pass@k."),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(parser=_temperature, metavar="FLOAT", help="Of the sampled completions.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, max=MAX_COUNT, help="First N prompts of each task.")
    ] = None,
    wandb: Annotated[bool, typer.Option("--wandb", help="Log the results as a W&B table too.")] = False,
) -> None:
    """Evaluate a model on a recipe's held-out prompts, or on named tasks under the published protocol.

    Example: rl4dlm eval runs/quickstart --model runs/quickstart/model eval.num_prompts=500

    Example: rl4dlm eval --tasks gsm8k,countdown --model FOLDER --data-dir data --output results
    """
    options = {
        "data_dir": data_dir,
        "split": split,
        "length": length,
        "num_samples": num_samples,
        "temperature": temperature,
        "limit": limit,
        "wandb": wandb or None,
    }
    given = {name: value for name, value in options.items() if value is not None}
    if tasks is not None:
        _evaluate_tasks(tasks, model, output, tuple(recipe or ()), given)
        return
    if given:
        name = next(iter(given)).replace("_", "-")
        raise UserError(
            f"--{name} goes with --tasks.\nFix: add --tasks, or set the recipe's keys (eval.*, rollout.*)."
        )
    from rl4dlm.commands.eval import evaluate_model

    evaluate_model(_recipe([*(recipe or []), *_other_model(model)]), output)


@app.command()
def sample(
    model: Annotated[str | None, typer.Option(help="Model folder or hub name.")] = None,
    prompt: Annotated[
        str | None, typer.Option(help="What the model reads; a chat template is applied where there is one.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="Recipe whose sampler, model settings, system prompt and template are taken."),
    ] = None,
    num_samples: Annotated[int, typer.Option("-n", "--num-samples", min=1, max=MAX_COUNT)] = 1,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED)] = 0,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Sampler setting, e.g. temperature=0.5; or model.KEY and data.KEY, e.g. model.family=a2d.",
        ),
    ] = None,
    sampler: Annotated[
        str | None, typer.Option(help="Sampler by name, e.g. threshold or rcr; short for --set remasking=...")
    ] = None,
    list_samplers: Annotated[
        bool, typer.Option("--list-samplers", help="Say which samplers and caches there are, and stop.")
    ] = False,
) -> None:
    """Sample completions and watch them being denoised.

    Example: rl4dlm sample --model runs/quickstart/model --recipe quickstart --prompt 872744= --sampler rcr
    """
    from rl4dlm.commands.sample import print_samplers, sample_model

    if list_samplers:
        print_samplers()
        return
    if model is None or prompt is None:
        raise UserError("sampling needs a model and a prompt.\nFix: add --model FOLDER --prompt TEXT.")
    settings = [*(setting or []), *([] if sampler is None else [f"remasking={sampler}"])]
    sample_model(model, prompt, recipe, settings, num_samples, seed)


@app.command()
def inspect(
    target: Annotated[Path, typer.Argument(help="A run's folder, or a parquet file of rollouts.")],
    update: Annotated[
        int | None, typer.Option(min=1, max=MAX_COUNT, help="Which update of a run; default: the newest.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Page to write; default: beside the file.")] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Model folder whose tokenizer shows the tokens; default: the run's.")
    ] = None,
    num_prompts: Annotated[int, typer.Option(min=1, max=MAX_COUNT, help="Prompts on the page.")] = 8,
) -> None:
    """Play recorded trajectories step by step: writes one page that opens in a browser, without a network.

    Example: rl4dlm inspect runs/quickstart --update 40
    """
    from rl4dlm.commands.inspect import inspect_rollouts

    page = inspect_rollouts(
        target, update=update, output=output, tokenizer=tokenizer, num_prompts=num_prompts
    )
    typer.echo(f"wrote {page}")


@app.command()
def score(
    file: Annotated[Path, typer.Argument(help="Saved completions: .jsonl, .csv or .parquet.")],
    reward: Annotated[str, typer.Option(help="Built-in name, file, or package.module:function.")],
    prompt_column: Annotated[str, typer.Option(help="Column that holds the prompt.")] = "question",
    completion_column: Annotated[str, typer.Option(help="Column that holds the completion.")] = "generation",
    target_column: Annotated[str, typer.Option(help="Column that holds the reference.")] = "ground_truth",
    metric: Annotated[
        str | None,
        typer.Option(help="accuracy (share of full marks) or mean; default: the reward's own."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    output: Annotated[
        Path | None, typer.Option(help="Verdicts per row (JSON lines); default: beside FILE.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, max=MAX_COUNT, help="Score the first N rows only.")
    ] = None,
    timeout_s: Annotated[
        float, typer.Option(parser=_seconds, metavar="FLOAT", help="Deadline per row, seconds.")
    ] = 5.0,
    num_processes: Annotated[
        int, typer.Option(min=1, max=MAX_COUNT, help="Killable processes that score.")
    ] = 1,
    setting: RewardSettings = None,
) -> None:
    """Score saved completions with a reward function.

    Example: rl4dlm score --reward gsm8k generations.jsonl --json
    """
    from rl4dlm.commands.score import Columns, ScoreRequest, print_scores, score_file, score_json

    columns = Columns(prompt_column, completion_column, target_column)
    kwargs = _reward_settings(setting)
    request = ScoreRequest(
        reward, file, columns, _metric(metric), output, limit, timeout_s, num_processes, kwargs
    )
    report = score_file(request)
    if as_json:
        typer.echo(score_json(report))
    else:
        print_scores(report)
    raise typer.Exit(0 if report.scores.count else 1)


@app.command()
def estimate(
    source: Annotated[
        list[str],
        typer.Argument(
            help="Completions: rollouts of a run (.parquet), prompt and completion (.jsonl), or a recipe, "
            "whose data (and model) are taken, with section.key=value overrides."
        ),
    ],
    model: Annotated[
        str | None, typer.Option(help="Model folder or hub name; default: the recipe's.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="Second model: log-ratios with shared and independent masks.")
    ] = None,
    forwards: Annotated[str, typer.Option(help="Forwards per estimate.")] = "1,2,3,4,5,8",
    estimators: Annotated[str | None, typer.Option(help="Some of them, e.g. stratified,coupled.")] = None,
    num_completions: Annotated[
        int, typer.Option(min=1, max=MAX_COUNT, help="Completions, spread over the file.")
    ] = 8,
    scope: Annotated[
        str, typer.Option(help="Positions that are estimated: until_eos, or the whole canvas.")
    ] = "until_eos",
    block_length: Annotated[
        int | None,
        typer.Option(min=1, max=MAX_COUNT, help="Of the block-wise estimate; default: half, 32 at most."),
    ] = None,
    repeats: Annotated[
        int | None,
        typer.Option(min=2, max=MAX_COUNT, help="Draws per completion; default: 2000 exact, 64 sampled."),
    ] = None,
    exact_up_to: Annotated[
        int, typer.Option(min=0, max=16, help="Positions whose subsets are all evaluated.")
    ] = 10,
    reference_forwards: Annotated[
        int, typer.Option(min=16, max=MAX_COUNT, help="Forwards of a longer completion's reference.")
    ] = 1024,
    max_tokens: Annotated[int, typer.Option(min=1, max=MAX_COUNT, help="Padded tokens per forward.")] = 16384,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED)] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    bf16: Annotated[bool, typer.Option("--bf16", help="Weights in bfloat16.")] = False,
    plot: Annotated[Path | None, typer.Option(help="SVG file to write.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Measure bias and spread of every likelihood estimator, per number of forwards.

    Example: rl4dlm estimate quickstart --model runs/quickstart/warm_start --plot estimators.svg

    Example: rl4dlm estimate runs/a/rollouts/update_000001.parquet --model runs/a/model --against runs/b/model
    """
    from rl4dlm.commands.estimate import EstimateRequest, estimate_json, print_estimates
    from rl4dlm.commands.estimate import estimate as run_estimate

    request = EstimateRequest(
        source=tuple(source),
        recipe=_completions_recipe(source, model),
        model=model,
        against=against,
        names=() if estimators is None else tuple(estimators.split(",")),
        forwards=_counts(forwards),
        num_completions=num_completions,
        scope=_scope(scope),
        block_length=block_length,
        repeats=repeats,
        exact_up_to=exact_up_to,
        reference_forwards=reference_forwards,
        max_tokens=max_tokens,
        seed=seed,
        device=device,
        bf16=bf16,
        plot=plot,
    )
    report = run_estimate(request)
    if as_json:
        typer.echo(estimate_json(report))
    else:
        print_estimates(report)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    output: Annotated[Path, typer.Argument(help="Folder to write; must not exist.")],
    step: Annotated[int | None, typer.Option(help="Update of the checkpoint; default: the newest.")] = None,
    push_to: Annotated[str | None, typer.Option(help="Upload it to the hub as owner/name, too.")] = None,
    private: Annotated[bool, typer.Option(help="Whether a repository that is made is private.")] = True,
) -> None:
    """Write a run's weights as a plain Hugging Face folder with a model card.

    Example: rl4dlm export runs/quickstart my-model --step 50
    """
    from rl4dlm.commands.export import export as run_export

    typer.echo(f"wrote {run_export(run, output, step, push_to=push_to, private=private)}")
    if push_to is not None:
        typer.echo(f"uploaded it to {push_to}")


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="A GGUF file, a model folder, or a hub name.")],
    folder: Annotated[Path, typer.Argument(help="Folder to write; must not exist.")],
    to: Annotated[
        str | None,
        typer.Option(help="blocks or full: an untrained diffusion model; default: the model as it is."),
    ] = None,
    block_length: Annotated[
        int | None, typer.Option(min=1, max=MAX_COUNT, help="Tokens of a block, with --to blocks.")
    ] = None,
    shift: Annotated[
        bool | None,
        typer.Option(
            "--shift/--no-shift",
            help="Read a token off the row before it, as autoregressive models do; default in blocks.",
        ),
    ] = None,
    mask_token: Annotated[
        str | None,
        typer.Option(
            help="Token for hidden positions; default: the tokenizer's, else a reserved one, else a new one."
        ),
    ] = None,
) -> None:
    """Write a model as a plain folder, or as a diffusion model that blocks of one token leave what it was.

    Example: rl4dlm convert SmolLM2-135M-Instruct.gguf smollm2-blocks --to blocks --block-length 4
    """
    from rl4dlm.commands.convert import ConvertRequest, convert_model

    if to not in (None, "blocks", "full"):
        raise UserError(f"--to {to!r} is not known.\nFix: use blocks or full, or leave it out.")
    typer.echo(convert_model(ConvertRequest(source, folder, to, block_length, shift, mask_token)))  # type: ignore[arg-type]


@app.command()
def doctor() -> None:
    """Say what this machine has and what is missing.

    Example: rl4dlm doctor
    """
    from rl4dlm.commands.doctor import examine

    raise typer.Exit(examine())


@recipes_app.command("ls")
def recipes_ls() -> None:
    """List the shipped recipes.

    Example: rl4dlm recipes ls
    """
    from rl4dlm.recipe import list_recipes

    for name, path in list_recipes().items():
        first = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        typer.echo(f"{name:28} {first}")


@recipes_app.command("show")
def recipes_show(name: str) -> None:
    """Print a shipped recipe.

    Example: rl4dlm recipes show gdpo/tiny_sort
    """
    from rl4dlm.recipe import find_recipe

    typer.echo(find_recipe(name).read_text(encoding="utf-8"), nl=False)


@recipes_app.command("cp")
def recipes_cp(name: str, target: Path) -> None:
    """Copy a shipped recipe to edit it.

    Example: rl4dlm recipes cp gdpo/tiny_sort mine.yaml
    """
    from rl4dlm.errors import RecipeError
    from rl4dlm.recipe import find_recipe

    source = find_recipe(name)
    if target.is_dir():
        target = target / source.name
    if target.exists():
        raise RecipeError(f"{target} exists; nothing was overwritten.\nFix: name another file.")
    if not target.parent.is_dir():
        raise RecipeError(f"{target.parent} is no folder.\nFix: make it, or name another place.")
    target.write_bytes(source.read_bytes())
    typer.echo(f"wrote {target}")


@methods_app.command("ls")
def methods_ls() -> None:
    """List methods by their `algorithm.type`.

    Example: rl4dlm methods ls
    """
    from rl4dlm.commands.methods import list_methods

    for name, summary in list_methods():
        typer.echo(f"{name:16} {summary}")


@methods_app.command("test")
def methods_test(
    name: Annotated[str, typer.Argument(help="A method's name, FILE:Name, or package.module:Name.")],
    settings: Annotated[list[str] | None, typer.Argument(help="Its settings, as key=value.")] = None,
) -> None:
    """Hold a method to the laws that those of the package obey, on a tiny model.

    Example: rl4dlm methods test my_method.py:MyMethod num_masks=2
    """
    from rl4dlm.commands.methods import method_settings, test_method

    if not test_method(method_settings(name, settings or [])):
        raise typer.Exit(1)


@rewards_app.command("ls")
def rewards_ls() -> None:
    """List reward functions by name.

    Example: rl4dlm rewards ls
    """
    from rl4dlm.reward import list_rewards

    for reward in list_rewards():
        typer.echo(f"{reward.name:16} {reward.summary}")


@rewards_app.command("test")
def rewards_test(
    name: Annotated[str, typer.Argument(help="Built-in name, file, or package.module:function.")],
    data: Annotated[
        Path | None,
        typer.Option(help="Rows to try it on (.jsonl, .csv, .parquet); default: its own EXAMPLES."),
    ] = None,
    prompt_column: Annotated[
        str | None, typer.Option(help="Column of --data that holds the prompt; default: the usual names.")
    ] = None,
    answer_column: Annotated[
        str | None, typer.Option(help="Column of --data that the reward gets as `answer`.")
    ] = None,
    target_column: Annotated[
        str | None, typer.Option(help="Column of --data that holds the reference, as in `rl4dlm score`.")
    ] = None,
    setting: RewardSettings = None,
    timeout_s: Annotated[
        float, typer.Option(parser=_seconds, metavar="FLOAT", help="Deadline per call, seconds.")
    ] = 5.0,
) -> None:
    """Try a reward: gold answers, empty and hostile text, time per call, determinism.

    Example: rl4dlm rewards test gsm8k --data rows.jsonl --prompt-column q --answer-column solution
    """
    from rl4dlm.commands.rewards import RowColumns, test_reward

    columns = RowColumns(prompt_column, answer_column, target_column)
    passed = test_reward(name, data, _reward_settings(setting), timeout_s, columns=columns)
    raise typer.Exit(0 if passed else 1)


def _evaluate_tasks(
    tasks: str, model: str | None, output: Path | None, overrides: tuple[str, ...], options: dict[str, Any]
) -> None:
    if model is None:
        raise UserError("--tasks evaluates a model, and none is named.\nFix: add --model FOLDER.")
    from rl4dlm.commands.eval_tasks import SuiteRequest, evaluate_tasks

    folder = output or Path("evaluations") / Path(model).resolve().name
    evaluate_tasks(SuiteRequest(tasks, model, folder, overrides=overrides, **options))


def _completions_recipe(source: list[str], model: str | None) -> Any:
    """The recipe that `estimate` takes completions from; None where a file has them."""
    from rl4dlm.commands.estimate.sources import names_a_file

    if names_a_file(source):
        return None
    return _recipe([*source, *_other_model(model)])


def _other_model(model: str | None) -> list[str]:
    """Overrides that put a model folder in the place of a recipe's model."""
    return [] if model is None else ["model.init=null", f"model.path={model}", "warm_start=null"]


def _counts(text: str) -> tuple[int, ...]:
    """`1,2,4` as numbers, in order."""
    from rl4dlm.errors import RecipeError

    parts = text.split(",")
    if not all(part.strip().isdecimal() and len(part) < 10 and int(part) for part in parts):
        raise RecipeError(f"--forwards {text!r} is no list of counts from 1.\nFix: write 1,2,4.")
    return tuple(sorted({int(part) for part in parts}))


def _scope(name: str) -> str:
    from rl4dlm.commands.estimate import SCOPES
    from rl4dlm.errors import RecipeError

    if name not in SCOPES:
        raise RecipeError(f"--scope {name!r} is not known.\nFix: use {' or '.join(SCOPES)}.")
    return name


def _metric(name: str | None) -> Any:
    """A metric of `score` by name."""
    from rl4dlm.commands.score import METRICS
    from rl4dlm.errors import RecipeError

    if name is not None and name not in METRICS:
        raise RecipeError(f"--metric {name!r} is not known.\nFix: use {' or '.join(METRICS)}.")
    return name


def _reward_settings(settings: list[str] | None) -> dict[str, Any]:
    """`key=value` of `--set` as keyword arguments; values are YAML."""
    from rl4dlm.errors import RecipeError
    from rl4dlm.recipe.loader import parse_override

    kwargs: dict[str, Any] = {}
    for setting in settings or []:
        if "=" not in setting:
            raise RecipeError(f"--set {setting!r} has no value.\nFix: write --set key=value.")
        kwargs |= parse_override(setting)
    return kwargs


def _recipe(arguments: list[str], kind: type[Any] | None = None) -> Any:
    """Layer the recipes among the arguments, then apply the overrides; `kind` None: one for RL."""
    from rl4dlm.errors import RecipeError
    from rl4dlm.recipe import Recipe, load_recipe
    from rl4dlm.recipe.bounded import is_file

    kind = kind or Recipe
    command, example = ("train", "quickstart") if kind is Recipe else ("sft", "sft/tiny_sort")
    overrides = [a for a in arguments if "=" in a and not is_file(a) and _run_recipe(a) == a]
    names = [a for a in arguments if a not in overrides]
    if not names:
        raise RecipeError(
            f"no recipe was named.\nFix: `rl4dlm {command} {example}`; `rl4dlm recipes ls` lists them."
        )
    loaded = load_recipe([_run_recipe(name) for name in names], overrides)
    if not isinstance(loaded, kind):
        has, other = ("no section sft", "train") if kind is not Recipe else ("a section sft", "sft")
        raise RecipeError(
            f"{', '.join(names)}: the recipe has {has}, so it is one for `rl4dlm {other}`.\n"
            f"Fix: use that command, or a recipe such as {example}."
        )
    return loaded


def _run_recipe(name: str) -> str:
    """A run's folder stands for the recipe inside it."""
    from rl4dlm.recipe.bounded import is_file

    inside = str(Path(name) / "recipe.yaml")
    return inside if is_file(inside) else name


def _run_to_start(
    arguments: list[str], kind: type[Any], dry_run: bool, resume: bool
) -> tuple[Any, int | None]:
    """The recipe of a run and the update to resume from; refuses, before heavy imports, a folder that a new
    run may not use or a resumed one cannot."""
    from rl4dlm.run.folder import RunFolder

    rest, step = _take_step(arguments, resume)
    loaded = _recipe([*rest, *_place_of_run(rest, resume)], kind)
    if resume or not dry_run:
        RunFolder.of(loaded).starting_point(loaded, resume=resume, step=step)
    return loaded, step


def _place_of_run(arguments: list[str], resume: bool) -> list[str]:
    """Overrides that say where a run to be resumed lies now: its folder may have been moved or renamed."""
    folders = [Path(name) for name in arguments if _run_recipe(name) != name]
    if not resume or len(folders) != 1:
        return []
    folder = folders[0].absolute()
    place = {"run.output_dir": str(folder.parent), "run.name": folder.name}
    given = {argument.partition("=")[0] for argument in arguments}
    return [f"{key}={json.dumps(value)}" for key, value in place.items() if key not in given]


def _take_step(arguments: list[str], resume: bool) -> tuple[list[str], int | None]:
    """Split `step=N` off the arguments of `--resume`."""
    from rl4dlm.errors import RecipeError

    steps = [a for a in arguments if a.startswith("step=")]
    rest = [a for a in arguments if a not in steps]
    if not steps:
        return rest, None
    if not resume:
        raise RecipeError(f"{steps[-1]} goes with --resume.\nFix: add --resume, or leave it out.")
    try:
        return rest, int(steps[-1].removeprefix("step="))
    except ValueError:
        raise RecipeError(f"{steps[-1]!r} is not the number of an update.\nFix: write step=50.") from None


def _guarded(run: Callable[[], None]) -> int:
    """Exit status: 0 done, 2 the user's input is wrong, 1 the run failed, 128 and the signal's number where
    it was interrupted."""
    try:
        run()
    except Interrupted as error:
        print(f"rl4dlm: {error}", file=sys.stderr)
        return error.exit_code
    except UserError as error:
        print(f"rl4dlm: {error}", file=sys.stderr)
        return UserError.exit_code
    except Rl4dlmError as error:
        print(f"rl4dlm: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return _interrupted()
    except SystemExit as stop:
        if stop.code == _INTERRUPTED:  # what typer makes of KeyboardInterrupt
            return _interrupted()
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except Exception as error:
        if _names_no_file(error):
            print("rl4dlm: a path is longer than a file's may be.\nFix: shorten it.", file=sys.stderr)
            return UserError.exit_code
        traceback.print_exc()
        print(f"rl4dlm: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def _interrupted() -> int:
    print("rl4dlm: interrupted.", file=sys.stderr)
    return _INTERRUPTED


def _names_no_file(error: Exception) -> bool:
    """Whether a path among the arguments is longer than the file system takes."""
    return isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG


def _run() -> None:
    if any("\0" in argument for argument in sys.argv):
        raise UserError("an argument holds a NUL character.\nFix: remove it.")
    app()


def main() -> None:
    """Entry point of the console script."""
    sys.exit(_guarded(_run))


if __name__ == "__main__":
    main()
