"""The jail of the `code` reward, for those in the package who ask about it, as `doctor` does.

The jail itself is the folder `code_jail` beside the shipped reward functions. It lies there and not here,
because those functions need nothing from this package; this module loads that one implementation by its path.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from types import ModuleType

from rl4dlm.errors import PluginError

_NAME = "rl4dlm_code_jail"


@functools.cache
def jail() -> ModuleType:
    """The jail's package: `run_tests`, `run_script`, `layers` and the types that they take.

    Raises:
        PluginError: this installation does not carry it.
    """
    from rl4dlm.recipe import shipped_folder

    folder = shipped_folder("reward_fns") / "code_jail"
    spec = importlib.util.spec_from_file_location(
        _NAME, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None or not folder.is_dir():
        raise PluginError(f"the jail for code is missing: no folder {folder}.\nFix: install rl4dlm again.")
    module = sys.modules[_NAME] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def layers() -> dict[str, str]:
    """Which layers of the jail this machine offers, found by starting one.

    Returns:
        `jail`: `on` where code rewards can run, else `off: ` and why. Then the same for each layer:
        limits, namespaces, private_root, landlock, user, system_calls.

    Raises:
        PluginError: this installation does not carry the jail.
    """
    if sys.platform != "linux":
        return {"jail": f"off: needs Linux, this is {sys.platform}"}
    return jail().layers()
