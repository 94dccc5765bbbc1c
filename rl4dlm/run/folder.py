"""The folder of a run: what lies where, and checkpoints that are either whole or absent."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl4dlm.errors import CheckpointError, storage_error
from rl4dlm.recipe import AnyRecipe, dump_resolved, load_recipe
from rl4dlm.recipe.comparison import differences
from rl4dlm.recipe.references import look_up
from rl4dlm.run.digests import digests_of, flush_to_disk, require_digests, text_digest
from rl4dlm.run.ownership import LOCK_FILE, owned, try_writing

# Settings that a resumed run may change: they do not touch what the weights become, or say how long to train.
# A run that stopped because its rewards were slow must be able to resume with a longer `reward.timeout_s`.
MAY_CHANGE = (
    "run.output_dir",
    "run.save_on_signal",
    "run.name",
    "trainer.max_steps",
    "trainer.save_steps",
    "trainer.save_total_limit",
    "sentinel.",
    "eval.steps",
    "eval.num_samples",
    "eval.temperature",
    "tracking.",
    "cluster.address",
    "cluster.start_timeout_s",
    "cluster.rollout_timeout_s",
    "cluster.update_timeout_s",
    "cluster.max_rollout_restarts",
    "cluster.num_reward_workers",
    "reward.timeout_s",
    "reward.num_processes",
    "reward.max_error_rate",
    "sft.elbo_states",
)

STATE_FILE = "state.json"
_FILES = "files"
"""Key of the state: `relative path -> digest` of the checkpoint's other files."""
_DIGEST = "digest"
"""Key of the state: the digest of everything else in it."""
_UNFINISHED, _REPLACED = ".unfinished_", ".replaced_"


class CheckpointParts:
    """What the folder of a checkpoint holds besides its state."""

    def __init__(self, folder: Path) -> None:
        self.engine = folder / "engine"
        """DeepSpeed's shards: weights, optimizer."""
        self.value = folder / "value"
        """The same of the value model; only where there is one."""
        self.model = folder / "model"
        """The policy as a Hugging Face folder; absent under LoRA."""
        self.adapter = folder / "adapter"
        """The adapters in peft's format; only under LoRA."""
        self.reference = folder / "reference"
        """The reference policy as a Hugging Face folder; only where it follows the policy."""
        self.rollouts = folder / "next_rollouts.parquet"
        """What the next update learns from, where it was drawn ahead."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint."""

    folder: Path
    update: int
    state: dict[str, Any]

    @property
    def parts(self) -> CheckpointParts:
        return CheckpointParts(self.folder)

    def verify(self) -> None:
        """Every file must be the one that was saved.

        Raises:
            CheckpointError: one is missing or damaged, or no digests were kept.
        """
        remedy = "resume from another checkpoint with --resume step=N, or restore this one from a copy."
        files = self.state.get(_FILES)
        if not isinstance(files, dict) or self.state.get(_DIGEST) != _state_digest(self.state):
            why = "is damaged" if _DIGEST in self.state else "has no digests of the checkpoint's files"
            raise CheckpointError(f"{self.folder / STATE_FILE} {why}.\nFix: {remedy}")
        require_digests(self.folder, files, remedy)


