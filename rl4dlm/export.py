"""A run's weights as a plain Hugging Face folder."""

from __future__ import annotations

import shutil
from pathlib import Path

from rl4dlm.errors import CheckpointError
from rl4dlm.recipe import Recipe, load_recipe
from rl4dlm.run_folder import Checkpoint, RunFolder, storage


def export(run: Path, target: Path, step: int | None = None) -> Path:
    """Write the policy of a run's checkpoint to `target`; adapters are merged into their base.

    Args:
        run: a run's folder.
        target: must not exist.
        step: the checkpoint's update; None: the newest.

    Raises:
        CheckpointError: no run, no such checkpoint, or the target exists.
        StorageError: the disk refused; `target` does not exist then.
    """
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
    if checkpoint.parts.adapter.exists():
        return _merge_adapter(load_recipe(folder.recipe), checkpoint, target)
    unfinished = target.with_name(f".unfinished_{target.name}")
    with storage(f"{target} could not be written"):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(checkpoint.parts.model, unfinished)
        unfinished.rename(target)
    return target


def _merge_adapter(recipe: Recipe, checkpoint: Checkpoint, target: Path) -> Path:
    import torch
    from peft import PeftModel

    from rl4dlm.models import load, merged_state_dict, save

    loaded = load(
        checkpoint.state["model"],
        family=recipe.model.family,
        dtype=torch.bfloat16 if recipe.trainer.bf16 else torch.float32,
        trust_remote_code=recipe.model.trust_remote_code,
        block_length=recipe.model.block_length,
    )
    adapted = PeftModel.from_pretrained(loaded.module, str(checkpoint.parts.adapter))
    return save(loaded, target, loaded.tokenizer, state_dict=merged_state_dict(adapted))
