"""The README.md of an exported model: what it was trained with, on what, how it did, how to decode."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_HUB_NAME = re.compile(r"[A-Za-z0-9_-][\w.-]*/[\w.-]+")
_FOLDERS = re.compile(r"(?<![\w/.~-])(?:~|\.{1,2})?(?:/[\w.@+-]+)*/(?=[\w.@+-]+)")
"""The folders of a path that begins with /, ~, ./ or ../: they are nobody's business."""


def model_card(
    name: str,
    recipe: Mapping[str, Any],
    recipe_text: str,
    update: int,
    evaluations: Sequence[Mapping[str, Any]],
) -> str:
    """A model card for the hub: Markdown with the hub's header. Local folders are left out of paths.

    Args:
        name: of the run.
        recipe: the resolved recipe as nested values.
        recipe_text: the same as YAML.
        update: of the checkpoint.
        evaluations: rows of the run's evaluations.jsonl, in order; those after `update` are not used.
    """
    done = [row for row in evaluations if row["update"] <= update]
    parts = [
        _header(recipe),
        f"# {name}",
        _summary(recipe, update),
        _evaluation(done) if done else "",
        _decoding(recipe, done),
        f"## Recipe\n\n```yaml\n{without_folders(recipe_text).strip()}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def without_folders(text: str) -> str:
    """Text in which absolute and relative paths are cut to their last part."""
    return _FOLDERS.sub("", text)


def _header(recipe: Mapping[str, Any]) -> str:
    lines = ["---", "library_name: rl4dlm", "tags: [diffusion-language-model, reinforcement-learning]"]
    base = _base(recipe)
    return "\n".join([*lines, *([f"base_model: {base}"] if base else []), "---"])


def _base(recipe: Mapping[str, Any]) -> str | None:
    """The model that training began with, where it has a name on the hub."""
    path = recipe["model"].get("path")
    return path if path is not None and _HUB_NAME.fullmatch(path) else None


def _summary(recipe: Mapping[str, Any], update: int) -> str:
    data = recipe["data"]
    made = "made from scratch" if recipe["model"].get("init") else "a local folder"
    rows = {
        "base model": _base(recipe) or made,
        "method": (recipe.get("algorithm") or {}).get("type", "supervised fine-tuning"),
        "updates": str(update),
        "data": data["task"]["name"] if data.get("task") else without_folders(data["train"]),
        "rewards": ", ".join(_reward_names(recipe)),
        "seed": str(recipe["run"]["seed"]),
    }
    lines = [f"| {key} | {value} |" for key, value in rows.items() if value]
    return "\n".join(["Trained with rl4dlm.", "", "| | |", "| --- | --- |", *lines])


def _reward_names(recipe: Mapping[str, Any]) -> list[str]:
    functions = (recipe.get("reward") or {}).get("functions") or []
    paths = [function if isinstance(function, str) else function["path"] for function in functions]
    return [without_folders(path) for path in paths]


def _evaluation(done: Sequence[Mapping[str, Any]]) -> str:
    first, last = done[0], done[-1]
    names = [key for key in last if key.startswith("eval/")]
    head = f"| held-out instances | update {first['update']} | update {last['update']} |"
    rows = ((name.removeprefix("eval/"), first.get(name), last[name]) for name in names)
    lines = [f"| {name} | {_number(before)} | {_number(after)} |" for name, before, after in rows]
    return "\n".join(["## Evaluation", "", head, "| --- | ---: | ---: |", *lines])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _decoding(recipe: Mapping[str, Any], done: Sequence[Mapping[str, Any]]) -> str:
    """How the evaluation decoded, or how rollouts were drawn where there was none."""
    uses = (
        done[-1]["decode"] if done and done[-1].get("decode") else {"rollouts": recipe.get("rollout") or {}}
    )
    lines = [
        f"| {use} | {', '.join(f'{key} = {value}' for key, value in settings.items())} |"
        for use, settings in uses.items()
    ]
    return "\n".join(["## Decode settings", "", "| use | settings |", "| --- | --- |", *lines])
