"""The folder of an evaluation: completions as they are scored, a result per task, one table over all.

    results.md                     the table, made anew from the results
    <task>_len<length>.json        the result: figures, decode settings, environment
    <task>_len<length>.jsonl       what it stands on: the settings, then a line per completion

The second file is written as completions are scored, so that an evaluation that was killed resumes behind
its last whole prompt. A result is finished when its file is there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl4dlm.errors import CheckpointError
from rl4dlm.recipe.comparison import differences
from rl4dlm.tracking.files import JsonLines, replace_file

TABLE_FILE = "results.md"
FORMAT = 1

Json = dict[str, Any]


@dataclass(frozen=True)
class Key:
    """One completion of a task.

    Example: `Key("sampled", row=17, sample=3)`.
    """

    mode: str
    """`greedy` or `sampled`."""
    row: int
    """Of the task's file."""
    sample: int


class TaskFolder:
    """The files of one task at one length."""

    def __init__(self, folder: Path, task: str, length: int, settings: Mapping[str, Any]) -> None:
        """Open them; nothing is written yet.

        Args:
            folder: the evaluation's folder; it exists.
            settings: everything that the completions depend on. Completions and results under other ones are
                not mixed with these.

        Raises:
            CheckpointError: the files are those of other settings, or broken.
        """
        self.result_file = folder / f"{task}_len{length}.json"
        self._lines = JsonLines(folder / f"{task}_len{length}.jsonl")
        self._settings = dict(settings)
        self.rows: dict[Key, Json] = {}
        """Completions that are scored already."""
        kept = self._lines.keep(lambda line: True)
        if kept:
            self._require_same(kept[0].get("settings"), self._lines.path)
        for line in kept[1:]:
            self.rows[_key(line, self._lines.path)] = line

    def finished(self, wanted: Mapping[str, Any]) -> Json | None:
        """The result, where it is there and has these sizes (`num_prompts`, `num_samples`).

        Raises:
            CheckpointError: it is of other settings, or broken.
        """
        if not self.result_file.is_file():
            return None
        result = read_result(self.result_file)
        self._require_same(result.get("settings"), self.result_file)
        return result if all(result.get(name) == value for name, value in wanted.items()) else None

    def add(self, rows: Sequence[Json]) -> None:
        """Keep scored completions; each needs `mode`, `row` and `sample`.

        Raises:
            StorageError: the disk refuses.
        """
        if not self._lines.path.exists():
            self._lines.append({"format": FORMAT, "settings": self._settings})
        for row in rows:
            self._lines.append(row)
            self.rows[_key(row, self._lines.path)] = row

    def finish(self, result: Mapping[str, Any]) -> Json:
        """Write the result, settings beside it, and return it.

        Raises:
            StorageError: the disk refuses.
        """
        self._lines.close()
        whole = {"format": FORMAT, **result, "settings": self._settings}
        replace_file(self.result_file, (json.dumps(whole, indent=2) + "\n").encode("utf-8"))
        return whole

    def close(self) -> None:
        """Release the file of completions."""
        self._lines.close()

    def _require_same(self, found: Any, path: Path) -> None:
        differing = [name for name, _, _ in differences(found or {}, self._settings)]
        if not differing:
            return
        name = differing[0]
        raise CheckpointError(
            f"{path}: was made with other settings: {name} = {_at(found, name)!r}, now "
            f"{_at(self._settings, name)!r}{f' (and {len(differing) - 1} more)' if differing[1:] else ''}.\n"
            "Fix: name another --output folder, or evaluate with the settings of this one."
        )


def _key(row: Json, path: Path) -> Key:
    try:
        return Key(row["mode"], row["row"], row["sample"])
    except KeyError as error:
        raise CheckpointError(
            f"{path}: a line has no {error}.\nFix: remove the file; its completions are sampled again."
        ) from None


def read_result(path: Path) -> Json:
    """One task's result.

    Raises:
        CheckpointError: it is no result.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}.\nFix: remove it.") from None
    if not isinstance(result, dict) or not {"task", "figures", "settings"} <= result.keys():
        raise CheckpointError(f"{path}: is no result of `rl4dlm eval`.\nFix: name another --output folder.")
    return result


def read_results(folder: Path) -> dict[str, Json]:
    """All results of a folder by file name, sorted.

    Raises:
        CheckpointError: a file is no result.
    """
    return {path.name: read_result(path) for path in sorted(folder.glob("*_len*.json"))}


def disagreements(results: Mapping[str, Json]) -> list[str]:
    """What keeps results from being compared: decode settings or environments that differ, a line each."""
    lines = []
    names = list(results)
    for part in ("decode", "environment"):
        for name in names[1:]:
            found = list(differences(results[names[0]].get(part, {}), results[name].get(part, {})))
            if found:
                shown = "; ".join(f"{key}: {a!r} and {b!r}" for key, a, b in found)
                lines.append(f"{names[0]} and {name} differ in {part}: {shown}")
    return lines


def markdown(results: Mapping[str, Json]) -> str:
    """The results as a markdown table, a line per figure, settings below."""
    lines = [
        "| task | length | figure | value | 95 % interval | n |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in figure_rows(results):
        interval = "" if row["low"] is None else f"{100 * row['low']:.1f} to {100 * row['high']:.1f}"
        value = f"{100 * row['value']:.1f}"
        lines.append(
            f"| {row['task']} | {row['length']} | {row['figure']} | {value} | {interval} | {row['n']} |"
        )
    lines.append("")
    for name, result in results.items():
        lines += [f"- `{name}`: {result['model']}; {json.dumps(result['decode'])}"]
        lines += [f"  - {result['num_failed']} rewards failed and count as wrong"] * bool(
            result["num_failed"]
        )
    notes = [f"- not comparable: {line}" for line in disagreements(results)]
    return "\n".join([*lines, *notes]) + "\n"


def figure_rows(results: Mapping[str, Json]) -> Iterator[Json]:
    """A flat row per figure, for tables."""
    for result in results.values():
        for name, figure in result["figures"].items():
            low, high = figure["ci95"] or (None, None)
            yield {
                "task": result["task"],
                "length": result["settings"]["decode"]["greedy"]["max_completion_length"],
                "figure": name,
                "value": figure["value"],
                "low": low,
                "high": high,
                "n": figure["n"],
            }


def _at(values: Any, dotted: str) -> Any:
    for key in dotted.split("."):
        values = values.get(key) if isinstance(values, Mapping) else None
    return values
