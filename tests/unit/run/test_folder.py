"""A run's folder: never another run's, and checkpoints that are whole or absent."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rl4dlm.errors import CheckpointError, StorageError
from rl4dlm.recipe import Recipe, load_recipe
from rl4dlm.run.folder import RunFolder, differences, storage


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return load_recipe("quickstart", [f"run.output_dir={tmp_path}", "run.name=mine"])


@pytest.fixture
def run(recipe: Recipe) -> RunFolder:
    """The folder of a run that has just begun."""
    folder = RunFolder.of(recipe)
    folder.create(recipe)
    return folder


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB; needs the right to mount."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here (not root)")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def changed(*overrides: str, recipe: Recipe) -> Recipe:
    return load_recipe("quickstart", [f"run.output_dir={recipe.run.output_dir}", "run.name=mine", *overrides])


def write_weights(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "weights").write_text(text) and None


def tree(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_new_run_writes_its_recipe(run: RunFolder, recipe: Recipe, tmp_path: Path) -> None:
    assert run.root == tmp_path / "mine"
    assert load_recipe(run.recipe) == recipe


@pytest.mark.parametrize(("file", "what"), [("recipe.yaml", "another run"), ("thesis.tex", "something else")])
def test_a_new_run_refuses_a_folder_in_use(file: str, what: str, recipe: Recipe) -> None:
    folder = RunFolder.of(recipe)
    folder.root.mkdir()
    (folder.root / file).write_text("years of work")
    with pytest.raises(CheckpointError, match=f"mine already holds {what}; nothing was overwritten"):
        folder.create(recipe)
    assert tree(folder.root) == {file: "years of work"}


def test_a_new_run_refuses_a_file_and_takes_an_empty_folder(recipe: Recipe) -> None:
    folder = RunFolder.of(recipe)
    folder.root.write_text("a file")
    with pytest.raises(CheckpointError, match="something else"):
        folder.refuse_other_run()
    folder.root.unlink()
    folder.root.mkdir()
    folder.create(recipe)


@pytest.mark.parametrize(
    ("override", "told", "remedy"),
    [
        (
            "model.init.d_model=64",
            "model.init.d_model = 128, and this recipe has 64",
            "model.init.d_model=128",
        ),
        ("run.seed=1", "run.seed = 0, and this recipe has 1", "run.seed=0"),
        (
            "reward.accuracy=sort",
            "reward.accuracy = None, and this recipe has 'sort'",
            "reward.accuracy=null",
        ),
        ("rollout.record_states=false", "rollout.record_states = True", "rollout.record_states=true"),
    ],
)
def test_reopening_names_the_setting_that_differs(
    override: str, told: str, remedy: str, run: RunFolder, recipe: Recipe
) -> None:
    before = tree(run.root)
    with pytest.raises(CheckpointError) as caught:
        run.reopen(changed(override, recipe=recipe))
    assert told in str(caught.value) and f"Fix: set {remedy} to resume" in str(caught.value)
    assert tree(run.root) == before


def test_reopening_allows_what_does_not_touch_the_weights(run: RunFolder, recipe: Recipe) -> None:
    longer = changed("trainer.max_steps=200", "eval.steps=7", "tracking.wandb=disabled", recipe=recipe)
    run.reopen(longer)
    assert load_recipe(run.recipe).trainer.max_steps == 200


def test_only_a_run_can_be_reopened(recipe: Recipe) -> None:
    with pytest.raises(CheckpointError, match="holds no run to resume"):
        RunFolder.of(recipe).reopen(recipe)


def test_a_checkpoint_is_found_by_update_and_the_newest_by_default(run: RunFolder) -> None:
    assert run.find() is None
    for update in (5, 10):
        run.save_checkpoint(update, write_weights(f"of {update}"), {"version": update}, keep=9)
    newest, fifth = run.find(), run.find(5)
    assert newest is not None and fifth is not None
    assert (newest.update, newest.state["version"], fifth.update) == (10, 10, 5)
    assert (fifth.folder / "weights").read_text() == "of 5"
    with pytest.raises(CheckpointError, match="no complete checkpoint of update 7; it has: 5, 10.\nFix: "):
        run.find(7)


def test_the_newest_checkpoint_that_is_known_to_be_good_outlives_the_rotation(run: RunFolder) -> None:
    for update, good in ((10, 0), (20, 10), (30, 12), (40, 12), (50, 12)):
        run.save_checkpoint(update, write_weights(""), {}, keep=2, good=good)
    assert [checkpoint.update for checkpoint in run.complete()] == [10, 40, 50]
    run.save_checkpoint(60, write_weights(""), {}, keep=1, good=50)
    assert [checkpoint.update for checkpoint in run.complete()] == [50, 60]
    assert run.newest_until(59).update == 50 and run.newest_until(49) is None


def test_updates_are_ordered_as_numbers(run: RunFolder) -> None:
    for update in (999_999, 1_000_000):
        run.save_checkpoint(update, write_weights(""), {}, keep=9)
    assert [checkpoint.update for checkpoint in run.complete()] == [999_999, 1_000_000]


def test_a_write_that_fails_leaves_everything_as_it_was(run: RunFolder) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    def interrupt(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt

    run.save_checkpoint(5, write_weights("good"), {}, keep=1)
    before = tree(run.root)
    with pytest.raises(
        StorageError, match="step_000010 could not be written: No space left on device.\nFix: "
    ):
        run.save_checkpoint(10, fail, {}, keep=1)
    with pytest.raises(KeyboardInterrupt):
        run.save_checkpoint(10, interrupt, {}, keep=1)
    with pytest.raises(StorageError):  # the same update again: what is there stays until the new one is whole
        run.save_checkpoint(5, fail, {}, keep=1)
    assert tree(run.root) == before


def test_latest_moves_after_the_checkpoint_is_whole(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    run.save_checkpoint(5, write_weights("a"), {}, keep=3)
    seen: list[tuple[str, bool, str]] = []
    rename = Path.rename

    def watch(self: Path, target: Path) -> Path:
        latest = (run.checkpoints / "latest").read_text()
        seen.append((Path(target).name, (self / "state.json").is_file(), latest))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", watch)
    run.save_checkpoint(10, write_weights("b"), {}, keep=3)
    assert seen == [("step_000010", True, "step_000005")]
    assert (run.checkpoints / "latest").read_text() == "step_000010"


def test_latest_stays_readable_when_the_disk_refuses_its_new_text(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.save_checkpoint(5, write_weights("a"), {}, keep=3)
    calls = iter([None, OSError(errno.ENOSPC, "No space left on device")])  # state.json, then latest

    def refuse(descriptor: int) -> None:
        error = next(calls)
        if error is not None:
            raise error

    monkeypatch.setattr("rl4dlm.run.folder.os.fsync", refuse)
    with pytest.raises(StorageError, match="No space left"):
        run.save_checkpoint(10, write_weights("b"), {}, keep=3)
    assert (run.checkpoints / "latest").read_text() == "step_000005"
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["latest", "step_000005", "step_000010"]


def test_only_the_newest_checkpoints_are_kept(run: RunFolder) -> None:
    for update in (1, 2, 3, 4):
        run.save_checkpoint(update, write_weights(""), {}, keep=2)
    assert [checkpoint.update for checkpoint in run.complete()] == [3, 4]
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["latest", "step_000003", "step_000004"]


def test_saving_an_update_again_replaces_it(run: RunFolder) -> None:
    run.save_checkpoint(5, write_weights("old"), {}, keep=2)
    folder = run.save_checkpoint(5, write_weights("new"), {}, keep=2)
    assert (folder / "weights").read_text() == "new" and len(run.complete()) == 1


def test_what_a_killed_run_left_half_written_is_neither_found_nor_kept(
    run: RunFolder, recipe: Recipe
) -> None:
    run.save_checkpoint(5, write_weights("good"), {}, keep=2)
    half = run.checkpoints / ".unfinished_step_000010"
    half.mkdir()
    (half / "state.json").write_text(json.dumps({"update": 10}))
    for name, state in [("step_000011", None), ("step_000012", "{"), ("step_000013", "[]")]:
        (run.checkpoints / name).mkdir()
        if state is not None:
            (run.checkpoints / name / "state.json").write_text(state)

    assert [checkpoint.update for checkpoint in run.complete()] == [5]
    run.reopen(recipe)
    assert not half.exists()
    assert run.find(5) is not None


def test_a_kill_while_a_checkpoint_is_removed_leaves_none_that_looks_whole(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for update in (5, 10):
        run.save_checkpoint(update, write_weights("x"), {}, keep=2)

    def killed(folder: Path, ignore_errors: bool = False) -> None:
        if Path(folder).exists():
            (Path(folder) / "weights").unlink()
            raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        run.drop_after(5)
    newest = run.find()
    assert newest is not None and newest.update == 5


def test_going_back_forgets_later_checkpoints_and_rollouts(run: RunFolder) -> None:
    run.rollouts.mkdir()
    for update in (5, 10, 15):
        run.save_checkpoint(update, write_weights(""), {}, keep=9)
        (run.rollouts / f"update_{update:06d}.parquet").write_text("rows")
    run.drop_after(10)
    assert [checkpoint.update for checkpoint in run.complete()] == [5, 10]
    assert (run.checkpoints / "latest").read_text() == "step_000010"
    assert sorted(p.stem for p in run.rollouts.iterdir()) == ["update_000005", "update_000010"]
    run.drop_after(0)
    assert run.find() is None and not (run.checkpoints / "latest").exists()


def test_a_full_disk_leaves_the_last_checkpoint_and_nothing_half_written(tiny_disk: Path) -> None:
    recipe = load_recipe("quickstart", [f"run.output_dir={tiny_disk}"])
    run = RunFolder.of(recipe)
    run.create(recipe)
    run.save_checkpoint(1, write_weights("x" * 8192), {}, keep=2)
    before = tree(run.root)
    with pytest.raises(StorageError, match="No space left on device.\nFix: free disk space"):
        run.save_checkpoint(2, write_weights("x" * 100_000), {}, keep=2)
    assert tree(run.root) == before
    run.save_checkpoint(3, write_weights("x" * 8192), {}, keep=2)  # the space is free again


def test_a_full_disk_keeps_latest_when_even_its_few_bytes_do_not_fit(tiny_disk: Path) -> None:
    run = RunFolder(tiny_disk / "run")
    run.save_checkpoint(1, write_weights("x"), {}, keep=2)

    def fill(folder: Path) -> None:
        with pytest.raises(OSError), open(tiny_disk / "filler", "wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)

    with pytest.raises(StorageError):
        run.save_checkpoint(2, fill, {}, keep=2)
    names = sorted(path.name for path in run.checkpoints.iterdir())
    assert names == ["latest", "step_000001"] and (run.checkpoints / "latest").read_text() == "step_000001"


@pytest.mark.slow
def test_a_model_that_does_not_fit_on_the_disk_leaves_no_folder(tiny_disk: Path) -> None:
    from rl4dlm.models import build_char_tokenizer, create, save
    from rl4dlm.recipe.sections import ModelInit

    tokenizer = build_char_tokenizer("0123456789=")
    model = create(ModelInit(d_model=64, n_layers=2, n_heads=2, mlp_hidden_size=64), tokenizer, seed=0)
    with pytest.raises(StorageError, match="could not be written .*No space left on device") as caught:
        save(model, tiny_disk / "model", tokenizer)
    assert "Fix: free space" in str(caught.value)
    assert list(tiny_disk.iterdir()) == []


def test_only_errors_of_the_disk_are_called_so() -> None:
    with (
        pytest.raises(StorageError, match="x could not be written: Permission denied"),
        storage("x could not be written"),
    ):
        raise PermissionError(errno.EACCES, "Permission denied")
    with pytest.raises(ValueError), storage("x"):
        raise ValueError


def test_differences_are_dotted_keys_with_both_values() -> None:
    old = {"a": {"b": 1, "c": (1, 2)}, "d": None, "e": 5}
    new = {"a": {"b": 2, "c": (1, 2)}, "d": {"x": 1}}
    assert list(differences(old, new)) == [("a.b", 1, 2), ("d", None, {"x": 1}), ("e", 5, None)]
