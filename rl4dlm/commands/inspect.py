"""The page that plays recorded trajectories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rl4dlm.errors import DataError


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
    from rl4dlm.tracking.player import player_page

    file = _rollout_file(target, update)
    try:
        table = pq.read_table(file)
        groups, scores = from_table(table)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file} cannot be read: {error}.\nFix: give a parquet file of rollouts.") from None
    except DataError as error:
        raise DataError(f"{file}: {error}") from None
    steps = table.column(STEP_REWARDS).to_pylist() if STEP_REWARDS in table.column_names else None
    token_text = _token_text(tokenizer or _tokenizer_near(file))
    try:
        page = player_page(groups[:num_prompts], scores, token_text, title=file.stem, step_rewards=steps)
    except (TypeError, ValueError, LookupError) as error:  # traces that contradict one another
        raise DataError(
            f"{file}: a trace does not fit its completion ({error}).\n"
            "Fix: give a file that rl4dlm wrote with rollout.record_states: true."
        ) from None
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
    return lambda token: str(found.decode([token])) if token < len(found) else f"<{token}>"
