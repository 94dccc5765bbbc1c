"""Promises of the documentation: generated parts are current, links lead somewhere, commands exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from rl4dlm.recipe import list_recipes

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
PACKAGE = ROOT / "rl4dlm"

_LINK = re.compile(r"(?<!\!)\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"```.*?```|`[^`\n]+`|^    [^\n]*$", flags=re.DOTALL | re.MULTILINE)
_COMMAND = re.compile(r"\brl4dlm ([a-z]+)(?: ([a-z]+))?")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """Link targets that Markdown renderers give the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", text_of(page), flags=re.MULTILINE)
    kept = ["".join(c for c in heading.lower() if c.isalnum() or c in " -_") for heading in headings]
    return {heading.replace(" ", "-") for heading in kept}


@pytest.mark.parametrize("name", ["make_recipe_docs.py", "make_sampler_docs.py", "make_map_docs.py"])
def test_generated_parts_are_up_to_date(name):
    script = ROOT / "scripts" / name
    done = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_somewhere(page):
    for target in _LINK.findall(text_of(page)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(place), f"{page.name}: no heading for {target}"


def commands() -> dict[str, set[str]]:
    """The commands, and the commands below them."""
    from rl4dlm.cli import app

    click = typer.main.get_command(app)
    return {name: set(getattr(command, "commands", {})) for name, command in click.commands.items()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_a_page_names_exists(page):
    known = commands()
    code = "\n".join(_CODE.findall(text_of(page)))
    for command, below in _COMMAND.findall(code):
        assert command in known, f"{page.name}: rl4dlm {command}"
        if known[command]:
            assert below in known[command], f"{page.name}: rl4dlm {command} {below}"


def test_every_command_is_in_the_readme():
    readme = text_of(ROOT / "README.md")
    for command, below in commands().items():
        for name in [f"{command} {inner}" for inner in below] or [command]:
            assert f"rl4dlm {name}" in readme


def test_the_readme_begins_with_the_two_scripts():
    top = text_of(ROOT / "README.md").split("## Quick start")[1][:600]
    for script in ("scripts/quickstart.sh", "scripts/test.sh"):
        assert script in top and (ROOT / script).is_file()


def test_every_shipped_recipe_is_in_the_readmes_table():
    readme = text_of(ROOT / "README.md")
    for name in list_recipes():
        assert f"(recipes/{name}.yaml)" in readme, name


def test_functions_that_the_papers_page_names_exist():
    page = text_of(ROOT / "docs" / "papers.md")
    for file, names in re.findall(r"`([\w/]+\.py)`: ((?:`[\w.]+`(?:, )?)+)", page):
        source = PACKAGE / file if (PACKAGE / file).is_file() else ROOT / file
        for name in re.findall(r"`([\w.]+)`", names):
            leaf = name.rpartition(".")[2]
            assert re.search(rf"^\s*(def|class) {leaf}\b", text_of(source), flags=re.MULTILINE), (
                f"{file}: {name}"
            )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_names_a_package_registrys_host_or_a_path_of_one_machine(page):
    text = text_of(page)
    for place in ("/root/", "/home/", "/work/"):
        assert place not in text
    assert not re.search(r"https?://[^\s)]*/(simple|whl)\b|--(extra-)?index-url", text)
