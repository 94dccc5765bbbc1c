"""Sample completions of one prompt in this process, and what samplers there are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rl4dlm.recipe.rollout_section import RolloutConfig
from rl4dlm.recipe.samplers import CACHES, SAMPLERS
from rl4dlm.recipe.sections import DataConfig, ModelConfig
from rl4dlm.tracking.samples import visible


def sample_model(
    path: str, prompt: str, recipe: str | None, settings: list[str], num_samples: int, seed: int
) -> None:
    """Sample completions of one prompt in this process; on a terminal the denoising is shown as it
    happens."""
    from rl4dlm.data import open_renderer
    from rl4dlm.data.messages import as_prompt
    from rl4dlm.decoding import SamplerSpec
    from rl4dlm.diffusion.seeds import derive_seed
    from rl4dlm.models import denoiser, load, open_policy, options_of
    from rl4dlm.rollout import Engine, Request
    from rl4dlm.run.preflight import text_format

    rollout, model, data = _sampler_sections(recipe, settings)
    if rollout.policy:
        open_policy(rollout.policy)
    loaded = load(path, **options_of(model))
    texts = text_format(model, loaded.tokenizer, loaded.spec)
    renderer = open_renderer(data, texts)
    asked = as_prompt(prompt, as_text=False, where="--prompt")
    text, ids = renderer.prompt(asked, {}, "--prompt")
    requests = [
        Request(0, index, derive_seed(seed, "sample", prompt, index), ids) for index in range(num_samples)
    ]
    engine = Engine(denoiser(loaded), SamplerSpec.from_config(rollout), rollout.slots)

    def decode(ids: Sequence[int]) -> str:
        return str(loaded.tokenizer.decode(list(ids), skip_special_tokens=True))

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
    samplers = Table(title="Samplers (rollout.remasking)", title_justify="left")
    for column in ("name", "what a step commits", "from", "exact law", "settings"):
        samplers.add_column(column, no_wrap=column == "name")
    for name, facts in SAMPLERS.items():
        law = "yes" if facts.exact_law else "no"
        samplers.add_row(name, _plain(facts.summary), facts.source, law, ", ".join(facts.settings))
    caches = Table(title="Caches (rollout.cache)", title_justify="left")
    for column in ("name", "what a forward computes", "from", "exact", "attention"):
        caches.add_column(column, no_wrap=column == "name")
    for name, plan in CACHES.items():
        caches.add_row(name, _plain(plan.summary), plan.source, "yes" if plan.exact else "no", plan.attention)
    out = console or Console()
    out.print(samplers)
    out.print(caches)


def _plain(summary: str) -> str:
    """A summary without the marks that a page sets names apart with."""
    return summary.replace("`", "")


def _sampler_sections(
    recipe: str | None, settings: list[str]
) -> tuple[RolloutConfig, ModelConfig, DataConfig]:
    """The sections of a recipe, or the defaults, with settings changed: of the sampler, or `model.KEY` and
    `data.KEY`."""
    from rl4dlm.recipe import load_recipe
    from rl4dlm.recipe.loader import check, layered, parse_override
    from rl4dlm.recipe.rules.sampling import SAMPLER_RULES

    overrides = [s if s.startswith(("model.", "data.")) else f"rollout.{s}" for s in settings]
    if recipe is not None:
        inside = Path(recipe) / "recipe.yaml"
        loaded = load_recipe(inside if inside.is_file() else recipe, overrides, rules=SAMPLER_RULES)
        return loaded.rollout, loaded.model, loaded.data
    values: dict[str, Any] = {
        "model": {"path": "given with --model"},
        "data": {"task": {"name": "sort"}},
        "reward": {"functions": ["sort"]},
        "algorithm": {"type": "gdpo"},
    }
    for override in overrides:
        values = layered(values, parse_override(override))
    checked = check(values, where="--set", rules=SAMPLER_RULES)
    return checked.rollout, checked.model, checked.data


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
