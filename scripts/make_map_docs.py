"""Write the map of docs/architecture.md: every module with the first sentence of its docstring.


python scripts/make_map_docs.py            rewrite what lies between the two marker lines
python scripts/make_map_docs.py --check    exit with status 1 when the page is not up to date
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "rl4dlm"
PAGE = ROOT / "docs" / "architecture.md"
BEGIN = "<!-- From here: scripts/make_map_docs.py. Edit the modules' first lines instead. -->"
END = "<!-- To here. -->"
_COLUMN = 34


def main() -> int:
    """Rewrite or check the page; the exit status."""
    parser = argparse.ArgumentParser(description="Write the map of docs/architecture.md.")
    parser.add_argument("--check", action="store_true", help="only say whether the page is up to date")
    check = parser.parse_args().check
    old = PAGE.read_text(encoding="utf-8")
    head, begin, rest = old.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        print(f"{PAGE}: a marker line is missing:\n{BEGIN}\n{END}", file=sys.stderr)
        return 1
    new = f"{head}{BEGIN}\n\n```\n" + "\n".join(rows(PACKAGE)) + f"\n```\n\n{END}{tail}"
    if check and new != old:
        print(f"{PAGE} is not up to date. Fix: python scripts/make_map_docs.py", file=sys.stderr)
        return 1
    if not check:
        PAGE.write_text(new, encoding="utf-8")
    return 0


def rows(folder: Path, depth: int = 0) -> Iterator[str]:
    """A line per module of a folder, then its folders with theirs."""
    for path in sorted(folder.glob("*.py")):
        if path.name != "__init__.py":
            yield row(path.name, first_sentence(path), depth)
    for inner in sorted(path for path in folder.iterdir() if (path / "__init__.py").is_file()):
        yield row(f"{inner.name}/", first_sentence(inner / "__init__.py"), depth)
        yield from rows(inner, depth + 1)


def row(name: str, text: str, depth: int) -> str:
    """One line of the map."""
    return f"{'  ' * depth + name:<{_COLUMN}}{text}".rstrip()


def first_sentence(path: Path) -> str:
    """Of a module's docstring, without its full stop.

    Raises:
        ValueError: the module has none.
    """
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if not docstring:
        raise ValueError(f"{path} has no docstring: say in its first line what it holds")
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return re.split(r"(?<=[^.]{2})\.(?: |$)", paragraph)[0]


if __name__ == "__main__":
    sys.exit(main())
