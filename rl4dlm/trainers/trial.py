"""A method from outside the package is tried on two completions of a tiny model before anything starts."""

from __future__ import annotations

import traceback
from dataclasses import replace

import numpy as np
import torch

from rl4dlm.errors import PluginError, UserError
from rl4dlm.recipe import Recipe
from rl4dlm.recipe.algorithms import FoundByPath, MethodConfig
from rl4dlm.testing.tiny import tiny_denoiser, tiny_groups, tiny_scores
from rl4dlm.trainers import make_method, method_of, setting_of
from rl4dlm.trainers.method import Method, Setting
from rl4dlm.trainers.passes import estimate_rows, loss, micro_batches, needs_current, step_size
from rl4dlm.trainers.prepare import partial_decodes, prepare_batch
from rl4dlm.types import DenoiserSpec, Pair, RolloutGroup, TrainBatch, flatten


def tried_method(recipe: Recipe, spec: DenoiserSpec) -> Method[MethodConfig]:
    """The method of a recipe; one from outside the package has been tried.

    Args:
        spec: of the model.

    Raises:
        PluginError: it cannot be made, or fails on two completions; the message names its line.
        RecipeError: it does not fit the model.
    """
    if isinstance(recipe.algorithm, FoundByPath):
        blocks = 2 if spec.attention == "block_causal" else None
        _try(recipe.algorithm, replace(setting_of(recipe, spec), block_length=3), blocks)
    return method_of(recipe, spec)


def try_method(config: MethodConfig, block_length: int | None = None) -> None:
    """Try a method of any settings, on the tiny model of full attention or with blocks.

    Raises:
        PluginError: it cannot be made, or fails on two completions.
    """
    _try(config, Setting(block_length=3), block_length)


def _try(config: MethodConfig, setting: Setting, block_length: int | None) -> None:
    name = getattr(config, "path", type(config).__name__)
    denoiser = tiny_denoiser(block_length=block_length)
    try:
        method = make_method(config, replace(setting, spec=denoiser.spec))
        if not isinstance(method, Method):
            raise TypeError(f"build returned {type(method).__name__}, not a Method")
        _learn(method, _two_rows(method))
    except UserError as error:
        raise PluginError(f"algorithm.path = {name}: {error}") from error
    except Exception as error:
        raise PluginError(
            f"algorithm.path = {name}: tried on two completions, it raises {type(error).__name__}: {error} "
            f"({_last_line(error)}).\nFix: correct it; `rl4dlm methods test {name}` tries it alone."
        ) from error


def _two_rows(method: Method[MethodConfig]) -> TrainBatch:
    """Two completions of one prompt, the first of them right."""
    (group,) = tiny_groups(1, 2)
    if not method.config.samples_rollouts:
        assert method.pair_batch is not None, "a method that samples no rollouts needs `pair_batch`"
        return method.pair_batch([_pair(group), replace(_pair(group), uid=1)], 0, 0)
    steps = None
    if method.config.scores_steps:
        steps = [
            np.linspace(0, i, len(t), dtype=np.float32)
            for i, t in enumerate(partial_decodes(method, [group]))
        ]
    batch, _ = prepare_batch(
        method, [group], tiny_scores([1, 0]), policy_version=0, seed=0, step_rewards=steps
    )
    assert batch is not None, "nothing is left of two completions with the rewards 1 and 0"
    return batch


def _pair(group: RolloutGroup) -> Pair:
    best, worst = flatten([group])
    ids = (best.completion_ids, worst.completion_ids)
    return Pair(0, best.prompt_ids, *ids, best.completion_len, worst.completion_len)


def _learn(method: Method[MethodConfig], batch: TrainBatch) -> None:
    """The first optimizer step, in one pass and with rows split over their states."""
    block_length, facts = method.setting.spec.block_length, method.config
    denoiser, other = (
        tiny_denoiser(block_length=block_length),
        tiny_denoiser(block_length=block_length, seed=1),
    )
    step = step_size(method, batch, range(len(batch)))
    for budget in (10**6, 1):
        for micro in micro_batches(method, batch, range(len(batch)), budget):
            with torch.no_grad():
                now = estimate_rows(method.likelihood, denoiser, batch, micro, 0)
                before = estimate_rows(method.likelihood, other, batch, micro, 0)
            share, metrics = loss(
                method,
                denoiser,
                batch,
                micro,
                0,
                old=before if facts.needs_old else None,
                ref=before if facts.keeps_reference else None,
                current=now if needs_current(method, micro) else None,
                step=step,
            )
            assert share.ndim == 0, f"the loss is of shape {list(share.shape)}, not one number"
            share.backward()
            finite = all(np.isfinite(value) for value in (share.item(), *metrics.values()))
            assert finite, f"loss or metrics are not finite: {share.item()}, {metrics}"


def _last_line(error: Exception) -> str:
    """Where it was raised: the file and line nearest to the method's author."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/rl4dlm/" not in frame.filename.replace("\\", "/")]
    last = (own or list(frames))[-1]
    return f"{last.filename}, line {last.lineno}"
