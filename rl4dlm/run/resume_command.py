"""What an interrupted run says: where it stands, and the command that resumes it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager

from rl4dlm.errors import Interrupted
from rl4dlm.recipe import AnyRecipe, SFTRecipe
from rl4dlm.run.folder import RunFolder


@contextmanager
def told_how_to_resume(recipe: AnyRecipe, folder: RunFolder) -> Iterator[None]:
    """An interruption says what became of the run and, where it can be resumed, by which command."""
    try:
        yield
    except Interrupted as error:
        if not folder.recipe.exists():
            raise Interrupted(error.signal, f"{error}; nothing was started.") from error
        newest = folder.find()
        stands = f"update {newest.update}" if newest else "its beginning: no checkpoint was written yet"
        verb = "sft" if isinstance(recipe, SFTRecipe) else "train"
        command = shlex.join(["rl4dlm", verb, str(folder.root), "--resume"])
        raise Interrupted(error.signal, f"{error}; `{command}` continues from {stands}.") from error
