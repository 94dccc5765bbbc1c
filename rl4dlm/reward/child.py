"""The process that runs reward functions, so that one which hangs, exits or crashes takes nothing with it.

`rl4dlm.reward.process` starts it in a session of its own, with two pipes. Requests are pickled by the parent;
replies are JSON, so that nothing a reward process writes can run code in its parent. The process dies with
its parent. It imports the standard library, the plug-ins, and what those import.

This is fault isolation, not a jail: a plug-in has the rights of the run. Text from a model is data to it.
"""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import signal
import sys
from collections.abc import Callable
from typing import Any

from rl4dlm.errors import PluginError
from rl4dlm.reward.calling import LoadedReward, WrongLength, explain
from rl4dlm.reward.channel import read_message, write_message
from rl4dlm.reward.loading import import_plugin, load_function, needed_seconds, prepare, traits_of

_PR_SET_PDEATHSIG = 1


def main(read_fd: int, write_fd: int, parent: int) -> None:
    """Serve requests until the parent closes its end.

    Args:
        read_fd: pipe with requests.
        write_fd: pipe for replies.
        parent: process id of the parent.
    """
    die_with(parent)
    os.set_inheritable(read_fd, False)
    os.set_inheritable(write_fd, False)
    Server().serve(read_fd, write_fd)


def die_with(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends; leave now if it has already."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)


class Server:
    """Answers requests: load a function, score samples, show a plug-in's examples."""

    def __init__(self) -> None:
        self._loaded: dict[int, LoadedReward] = {}
        self._files: dict[int, str] = {}
        self._operations: dict[str, Callable[..., dict[str, Any]]] = {
            "load": self._load,
            "score": self._score,
            "examples": self._examples,
            "golds": self._golds,
            "needs_s": self._needs_s,
        }

    def serve(self, read_fd: int, write_fd: int) -> None:
        """Answer until the end of the input."""
        home = os.getpid()
        while True:
            try:
                serial, operation, payload = pickle.loads(read_message(read_fd))
            except EOFError:
                return
            reply = self._answer(operation, payload)
            if os.getpid() != home:
                # The plug-in forked and its copy came back here: one of us answers.
                os._exit(0)
            write_message(write_fd, json.dumps({"id": serial, **reply}).encode())

    def _answer(self, operation: str, payload: bytes) -> dict[str, Any]:
        key = -1
        try:
            key, arguments = pickle.loads(payload)
            return self._operations[operation](key, *arguments)
        except PluginError as error:
            return {"kind": "plugin", "message": str(error)}
        except WrongLength as error:
            return {"kind": "wrong_length", "message": str(error)}
        # Also SystemExit and KeyboardInterrupt: a plug-in may not end the process by raising.
        except BaseException as error:
            return {"kind": "raised", "message": explain(error, self._files.get(key))}

    def _load(self, key: int, resolved: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        self._files[key] = resolved.location
        loaded = self._loaded[key] = load_function(resolved, kwargs)
        prepare(resolved, kwargs)
        code = getattr(loaded.function, "__code__", None)
        self._files[key] = code.co_filename if code is not None else resolved.location
        alone_s = needed_seconds(resolved, kwargs, 1)
        traits = traits_of(resolved, loaded.function)
        return {
            "style": loaded.style,
            "needs": loaded.needs,
            "reads_answer": loaded.style == "trl" and "answer" in loaded.parameters,
            "keeps_deadlines": alone_s > 0,
            "whole_batch": traits.whole_batch,
            "bounds": traits.bounds,
        }

    def _score(self, key: int, call: Any) -> dict[str, Any]:
        answer = self._loaded[key](call)
        extra = {column: [_plain(value) for value in values] for column, values in answer.extra.items()}
        return {
            "values": answer.values,
            "metrics": answer.metrics,
            "extra": extra,
            "misfits": answer.misfits,
        }

    def _needs_s(self, key: int, resolved: Any, kwargs: dict[str, Any], count: int) -> dict[str, Any]:
        return {"seconds": needed_seconds(resolved, kwargs, count)}

    def _examples(self, key: int, resolved: Any) -> dict[str, Any]:
        examples = getattr(import_plugin(resolved), "EXAMPLES", [])
        json.dumps(examples)
        return {"examples": examples}

    def _golds(self, key: int, resolved: Any, rows: Any) -> dict[str, Any]:
        """The text that the plug-in itself calls each row's gold completion: by column names, or a function.

        The first row that the function refuses is named by its place, with the function's reason.
        """
        declared = getattr(import_plugin(resolved), "GOLD", None)
        names = [declared] if isinstance(declared, str) else () if callable(declared) else declared or ()
        known = tuple(names)
        texts = []
        for place, columns in enumerate(rows):
            try:
                text = declared(columns) if callable(declared) else _first_given(columns, known)
            except (Exception, SystemExit) as error:
                reason = str(error) if type(error) is ValueError else explain(error, self._files.get(key))
                return {"refused": place, "reason": reason}
            texts.append(None if text is None else str(text))
        return {"declared": declared is not None, "texts": texts}


def _first_given(columns: Any, names: tuple[str, ...]) -> Any:
    return next((columns[name] for name in names if columns.get(name) is not None), None)


def _plain(value: Any) -> Any:
    """A logged value as JSON can hold it: what is no number, text or flag becomes the text that shows it."""
    if hasattr(value, "item") and getattr(value, "size", 1) == 1:  # a number of numpy or torch
        value = value.item()
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
