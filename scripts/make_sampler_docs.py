"""Write the tables of docs/sampling.md: every sampler and every cache plan, from `rl4dlm.recipe.samplers`.

python scripts/make_sampler_docs.py            rewrite the tables, keep the text around them
python scripts/make_sampler_docs.py --check    exit with status 1 when the page is not up to date
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from rl4dlm.recipe.samplers import CACHES, SAMPLERS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "sampling.md"
BEGIN, END = "<!-- {}: scripts/make_sampler_docs.py -->", "<!-- end of {} -->"


def main() -> int:
    """Rewrite or check the page; the exit status."""
    parser = argparse.ArgumentParser(description="Write the tables of docs/sampling.md.")
    parser.add_argument("--check", action="store_true", help="only say whether the page is up to date")
    check = parser.parse_args().check
    old = new = PAGE.read_text(encoding="utf-8")
    for name, lines in (("samplers", samplers()), ("caches", caches())):
        begin, end = BEGIN.format(name), END.format(name)
        if begin not in new or end not in new:
            print(f"{PAGE}: the line {begin} or {end} is missing.", file=sys.stderr)
            return 1
        before, _, rest = new.partition(begin)
        new = "\n".join([before + begin, *lines, end + rest.partition(end)[2]])
    if check and new != old:
        print(f"{PAGE} is not up to date. Fix: python scripts/make_sampler_docs.py", file=sys.stderr)
        return 1
    if not check:
        PAGE.write_text(new, encoding="utf-8")
    return 0


def samplers() -> Iterator[str]:
    """A row for every sampler."""
    yield "| name | what a step commits | law | steps | remasks | settings | from |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for name, facts in SAMPLERS.items():
        settings = ", ".join(f"`{setting}`" for setting in facts.settings)
        bound = "bounded" if facts.keeps_to_steps else "its own"
        cells = (facts.summary, _yes(facts.exact_law), bound, _yes(facts.revises), settings, facts.source)
        yield f"| `{name}` | " + " | ".join(cells) + " |"


def caches() -> Iterator[str]:
    """A row for every cache plan, after the one for none."""
    yield "| `rollout.cache` | computes | exact | attention | from |"
    yield "| --- | --- | --- | --- | --- |"
    yield "| `none` | everything | yes | any | |"
    for name, plan in CACHES.items():
        attention = plan.attention.replace("_", "-")
        summary = plan.summary
        if plan.needs_order:
            known = ", ".join(f"`{sampler}`" for sampler, facts in SAMPLERS.items() if facts.knows_order)
            summary += f"; for {known}"
        yield f"| `{name}` | {summary} | {_yes(plan.exact)} | {attention} | {plan.source} |"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


if __name__ == "__main__":
    sys.exit(main())
