"""A run's weights as a plain Hugging Face folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml

from rl4dlm.errors import CheckpointError
from rl4dlm.recipe import Recipe, load_recipe
from rl4dlm.run.folder import Checkpoint, RunFolder, storage
from rl4dlm.tracking.files import EVALUATIONS_FILE, tracked_rows


def export(
    run: Path,
    target: Path,
    step: int | None = None,
    *,
    push_to: str | None = None,
    private: bool = True,
) -> Path:
    """Write the policy of a run's checkpoint to `target`, with a model card; adapters are merged.

    Args:
        run: a run's folder.
        target: must not exist.
        step: the checkpoint's update; None: the newest.
        push_to: repository on the hub, `owner/name`, that the folder is uploaded to.
        private: of that repository, if it is made.

    Raises:
        CheckpointError: no run, no such checkpoint, or the target exists.
        StorageError: the disk refused; `target` does not exist then.
        ModelError: the hub refuses or cannot be reached; `target` is complete then.
    """
    if push_to is not None:
        from rl4dlm.models import push, require_pushable

        require_pushable(push_to)
    folder, checkpoint = _checkpoint(run, target, step)
    _write_model(folder, checkpoint, target)
    with storage(f"{target} could not be written"):
        (target / "README.md").write_text(_card(folder, checkpoint.update), encoding="utf-8")
    if push_to is not None:
        push(target, push_to, private=private)
    return target


def _checkpoint(run: Path, target: Path, step: int | None) -> tuple[RunFolder, Checkpoint]:
    folder = RunFolder(run)
    if not folder.recipe.exists():
        raise CheckpointError(
            f"{run} holds no run (no recipe.yaml).\nFix: name a run's folder, such as runs/quickstart."
        )
    if target.exists():
        raise CheckpointError(
            f"{target} exists; nothing was overwritten.\nFix: name a folder that does not exist."
        )
    checkpoint = folder.find(step)
    if checkpoint is None:
        raise CheckpointError(
            f"{folder.checkpoints} has no complete checkpoint yet.\nFix: wait for the first one."
        )
    return folder, checkpoint


def _card(folder: RunFolder, update: int) -> str:
    from rl4dlm.models import model_card

    text = folder.recipe.read_text(encoding="utf-8")
    evaluations = tracked_rows(folder.root / EVALUATIONS_FILE)
    return model_card(folder.root.name, yaml.safe_load(text), text, update, evaluations)


def _write_model(folder: RunFolder, checkpoint: Checkpoint, target: Path) -> None:
    if checkpoint.parts.adapter.exists():
        _merge_adapter(load_recipe(folder.recipe), checkpoint, target)
        return
    unfinished = target.with_name(f".unfinished_{target.name}")
    with storage(f"{target} could not be written"):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(checkpoint.parts.model, unfinished)
        unfinished.rename(target)


def _merge_adapter(recipe: Recipe, checkpoint: Checkpoint, target: Path) -> None:
    import torch
    from peft import PeftModel

    from rl4dlm.models import load, merged_state_dict, options_of, save

    loaded = load(
        checkpoint.state["model"],
        dtype=torch.bfloat16 if recipe.trainer.bf16 else torch.float32,
        **options_of(recipe.model),
    )
    adapted = PeftModel.from_pretrained(loaded.module, str(checkpoint.parts.adapter))
    save(loaded, target, loaded.tokenizer, state_dict=merged_state_dict(adapted))
