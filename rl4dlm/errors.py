"""One exception type per boundary of the toolkit.

`UserError` and its children say that something the user gave is wrong: the command line prints the message
alone and exits with status 2. `RunError` and its children say that a run failed: exit status 1, the traceback
goes to the run's log. A message states what was wrong with the value, where (file, key, row) and how to fix
it.
"""

from __future__ import annotations

import errno
import signal


class Rl4dlmError(Exception):
    """Base of every error that rl4dlm raises on purpose."""

    exit_code = 1


class UserError(Rl4dlmError):
    """Something the user gave is wrong; nothing was started."""

    exit_code = 2


class RecipeError(UserError):
    """A recipe, an override or a combination of settings is wrong."""


class DataError(UserError):
    """A dataset, a column or a row is wrong."""


class ModelError(UserError):
    """A model folder, its configuration, its tensors or its tokenizer are wrong."""


class ModelWarning(UserWarning):
    """A model folder leaves something unsaid, or says what rl4dlm does not know; it can be used."""


class PluginError(UserError):
    """A plug-in (a reward function, a method) cannot be found, imported or called."""


class CheckpointError(UserError):
    """A run folder or a checkpoint cannot be used as asked."""


class ClusterError(UserError):
    """The cluster does not have what the recipe asks for."""


class RunError(Rl4dlmError):
    """A run failed while it was under way."""


class RolloutError(RunError):
    """Sampling failed beyond what restarting a worker can repair."""


class RewardError(RunError):
    """Too many rewards failed for the run to continue."""


class SyncError(RunError):
    """A worker's weights are not the weights that were asked for."""


class UpdateError(RunError):
    """The policy update failed: a rank died twice, or a value is not finite."""


class CollapseError(RunError):
    """The policy fell apart although every number is finite."""


class StorageError(RunError):
    """Writing to disk failed; what was complete before is still there. The remedy is the user's, so the exit
    status is 2."""

    exit_code = 2


class Interrupted(BaseException):
    """A signal ends the run. No `Exception`: nothing that handles failures may take it for one."""

    def __init__(self, number: signal.Signals, message: str = "") -> None:
        """
        Args:
            number: which signal.
            message: what the user is told, e.g. how to resume.
        """
        super().__init__(message or f"interrupted by {number.name}")
        self.signal = number

    @property
    def exit_code(self) -> int:
        """As shells have it: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
        return 128 + self.signal


def storage_error(what: str, error: OSError) -> StorageError:
    """The message for something that cannot be written, with the remedy that fits the reason.

    Args:
        what: the place and what could not be done there, without a full stop.
        error: why.
    """
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = "free disk space" if full else "check that this is a place that you may write to"
    return StorageError(
        f"{what}: {error.strerror or error}.\n"
        f"Fix: {remedy}, or choose another one; what was complete is still there."
    )
