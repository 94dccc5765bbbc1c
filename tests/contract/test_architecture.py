"""The floor plan: a module imports from lower floors only, never from a neighbour on its own floor."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "rl4dlm"

PLAN = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
# Rows such as "| 3 | `advantage`, `loss` |": the floors have their home in the docs.
FLOORS = [set(re.findall(r"`(\w+)`", row)) for row in re.findall(r"^\| \d+ \| (.+) \|$", PLAN, flags=re.M)]
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE) != Path("__init__.py"))


def room(path: Path) -> str:
    """The top-level package or module that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Dotted names of everything a file imports, at the top or inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_only(path: Path) -> None:
    here = room(path)
    assert here in FLOOR_OF, f"{here} has no floor: give it one in FLOORS"
    for name in imported(path):
        parts = name.split(".")
        if parts[0] != "rl4dlm" or len(parts) < 2 or parts[1] not in FLOOR_OF or parts[1] == here:
            continue
        assert FLOOR_OF[parts[1]] < FLOOR_OF[here], f"{here} (floor {FLOOR_OF[here]}) imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_workers_import_ray_and_deepspeed(path: Path) -> None:
    if room(path) != "workers":
        roots = {name.split(".")[0] for name in imported(path)}
        assert not roots & {"ray", "deepspeed"}


def test_the_recipe_imports_neither_torch_nor_types() -> None:
    for path in (PACKAGE / "recipe").rglob("*.py"):
        names = imported(path)
        assert not any(name.split(".")[0] == "torch" or name.startswith("rl4dlm.types") for name in names), (
            path
        )


def test_reward_functions_need_nothing_from_the_package() -> None:
    for path in (PACKAGE.parent / "reward_fns").glob("*.py"):
        assert not any(name.split(".")[0] == "rl4dlm" for name in imported(path)), path


def test_there_is_no_utils() -> None:
    assert not [path for path in PACKAGE.rglob("*") if path.stem in ("utils", "helpers", "common", "misc")]
