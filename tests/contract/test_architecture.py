"""The floor plan: a module imports from lower floors only, never from a neighbour on its own floor; no files
import each other in a circle, and a public name means one thing."""

import ast
import re
from collections.abc import Iterator, Mapping
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


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in PACKAGE.rglob("*.py")}


def for_types_alone(node: ast.AST) -> bool:
    """`if TYPE_CHECKING:`, whose imports never run."""
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def running(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if for_types_alone(node):
            continue
        yield node
        yield from running(node)


def files_imported(path: Path, files: Mapping[str, Path]) -> set[str]:
    """Files that a file imports when it runs, at the top or inside functions."""
    found: set[str] = set()
    for node in running(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in files else str(node.module) for name in inner}
    return found & set(files)


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of files each of which reaches all others of its group."""
    reached = {name: reach(name, graph) for name in graph}
    groups = {
        tuple(sorted(other for other in reached[name] if name in reached[other]))
        for name in graph
        if name in reached[name]
    }
    return sorted(map(list, groups))


def reach(start: str, graph: Mapping[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    todo = set(graph[start])
    while todo:
        name = todo.pop()
        seen.add(name)
        todo |= graph[name] - seen
    return seen


def test_no_files_import_each_other_in_a_circle() -> None:
    graph = {name: files_imported(path, FILES) for name, path in FILES.items()}
    assert circles(graph) == []


def test_a_circle_is_found_at_the_top_inside_functions_and_over_three_files(tmp_path: Path) -> None:
    texts = {
        "p.a": "from p import b\n",
        "p.b": "def f():\n    from p.c import g\n",
        "p.c": "import p.a\nimport p.d\n",
        "p.d": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import p.a\n",
    }
    files = {name: tmp_path / f"{name}.py" for name in texts}
    for name, text in texts.items():
        files[name].write_text(text)
    graph = {name: files_imported(path, files) for name, path in files.items()}
    assert circles(graph) == [["p.a", "p.b", "p.c"]]
    assert circles({"a": {"a"}, "b": set()}) == [["a"]]


# Names of commands, which `cli.py` defines over the functions that do the work.
COMMANDS = {"estimate", "evaluate", "export", "inspect", "train", "main"}


def doubles(files: Mapping[str, Path]) -> dict[str, set[str]]:
    """Public classes and functions that several files define, with the files."""
    homes: dict[str, set[str]] = {}
    for name, path in files.items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                homes.setdefault(node.name, set()).add(name.removeprefix("rl4dlm."))
    return {name: where for name, where in homes.items() if len(where) > 1 and not name.startswith("_")}


def test_a_public_name_means_one_thing() -> None:
    assert {name: where for name, where in doubles(FILES).items() if name not in COMMANDS} == {}


def test_a_command_is_defined_in_the_command_line_and_in_one_other_file() -> None:
    found = doubles(FILES)
    for name in COMMANDS & set(found):
        assert "cli" in found[name] and len(found[name]) == 2, (name, found[name])