class RunFolder:
    """`output_dir/name`: recipe.yaml, metrics.jsonl, report.html, rollouts/, checkpoints/, model/, log.txt
    ..."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.recipe = root / "recipe.yaml"
        self.checkpoints = root / "checkpoints"
        self.initial_model = root / "initial_model"
        self.warm_start = root / "warm_start"
        self.model = root / "model"
        self.policy = root / "policy"
        """The unmasking policy, where a method trains that and not the model."""
        self.rollouts = root / "rollouts"
        self.prompt_filter = root / "prompt_filter.jsonl"
        """A line per prompt that `data.over_denoising` tried."""
        self.log = root / "log.txt"

    @classmethod
    def of(cls, recipe: AnyRecipe) -> RunFolder:
        """The folder that a recipe's run has, whether or not it exists."""
        return cls(Path(recipe.run.output_dir) / recipe.run.name)

    def owned(self) -> AbstractContextManager[None]:
        """Hold the folder against every other process until the block ends, see `ownership.owned`.

        Raises:
            CheckpointError: another process holds it.
            StorageError: the folder cannot be written.
        """
        if self.root.exists() and not self.root.is_dir():
            self.refuse_other_run()
        return owned(self.root)

    def try_writing(self) -> None:
        """Find out whether a run could write here; nothing stays.

        Raises:
            StorageError: it could not.
        """
        try_writing(self.root)

    def refuse_other_run(self) -> None:
        """A new run may not write where something else lies.

        Raises:
            CheckpointError: the folder is not empty.
        """
        if self.root.exists() and (not self.root.is_dir() or self._in_use()):
            what = "another run" if self.recipe.exists() else "something else"
            raise CheckpointError(
                f"{self.root} already holds {what}; nothing was overwritten.\n"
                "Fix: choose another run.name or run.output_dir, or continue that run with --resume."
            )

    def _in_use(self) -> bool:
        return any(path.name != LOCK_FILE for path in self.root.iterdir())

    def create(self, recipe: AnyRecipe) -> None:
        """Make the folder of a new run and write its recipe.

        Raises:
            CheckpointError: the folder is not empty.
            StorageError: the disk refused.
        """
        self.refuse_other_run()
        with storage(f"{self.root} cannot be made"):
            self.root.mkdir(parents=True, exist_ok=True)
            dump_resolved(recipe, self.recipe)

    def starting_point(
        self, recipe: AnyRecipe, *, resume: bool, step: int | None = None
    ) -> Checkpoint | None:
        """The checkpoint that a run continues from, None for update 0; nothing is written.

        Args:
            resume: continue the run that lies here, from its newest checkpoint or from that of update `step`.

        Raises:
            CheckpointError: a new run would write where something lies, or a run cannot be resumed.
        """
        if not resume:
            self.refuse_other_run()
            return None
        self.require_same_run(recipe)
        checkpoint = self.find(step)
        if checkpoint is not None and checkpoint.update >= recipe.trainer.max_steps:
            raise CheckpointError(
                f"{self.root}: the run is complete at update {checkpoint.update}.\n"
                "Fix: raise trainer.max_steps to continue it."
            )
        return checkpoint

    def require_same_run(self, recipe: AnyRecipe) -> None:
        """A resumed run must be the one that lies here; nothing is written.

        Raises:
            CheckpointError: no run lies here, or a setting differs that may not.
        """
        if not self.recipe.exists():
            raise CheckpointError(
                f"{self.root} holds no run to resume.\n"
                "Fix: check run.name and run.output_dir, or start without --resume."
            )
        saved = load_recipe(self.recipe)
        for key, _, _ in differences(saved.model_dump(), recipe.model_dump()):
            if not key.startswith(MAY_CHANGE):
                old, new = look_up(saved.shown(), key), look_up(recipe.shown(), key)
                raise CheckpointError(
                    f"{self.recipe}: the run was started with {key} = {old!r}, and this recipe has {new!r}: "
                    "a checkpoint fits only the run that wrote it.\n"
                    f"Fix: set {key}={json.dumps(old)} to resume, or start a new run under another run.name."
                )

    def reopen(self, recipe: AnyRecipe) -> None:
        """Continue the run that lies here: clear what a killed run left half-written, write the recipe.

        Raises:
            CheckpointError: as `require_same_run`.
            StorageError: the disk refused.
        """
        self.require_same_run(recipe)
        self._put_back_replaced()
        for leftover in self.checkpoints.glob(f"{_UNFINISHED}*") if self.checkpoints.is_dir() else ():
            shutil.rmtree(leftover)
        with storage(f"{self.recipe} could not be written"):
            dump_resolved(recipe, self.recipe)

    def save_checkpoint(
        self,
        update: int,
        write: Callable[[Path], None],
        state: dict[str, Any],
        keep: int,
        good: int | None = None,
    ) -> Path:
        """Write a checkpoint under a temporary name, rename it when it is whole, move `latest` last.

        Args:
            write: puts the engine's part into the folder it is given.
            state: JSON-able facts of the run at this update.
            keep: complete checkpoints that stay.
            good: the newest complete checkpoint up to this update stays too: its weights are known to be
                good. None: no such guarantee.

        Raises:
            StorageError: the disk refused; earlier checkpoints and `latest` are as before.
        """
        final = self.checkpoints / f"step_{update:06d}"
        unfinished = self.checkpoints / f"{_UNFINISHED}{final.name}"
        try:
            with storage(f"{final} could not be written"):
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir(parents=True)
                write(unfinished)
                _write_text(unfinished / STATE_FILE, _state_text({**state, "update": update}, unfinished))
                flush_to_disk(unfinished)
                _replace(final, unfinished)
                _write_text(self.checkpoints / "latest", final.name)
                self._rotate(keep, good)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        return final

    def _rotate(self, keep: int, good: int | None) -> None:
        """Remove what is beyond the newest `keep` checkpoints, but for the newest one up to `good`."""
        spared = None if good is None else self.newest_until(good)
        for old in self.complete()[:-keep]:
            if old != spared:
                _remove(old.folder)

    def _put_back_replaced(self) -> None:
        """A checkpoint that was being replaced when its run was killed is the run's again."""
        for old in self.checkpoints.glob(f"{_REPLACED}*") if self.checkpoints.is_dir() else ():
            final = self.checkpoints / old.name.removeprefix(_REPLACED)
            if final.exists():
                shutil.rmtree(old)
            else:
                old.rename(final)

    def complete(self) -> list[Checkpoint]:
        """All whole checkpoints, oldest first."""
        found = []
        for file in self.checkpoints.glob(f"step_*/{STATE_FILE}"):
            try:
                state = json.loads(file.read_text(encoding="utf-8"))
                found.append(Checkpoint(file.parent, int(state["update"]), state))
            except (OSError, ValueError, KeyError, TypeError):
                continue
        return sorted(found, key=lambda checkpoint: checkpoint.update)

    def newest_until(self, update: int) -> Checkpoint | None:
        """The newest whole checkpoint of `update` or before; None without one."""
        return max(
            (checkpoint for checkpoint in self.complete() if checkpoint.update <= update),
            key=lambda checkpoint: checkpoint.update,
            default=None,
        )

    def find(self, step: int | None = None) -> Checkpoint | None:
        """The checkpoint of update `step`, or the newest; None when the run has none yet.

        Raises:
            CheckpointError: `step` is asked for and not there.
        """
        complete = self.complete()
        if step is None:
            return complete[-1] if complete else None
        for checkpoint in complete:
            if checkpoint.update == step:
                return checkpoint
        have = ", ".join(str(checkpoint.update) for checkpoint in complete) or "none"
        raise CheckpointError(
            f"{self.checkpoints} has no complete checkpoint of update {step}; it has: {have}.\n"
            "Fix: name one of them, or leave the step out for the newest."
        )

    def drop_after(self, update: int) -> None:
        """Forget checkpoints and rollouts of later updates, once the run has resumed from `update`.

        Nothing brings them back, so this comes after everything of a resume that can fail.
        """
        kept = self.newest_until(update)
        latest = self.checkpoints / "latest"
        if kept is not None:
            _write_text(latest, kept.folder.name)
        else:
            latest.unlink(missing_ok=True)
        for checkpoint in self.complete():
            if checkpoint.update > update:
                _remove(checkpoint.folder)
        for path in self.rollouts.glob("update_*.parquet") if self.rollouts.is_dir() else ():
            if int(path.stem.removeprefix("update_")) > update:
                path.unlink()


class storage:
    """Context in which an OSError becomes a StorageError that says what could not be done."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, OSError):
            raise storage_error(self._what, error) from error


def _state_text(state: dict[str, Any], folder: Path) -> str:
    """The state of a checkpoint whose other files lie in `folder`, with their digests and its own."""
    told = json.loads(json.dumps({**state, _FILES: digests_of(folder)}))
    return json.dumps({**told, _DIGEST: _state_digest(told)})


def _state_digest(state: dict[str, Any]) -> str:
    told = {key: value for key, value in state.items() if key != _DIGEST}
    return text_digest(json.dumps(told, sort_keys=True))


def _replace(final: Path, unfinished: Path) -> None:
    """Put a whole checkpoint in its place; one that is there already goes when the new one stands."""
    old = final.with_name(f"{_REPLACED}{final.name}")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    unfinished.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def _remove(folder: Path) -> None:
    """Remove a checkpoint; when killed half-way, what is left does not look whole."""
    doomed = folder.with_name(f"{_UNFINISHED}old_{folder.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def _write_text(path: Path, text: str) -> None:
    """Write and rename, so that a reader sees the old text or the new."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
