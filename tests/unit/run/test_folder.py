"""A run's folder: never another run's, and checkpoints that are whole or absent."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rl4dlm.errors import CheckpointError, StorageError
from rl4dlm.recipe import Recipe, load_recipe
from rl4dlm.recipe.comparison import differences
from rl4dlm.run.folder import RunFolder, storage


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

    def refuse(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(".latest.tmp"):
            raise OSError(errno.ENOSPC, "No space left on device")

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


def damaged(run: RunFolder, change: Callable[[Path], object]) -> str:
    """What verifying a checkpoint says after its folder was changed."""
    run.save_checkpoint(5, write_weights("the weights of update 5"), {"seed": 3, "rate": 1e-6}, keep=2)
    checkpoint = run.find(5)
    assert checkpoint is not None
    checkpoint.verify()
    change(checkpoint.folder)
    changed = run.find(5)
    assert changed is not None
    with pytest.raises(CheckpointError, match="Fix: resume from another checkpoint") as caught:
        changed.verify()
    return str(caught.value)


def flip(path: Path) -> None:
    """One bit of a file is another one."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def test_one_flipped_bit_in_a_checkpoint_is_noticed_and_named(run: RunFolder) -> None:
    assert "step_000005/weights is damaged" in damaged(run, lambda folder: flip(folder / "weights"))


def test_a_missing_file_of_a_checkpoint_is_named(run: RunFolder) -> None:
    assert "step_000005/weights is missing" in damaged(run, lambda folder: (folder / "weights").unlink())


def test_another_number_in_the_state_is_noticed(run: RunFolder) -> None:
    def lower(folder: Path) -> None:
        text = (folder / "state.json").read_text()
        (folder / "state.json").write_text(text.replace('"seed": 3', '"seed": 2'))

    assert "state.json is damaged" in damaged(run, lower)


def test_a_state_without_digests_does_not_pass_for_verified(run: RunFolder) -> None:
    told = damaged(run, lambda folder: (folder / "state.json").write_text('{"update": 5}'))
    assert "has no digests" in told


def test_everything_of_a_checkpoint_is_on_the_disk_before_it_has_its_name(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: set[str] = set()
    fsync, rename = os.fsync, Path.rename

    def watch(descriptor: int) -> None:
        flushed.add(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def check(self: Path, target: Path) -> Path:
        assert {"weights", "state.json", self.name} <= flushed
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", watch)
    monkeypatch.setattr(Path, "rename", check)
    run.save_checkpoint(5, write_weights("a"), {}, keep=1)


def test_a_checkpoint_that_is_saved_again_is_never_gone(
    run: RunFolder, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.save_checkpoint(5, write_weights("old"), {}, keep=1)
    rename = Path.rename

    def killed(self: Path, target: Path) -> Path:
        if self.name == ".unfinished_step_000005":
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            run.save_checkpoint(5, write_weights("new"), {}, keep=1)
    run.reopen(recipe)
    found = run.find(5)
    assert found is not None and (found.folder / "weights").read_text() == "old"


def test_what_is_dropped_goes_after_latest_names_what_stays(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for update in (5, 10, 15):
        run.save_checkpoint(update, write_weights(""), {}, keep=9)
    seen: list[str] = []
    rename = Path.rename

    def watch(self: Path, target: Path) -> Path:
        seen.append((run.checkpoints / "latest").read_text())
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", watch)
    run.drop_after(7)
    assert seen == ["step_000005", "step_000005"]
    assert [checkpoint.update for checkpoint in run.complete()] == [5]


def test_a_folder_has_one_owner_and_the_refusal_names_it(run: RunFolder) -> None:
    with run.owned(), pytest.raises(CheckpointError) as caught, run.owned():
        pass
    assert f"mine is in use by process {os.getpid()} on " in str(caught.value)
    with run.owned():  # the first owner has let go
        pass
    assert not (run.root / "run.lock").exists()


def test_an_owner_that_was_killed_holds_nothing(run: RunFolder) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom rl4dlm.run.ownership import owned\n"
        "with owned(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(run.root)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(CheckpointError, match=f"in use by process {holder.pid} on "), run.owned():
        pass
    holder.kill()
    holder.wait()
    with run.owned():
        assert (run.root / "run.lock").is_file()


def test_of_many_that_start_at_once_one_gets_the_folder(recipe: Recipe) -> None:
    folder, held, refused = RunFolder.of(recipe), [], []
    start, end = threading.Barrier(8), threading.Event()

    def begin() -> None:
        start.wait()
        try:
            with folder.owned():
                held.append(1)
                end.wait(20)
        except CheckpointError:
            refused.append(1)
            if len(refused) == 7:
                end.set()

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 7)


def test_a_start_that_wrote_nothing_leaves_no_folder(recipe: Recipe, tmp_path: Path) -> None:
    nested = RunFolder(tmp_path / "runs" / "new")
    with pytest.raises(KeyboardInterrupt), nested.owned():
        nested.refuse_other_run()  # the lock is not another run
        raise KeyboardInterrupt
    assert not (tmp_path / "runs").exists()


def test_a_file_or_a_read_only_place_is_no_folder_for_runs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        StorageError, match="cannot be made: Not a directory.\nFix: check that this is a place"
    ):
        with RunFolder(tmp_path / "file" / "run").owned():
            pass
    with pytest.raises(CheckpointError, match="something else"), RunFolder(tmp_path / "file").owned():
        pass
