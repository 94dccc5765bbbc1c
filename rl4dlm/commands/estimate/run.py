"""Model and completions in, measured estimators out: what `rl4dlm estimate` does."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rl4dlm.commands.estimate.report import LogRatio, Measured, Report, write_plot
from rl4dlm.commands.estimate.sources import EstimateSample, assemble, names_a_file, read_file, read_recipe
from rl4dlm.errors import ModelError, RecipeError
from rl4dlm.likelihood.lab import (
    ESTIMATORS,
    Advance,
    Completions,
    Estimator,
    Oracle,
    Reference,
    enumerate_subsets,
    estimates,
    independent,
    references,
    spread,
)
from rl4dlm.models import LoadedModel, denoiser, load
from rl4dlm.recipe import Recipe
from rl4dlm.run.preflight import scratch_model
from rl4dlm.tracking.panels import require_matplotlib

LOOKED_UP_REPEATS = 2000
EVALUATED_REPEATS = 64


@dataclass(frozen=True)
class EstimateRequest:
    """What `rl4dlm estimate` was asked for."""

    source: tuple[str, ...]
    """A file of completions, or recipes with overrides (for messages; `recipe` holds what they say)."""
    recipe: Recipe | None = None
    model: str | None = None
    """Folder or hub name; None: the recipe's."""
    against: str | None = None
    """A second model: log-ratios are measured too."""
    names: tuple[str, ...] = ()
    """Estimators to measure; empty: all."""
    forwards: tuple[int, ...] = (1, 2, 3, 4, 5, 8)
    num_completions: int = 8
    scope: str = "until_eos"
    block_length: int | None = None
    """Of the block-wise estimate; None: half of the completion, 32 at most."""
    repeats: int | None = None
    """Draws per completion; None: 2000 where they are looked up, 64 where each asks the model."""
    exact_up_to: int = 10
    """Actions (of a block) whose subsets are enumerated."""
    reference_forwards: int = 1024
    """States per completion of a sampled reference."""
    max_tokens: int = 16384
    """Padded tokens per forward."""
    seed: int = 0
    device: str = "cpu"
    bf16: bool = False
    plot: Path | None = None


def estimate(request: EstimateRequest, console: Console | None = None) -> Report:
    """Measure the estimators; see `rl4dlm.likelihood.lab`.

    Args:
        console: shows a progress bar while it is a terminal; None: stderr.

    Raises:
        UserError: model, completions or an option cannot be used; nothing was written.
        StorageError: the disk refuses the plot.
    """
    began = time.monotonic()
    chosen = _chosen(request.names)
    _check_plot(request.plot)
    _check_device(request.device)
    models = _models(request)
    completions = assemble(_samples(request, models[0]), models[0].spec, request.block_length)
    settings = _settings(request, chosen, completions)
    num_states = _planned(request, settings, completions, len(models))
    with _progress(console, num_states) as advance:
        oracles = _oracles(request, models, completions, advance)
        report = _measure(request, settings, oracles)
    report = replace(report, states_read=num_states, seconds=time.monotonic() - began)
    if request.plot is not None:
        write_plot(report, request.plot)
    return report


def _chosen(names: Sequence[str]) -> list[Estimator]:
    known = [estimator.name for estimator in ESTIMATORS]
    for name in names:
        if name not in known:
            raise RecipeError(f"--estimators {name!r} is not known.\nFix: use some of {', '.join(known)}.")
    return [estimator for estimator in ESTIMATORS if not names or estimator.name in names]


def _check_device(device: str) -> None:
    if device != "cpu" and not (device.startswith("cuda") and torch.cuda.is_available()):
        raise RecipeError(
            f"--device {device}: this machine has cpu{' and cuda' if torch.cuda.is_available() else ' only'}."
            "\nFix: leave --device out, or run where there is a GPU."
        )


def _check_plot(plot: Path | None) -> None:
    if plot is None:
        return
    if plot.suffix != ".svg":
        raise RecipeError(f"--plot {plot} is no .svg file.\nFix: name it {plot.with_suffix('.svg')}.")
    require_matplotlib()
    if plot.exists():
        raise RecipeError(f"{plot} exists; nothing was overwritten.\nFix: name another --plot file.")
    if not plot.parent.is_dir():
        raise RecipeError(f"{plot.parent} is no folder.\nFix: make it, or name another --plot file.")


