"""`report.html`: one self-contained page that says how a run went, rebuilt from the run's files at any time.

It loads nothing: styles, script and charts are inline, and a content security policy admits only that one
style sheet and script, so that text from a model or a dataset stays text.
"""

from __future__ import annotations

import base64
import hashlib
import math
import time
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path

import yaml

from rl4dlm.tracking.chart_plan import Section, plan_sections
from rl4dlm.tracking.charts import text
from rl4dlm.tracking.files import REPORT_FILE, replace_file
from rl4dlm.tracking.history import RunHistory
from rl4dlm.tracking.names import (
    format_change,
    format_duration,
    format_measured,
    format_value,
    headline_names,
    is_share,
    label,
)
from rl4dlm.tracking.samples import SampleRow, shown_samples
from rl4dlm.tracking.sink import Evaluation, Metrics, Sink, Summary

_SHOWN_CHARACTERS = 6000
"""Characters of a prompt or completion that the page shows; `samples.jsonl` has all of them."""
_REFRESH_S = 60.0
_REFRESH_SHARE = 0.01
"""Between evaluations the page is rebuilt at most this often, in at most this share of the run's time."""


class ReportSink(Sink):
    """Rewrites the page at each evaluation, at the end, and now and then in between."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._next = time.monotonic() + _REFRESH_S

    def log(self, update: int, metrics: Metrics, time_s: float) -> None:
        if time.monotonic() >= self._next:
            self._rebuild()

    def evaluation(self, evaluation: Evaluation, time_s: float) -> None:
        self._rebuild()

    def finish(self, summary: Summary) -> None:
        self._rebuild()

    def fail(self, message: str) -> None:
        self._rebuild()

    def interrupt(self, message: str) -> None:
        self._rebuild()

    def _rebuild(self) -> None:
        began = time.monotonic()
        rebuild(self._folder)
        now = time.monotonic()
        self._next = now + max(_REFRESH_S, (now - began) / _REFRESH_SHARE)


def rebuild(folder: Path) -> Path:
    """Write the report of a run folder from its files, atomically, and return its path.

    Raises:
        CheckpointError: the folder holds no run, or a file of it is broken.
        StorageError: the disk refuses.
    """
    path = folder / REPORT_FILE
    replace_file(path, render(RunHistory.load(folder)).encode("utf-8"))
    return path


def render(history: RunHistory) -> str:
    """The page as HTML."""
    assets = resources.files("rl4dlm.tracking") / "assets"
    style = (assets / "report.css").read_text(encoding="utf-8")
    script = (assets / "report.js").read_text(encoding="utf-8")
    policy = f"default-src 'none'; style-src {csp_hash(style)}; script-src {csp_hash(script)}"
    name = history.folder.resolve().name
    body = "".join(
        [
            _header(name, history),
            _before_after(history),
            _messages(history),
            *(_section(section) for section in plan_sections(history)),
            _samples(history),
            _recipe(history),
            _environment(history),
        ]
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(name)} - rl4dlm</title><style>{style}</style></head>\n"
        f'<body><main>{body}</main><div id="tip" hidden></div><script>{script}</script></body></html>\n'
    )


def csp_hash(source: str) -> str:
    """How a content security policy names an inline style sheet or script."""
    digest = base64.b64encode(hashlib.sha256(source.encode("utf-8")).digest()).decode("ascii")
    return f"'sha256-{digest}'"


def _header(name: str, history: RunHistory) -> str:
    started = history.last_event("started", "resumed")
    status = _status(history)
    done = max((row["update"] for row in history.metrics), default=0)
    rows = [*history.metrics[-1:], *history.evaluations[-1:], *history.phases[-1:]]
    took = max((row["time_s"] for row in rows), default=0.0)
    facts = [
        ("method", started.get("method", "-")),
        ("updates", f"{done} of {started.get('total_updates', '-')}"),
        ("time", format_duration(took)),
        ("began", _clock_text(history.events[0]["at"])),
        ("last written", _clock_text(history.events[-1]["at"])),
    ]
    cells = "".join(f"<div><dt>{text(term)}</dt><dd>{text(str(value))}</dd></div>" for term, value in facts)
    pill = f'<span class="pill {status}">{status}</span>'
    return f'<header><h1>{text(name)} {pill}</h1><dl class="facts">{cells}</dl></header>'


def _status(history: RunHistory) -> str:
    """`running`, `finished`, `failed`, `interrupted` or `stopped`; a run that was killed outright still says
    `running`."""
    kinds = ("started", "resumed", "finished", "failed", "interrupted", "stopped")
    kind = history.last_event(*kinds).get("kind", "running")
    return {"started": "running", "resumed": "running"}.get(kind, kind)


def _clock_text(at: str) -> str:
    return at.replace("T", " ").replace("+00:00", " UTC")


def _before_after(history: RunHistory) -> str:
    before, after = history.before_after()
    names = headline_names(after)
    if not names:
        return ""
    first, last = history.evaluations[0]["update"], history.evaluations[-1]["update"]
    rows = "".join(
        f"<tr class='{'headline' if is_share(name) else 'detail'}'><th>{text(label(name))}</th>"
        f"<td>{format_measured(name, before)}</td><td>{format_measured(name, after)}</td>"
        f"<td>{format_change(name, before.get(name), after[name])}</td></tr>"
        for name in names
    )
    return (
        '<section><h2>Before and after, on held-out instances</h2><div class="scroll"><table class="numbers">'
        f"<thead><tr><th></th><th>update {first}</th><th>update {last}</th><th>change</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div>{_decode(history.evaluations[-1].get('decode'))}</section>"
    )


def _decode(settings: object) -> str:
    """How the last evaluation decoded, beside its score."""
    if not settings:
        return ""
    shown = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    return f"<details><summary>Decoded with</summary><pre>{text(shown)}</pre></details>"


def _messages(history: RunHistory) -> str:
    verdict = "failed" if _status(history) == "failed" else "failed, then resumed"
    blocks = [
        _message("failed", verdict, message, count) for message, count in history.texts("failed").items()
    ]
    blocks += [
        _message("warning", "warning", message, count) for message, count in history.texts("warning").items()
    ]
    notes = "".join(f"<li>{text(note)}</li>" for note in history.texts("note"))
    if notes:
        blocks.append(f"<details><summary>Notes</summary><ul>{notes}</ul></details>")
    return f"<section>{''.join(blocks)}</section>" if blocks else ""


def _message(style: str, title: str, message: str, count: int) -> str:
    times = f" ({count} times)" if count > 1 else ""
    return f'<div class="message {style}"><b>{title}{times}</b><pre>{text(message)}</pre></div>'


def _section(section: Section) -> str:
    opened = " open" if section.open else ""
    return (
        f"<section><details{opened}><summary><h2>{text(section.title)}</h2></summary>"
        f'<div class="grid">{"".join(section.charts)}</div></details></section>'
    )


def _samples(history: RunHistory) -> str:
    count = history.num_completions_to_print()
    groups: dict[int, list[SampleRow]] = {}
    for row in history.samples:
        groups.setdefault(row.update, []).append(row)
    if not groups or count == 0:
        return ""
    newest = max(groups)
    blocks = "".join(
        f"<details{' open' if update == newest else ''}><summary>{_when(update)}</summary>"
        f"{_sample_table(shown_samples(rows, count))}</details>"
        for update, rows in sorted(groups.items(), reverse=True)
    )
    return f"<section><h2>Sampled completions</h2>{blocks}</section>"


def _when(update: int) -> str:
    return "before training" if update == 0 else f"after update {update}"


def _sample_table(rows: Sequence[SampleRow]) -> str:
    functions = list(dict.fromkeys(name for row in rows for name in row.rewards))
    extra = functions if len(functions) > 1 else []
    logged = list(dict.fromkeys(column for row in rows for column in row.extra))
    head = _cells("th", ["prompt", "completion", "reward", *extra, "correct", *logged])
    body = "".join(_sample_line(row, extra, logged) for row in rows)
    return (
        f'<div class="scroll"><table class="samples"><thead>{head}</thead><tbody>{body}</tbody></table></div>'
    )


def _sample_line(row: SampleRow, functions: Iterable[str], logged: Iterable[str]) -> str:
    texts = "".join(f"<td><pre>{text(_cut(part))}</pre></td>" for part in (row.prompt, row.completion))
    scores = [row.reward, *(row.rewards.get(name, math.nan) for name in functions)]
    cells = "".join(f"<td>{format_value('reward', score)}</td>" for score in scores)
    verdict = "-" if row.correct is None else "yes" if row.correct else "no"
    notes = "".join(f"<td><pre>{text(_cut(_logged(row.extra.get(column))))}</pre></td>" for column in logged)
    style = verdict if row.correct is not None else "open"
    return f'<tr>{texts}{cells}<td class="{style}">{verdict}</td>{notes}</tr>'


def _logged(value: object) -> str:
    return "-" if value is None else str(value)


def _cut(part: str) -> str:
    rest = len(part) - _SHOWN_CHARACTERS
    return part if rest <= 0 else f"{part[:_SHOWN_CHARACTERS]} ... ({rest} more characters)"


def _cells(tag: str, values: Iterable[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{text(value)}</{tag}>" for value in values) + "</tr>"


def _recipe(history: RunHistory) -> str:
    if not history.recipe_text:
        return ""
    return _folded("Recipe", f"<pre>{text(history.recipe_text)}</pre>")


def _folded(title: str, body: str) -> str:
    return f"<section><details><summary><h2>{title}</h2></summary>{body}</details></section>"


def _environment(history: RunHistory) -> str:
    environment = history.last_event("started", "resumed").get("environment", {})
    places = history.last_event("finished").get("places", {})
    blocks = []
    for title, values in (("Where everything lies", places), ("Environment", environment)):
        rows = "".join(
            f"<tr><th>{text(key)}</th><td>{text(value)}</td></tr>" for key, value in values.items()
        )
        if rows:
            blocks.append(_folded(title, f"<table>{rows}</table>"))
    return "".join(blocks)
