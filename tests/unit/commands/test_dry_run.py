"""A dry run prints everything before it says what this machine lacks, and leaves nothing behind."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from rl4dlm.commands.dry_run import dry_run, dry_run_sft
from rl4dlm.errors import ClusterError, Rl4dlmError, StorageError
from rl4dlm.recipe import SFTRecipe, load_recipe
from rl4dlm.run.folder import RunFolder


def outcome(place: Path, *overrides: str, recipe: str = "quickstart") -> tuple[str, Rl4dlmError | None]:
    """What a dry run printed, in one line, and what it raised."""
    loaded = load_recipe(recipe, [f"run.output_dir={place}", "run.name=mine", *overrides])
    printed = io.StringIO()
    console = Console(file=printed, width=200)
    error = None
    try:
        dry_run_sft(loaded, console) if isinstance(loaded, SFTRecipe) else dry_run(loaded, console)
    except Rl4dlmError as raised:
        error = raised
    return " ".join(printed.getvalue().split()), error


@pytest.mark.parametrize("recipe", ["quickstart", "sft/tiny_sort"])
def test_missing_gpus_are_named_after_everything_was_printed(recipe: str, tmp_path: Path) -> None:
    printed, error = outcome(tmp_path, "cluster.gpus_per_trainer=1", "cluster.num_trainers=64", recipe=recipe)
    assert "memory per trainer rank" in printed and "64 trainer rank(s) on 1 GPU each" in printed
    assert isinstance(error, ClusterError) and "asks for 64 GPUs" in str(error) and "Fix: " in str(error)
    assert not any(tmp_path.iterdir())


def test_a_run_that_lies_there_is_told_and_not_touched(tmp_path: Path) -> None:
    recipe = load_recipe("quickstart", [f"run.output_dir={tmp_path}", "run.name=mine"])
    RunFolder.of(recipe).create(recipe)
    printed, error = outcome(tmp_path, "run.seed=3")
    assert "holds a run that --resume continues" in printed and error is None
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["recipe.yaml"]


def test_a_file_in_place_of_the_output_folder_is_refused_with_a_fitting_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    printed, error = outcome(tmp_path / "file")
    assert "Nothing was started" in printed and isinstance(error, StorageError)
    assert "cannot be made: Not a directory" in str(error) and "free disk space" not in str(error)
    assert error.exit_code == 2


def test_everything_that_is_lacking_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    _, error = outcome(tmp_path / "file", "cluster.gpus_per_trainer=1", "cluster.num_trainers=64")
    assert "asks for 64 GPUs" in str(error) and "Not a directory" in str(error)
