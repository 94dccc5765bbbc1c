"""A jail for code that a model wrote: nothing it does reaches the verdict, the machine, or the time after.

    from code_jail import Setup, Tests, run_tests
    run_tests(["def f(x): return x + 1"], Tests(("assert f(1) == 2",)), Setup()).passed    # (True,)

Three processes take part in a verdict. The completion runs in one that has neither tests nor expected values
and only answers calls (`candidate`). The tests run in another (`tester`), which holds no code of the
completion and sees its answers as plain builtins (`wire`). Each is put into a jail of its own (`confine`,
`kernel`) by a process that waits outside of it (`boot`). The caller (`session`) takes the verdict from the
tester's pipe.

It lies beside the reward functions and needs the standard library alone, so that `code.py` works as a plain
plug-in, in a clone, in a wheel, or copied elsewhere with this folder. `rl4dlm.reward.sandbox` loads this same
folder. It is no module on the search path: who uses it loads it by its path. Linux only.
"""

from __future__ import annotations

from .naming import called_builtins, free_names, imported_from_solution
from .outputs import as_text, same_output
from .session import (
    BrokenTests,
    Completion,
    JailError,
    Limits,
    Setup,
    Tests,
    Verdict,
    layers,
    require,
    run_script,
    run_tests,
)

__all__ = [
    "BrokenTests",
    "Completion",
    "JailError",
    "Limits",
    "Setup",
    "Tests",
    "Verdict",
    "as_text",
    "called_builtins",
    "free_names",
    "imported_from_solution",
    "layers",
    "require",
    "run_script",
    "run_tests",
    "same_output",
]