def _models(request: EstimateRequest) -> list[LoadedModel]:
    """The model, and the one that it is compared with."""
    recipe = request.recipe
    if request.model is None and recipe is not None and recipe.model.init is not None:
        first = scratch_model(recipe)
        first.module.to(request.device, _dtype(request))
    else:
        path = request.model or (recipe.model.path if recipe is not None else None)
        if path is None:
            raise RecipeError(
                f"{request.source[0]} holds completions and no model.\nFix: add --model FOLDER."
            )
        first = _load(path, request)
    if request.against is None:
        return [first]
    second = _load(request.against, request)
    if second.spec != first.spec or second.tokenizer.get_vocab() != first.tokenizer.get_vocab():
        raise ModelError(
            f"--against {request.against} has another vocabulary or attention than the model, so their "
            "likelihoods are of different things.\nFix: compare checkpoints of one model."
        )
    return [first, second]


def _load(path: str, request: EstimateRequest) -> LoadedModel:
    model = request.recipe.model if request.recipe is not None else None
    return load(
        path,
        family="auto" if model is None else model.family,
        trust_remote_code=model is not None and model.trust_remote_code,
        dtype=_dtype(request),
        device=request.device,
    )


def _dtype(request: EstimateRequest) -> torch.dtype:
    return torch.bfloat16 if request.bf16 else torch.float32


def _samples(request: EstimateRequest, model: LoadedModel) -> list[EstimateSample]:
    limit = request.num_completions
    if names_a_file(request.source):
        return read_file(Path(request.source[0]), model, request.scope, limit)
    assert request.recipe is not None
    return read_recipe(request.recipe, model, request.scope, limit)


@dataclass(frozen=True)
class _Setting:
    estimator: Estimator
    forwards: int
    repeats: int
    looked_up: bool


def _settings(
    request: EstimateRequest, chosen: Sequence[Estimator], completions: Completions
) -> list[_Setting]:
    enumerated = completions.block_actions <= request.exact_up_to
    settings = []
    for estimator in chosen:
        looked_up = enumerated and estimator.only_actions
        repeats = request.repeats or (LOOKED_UP_REPEATS if looked_up else EVALUATED_REPEATS)
        settings += [
            _Setting(estimator, forwards, repeats if estimator.random else 2, looked_up)
            for forwards in request.forwards
            if estimator.fits(completions, forwards)
        ]
    if not settings:
        raise RecipeError(
            f"--forwards {','.join(map(str, request.forwards))}: no chosen estimator can be had with these.\n"
            "Fix: add 1 and 2, or choose other estimators."
        )
    return settings


def _planned(
    request: EstimateRequest, settings: Sequence[_Setting], completions: Completions, num_models: int
) -> int:
    """States that the models will read."""
    if completions.block_actions <= request.exact_up_to:
        known = 2**completions.block_actions
    else:
        known = request.reference_forwards
    asked = sum(s.forwards * s.repeats for s in settings if not s.looked_up)
    return (known + asked) * len(completions) * num_models


def _oracles(
    request: EstimateRequest, models: Sequence[LoadedModel], completions: Completions, advance: Advance
) -> list[Oracle]:
    oracles = []
    for model in models:
        asked = denoiser(model, device=request.device)
        listed = None
        if completions.block_actions <= request.exact_up_to:
            listed = enumerate_subsets(asked, completions, request.max_tokens, advance)
        oracles.append(Oracle(asked, completions, request.max_tokens, listed, advance))
    return oracles


def _measure(request: EstimateRequest, settings: Sequence[_Setting], oracles: Sequence[Oracle]) -> Report:
    found, difference_se = references(oracles, request.reference_forwards, request.seed)
    difference = Reference(found[0].value - found[-1].value, difference_se)
    measured, log_ratios = [], []
    for setting in settings:
        values = estimates(oracles, setting.estimator, setting.forwards, setting.repeats, request.seed)
        head = (setting.estimator.name, setting.estimator.estimates, setting.forwards, setting.repeats)
        measured.append(Measured(*head, spread(values[0], found[0].value, found[0].se)))
        if len(oracles) == 2:
            apart = independent(values) if setting.estimator.random else values[0] - values[1]
            both = (spread(v, difference.value, difference.se) for v in (values[0] - values[1], apart))
            log_ratios.append(LogRatio(*head, *both))
    actions = oracles[0].completions.loss_mask.sum(1)
    return Report(
        source=" ".join(request.source),
        model=request.model or _named(request.recipe),
        against=request.against,
        num_completions=len(actions),
        positions=(int(actions.min()), int(actions.max())),
        scope=request.scope,
        seed=request.seed,
        reference=found[0],
        log_ratio_reference=difference if len(oracles) == 2 else None,
        measured=tuple(measured),
        log_ratios=tuple(log_ratios),
    )


def _named(recipe: Recipe | None) -> str:
    assert recipe is not None
    return recipe.model.path or "model.init (random weights)"


@contextmanager
def _progress(console: Console | None, num_states: int) -> Iterator[Advance]:
    """A function that counts states read; silent where nobody watches."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield lambda count: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("states"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("estimating", total=num_states)
        yield lambda count: bar.advance(task, count)
