"""The wheel works without the clone: it carries recipes and reward functions, and finds them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

CLONE = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The built wheel; skips where the build backend is neither installed nor to be had."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", str(CLONE), "--no-deps", "--quiet", "-w", str(folder)]
    if importlib.util.find_spec("hatchling") is not None:
        command.append("--no-build-isolation")
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"the wheel cannot be built here: {(done.stderr or done.stdout).strip()[-300:]}")
    (file,) = folder.glob("rl4dlm-*.whl")
    return zipfile.ZipFile(file)


@pytest.fixture(scope="module")
def installed(wheel: zipfile.ZipFile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an installer would put into site-packages."""
    folder = tmp_path_factory.mktemp("site")
    wheel.extractall(folder)
    return folder


def rl4dlm(installed: Path, cwd: Path, *arguments: str) -> str:
    """Output of `rl4dlm ARGUMENTS` from the unpacked wheel, in a folder that is not the clone."""
    code = (
        "import rl4dlm, sys\n"
        f"assert rl4dlm.__file__.startswith({str(installed)!r}), rl4dlm.__file__\n"
        "from rl4dlm.cli import main; main()"
    )
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_carries_recipes_rewards_and_types(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    recipes = {str(path.relative_to(CLONE)) for path in (CLONE / "recipes").rglob("*.yaml")}
    rewards = {str(path.relative_to(CLONE)) for path in (CLONE / "reward_fns").rglob("*.py")}
    assert recipes and rewards
    assert {f"rl4dlm/_shipped/{name}" for name in recipes | rewards} <= names
    modules = {str(path.relative_to(CLONE)) for path in (CLONE / "rl4dlm").rglob("*.py")}
    assert modules | {"rl4dlm/py.typed"} <= names
    assert not [name for name in names if "__pycache__" in name]
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"rl4dlm"}


def test_the_wheel_names_its_command_and_its_licence(wheel: zipfile.ZipFile) -> None:
    texts = {Path(name).name: wheel.read(name).decode() for name in wheel.namelist() if ".dist-info/" in name}
    assert "rl4dlm = rl4dlm.cli:main" in texts["entry_points.txt"]
    assert "License-Expression: Apache-2.0" in texts["METADATA"] and "Apache License" in texts["LICENSE"]


def test_an_installed_package_finds_what_it_ships(installed: Path, tmp_path: Path) -> None:
    assert "quickstart" in rl4dlm(installed, tmp_path, "recipes", "ls")
    rewards = rl4dlm(installed, tmp_path, "rewards", "ls")
    assert {"sort", "countdown", "sudoku", "format"} <= {line.split()[0] for line in rewards.splitlines()}
    shown = rl4dlm(installed, tmp_path, "recipes", "show", "quickstart")
    assert shown == (CLONE / "recipes" / "quickstart.yaml").read_text(encoding="utf-8")


def test_an_installed_package_dry_runs_the_quick_start(installed: Path, tmp_path: Path) -> None:
    told = rl4dlm(installed, tmp_path, "train", "quickstart", "--dry-run")
    assert "sort: loaded and tried on two samples" in told and "Nothing was started" in told
    assert list(tmp_path.iterdir()) == []


def test_an_installed_package_finds_the_reader_that_its_rewards_share(
    installed: Path, tmp_path: Path
) -> None:
    for name in ("math", "countdown"):
        assert "gold answers score full marks" in rl4dlm(installed, tmp_path, "rewards", "test", name)
