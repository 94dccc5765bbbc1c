"""The player: what it plays is what was recorded, and nothing that a model wrote can act on the page."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rl4dlm.commands.inspect import inspect_rollouts
from rl4dlm.errors import DataError
from rl4dlm.rollout import to_table, write_parquet
from rl4dlm.tracking.player import frames, player_page
from rl4dlm.types import (
    EOS_FILLER,
    FILL,
    REMASK,
    REVEAL,
    Events,
    Prompt,
    Rollout,
    RolloutGroup,
    Scores,
    Trace,
)

MASK = 9


def rollout(sample: int = 0, events: Events | None = None) -> Rollout:
    """Tokens 5, 6, 7 in steps 1, 0, 1, then a filler."""
    trace = Trace(
        step_map=np.array([1, 0, 1, 2], np.int32),
        rank=np.array([1, 0, 0, 0], np.int16),
        kind=np.array([0, 0, 0, EOS_FILLER], np.uint8),
        rollout_logp=np.log(np.array([0.5, 0.25, 1.0, 1.0], np.float32)),
        score=np.array([0.5, 0.25, 1.0, 0.0], np.float32),
        step_block=np.array([0, 0], np.int16),
        step_masked=np.array([4, 3], np.int32),
        events=events,
    )
    ids = np.array([5, 6, 7, 8], np.int32)
    return Rollout(3, sample, 1, np.array([1, 2], np.int32), ids, 3, 0, 2, 2, 12, 4, 5, trace, "text")


REVISED = Events(
    ptr=np.array([0, 2, 5, 6], np.int32),
    pos=np.array([0, 1, 0, 1, 2, 3], np.int32),
    op=np.array([REVEAL, REVEAL, REMASK, REMASK, REVEAL, FILL], np.uint8),
    token=np.array([4, 6, MASK, MASK, 7, 8], np.int32),
    logp=np.zeros(6, np.float32),
)


def group(*rollouts: Rollout, prompt: str = "12=") -> RolloutGroup:
    return RolloutGroup(Prompt(3, prompt, prompt, (1, 2), {"answer": "12"}), rollouts)


def data_of(page: str) -> list[dict[str, Any]]:
    """What the page's script will read, as a browser would find it: up to the next end tag."""
    found = re.search(r'<script id="data" type="application/json">(.*?)</script', page, flags=re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def played(sample: dict[str, Any], count: int) -> list[str | None]:
    """The canvas after some frames."""
    canvas: list[str | None] = [None] * sample["length"]
    for frame in sample["frames"][:count]:
        for position, kind, *rest in frame:
            canvas[position] = None if kind == 1 else rest[0]
    return canvas


def test_frames_follow_the_steps_in_the_order_of_commitment_with_fillers_last() -> None:
    made = frames(rollout())
    assert [[change[:3] for change in frame] for frame in made] == [
        [(1, 0, 6)],
        [(2, 0, 7), (0, 0, 5)],
        [(3, 2, 8)],
    ]


def test_what_was_taken_back_is_hidden_again() -> None:
    page = player_page([group(rollout(events=REVISED))], None, str, title="t")
    sample = data_of(page)[0]["samples"][0]
    assert played(sample, 1) == ["4", "6", None, None]
    assert played(sample, 2) == [None, None, "7", None]
    assert played(sample, 3) == [None, None, "7", "8"]


def test_the_samples_of_a_group_stand_side_by_side_with_their_rewards_step_by_step() -> None:
    scores = Scores(
        np.array([1.0, np.nan], np.float32),
        {"sort": np.array([1.0, 0.5], np.float32)},
        {},
        np.array([False, True]),
    )
    groups = [group(rollout(0), rollout(1))]
    page = player_page(groups, scores, str, title="t", step_rewards=[[0.0, 1.0], None])
    samples = data_of(page)[0]["samples"]
    assert [sample["rewards"] for sample in samples] == [
        {"reward": 1.0, "sort": 1.0},
        {"reward": None, "sort": 0.5},
    ]
    assert [sample["stepRewards"] for sample in samples] == [[0.0, 1.0], None]
    assert [sample["sample"] for sample in samples] == [0, 1]
    # Each written token has the probability that it was committed with.
    assert samples[0]["frames"][1] == [[2, 0, "7", 1.0], [0, 0, "5", 0.5]]


def test_hostile_text_stays_text_and_the_page_loads_nothing() -> None:
    evil = "</script><script>alert(1)</script><!--\u202e\x1b[31m"
    page = player_page([group(rollout(), prompt=evil)], None, lambda token: evil, title=evil)
    assert page.count("<script") == 2
    assert "<!--" not in page
    data = data_of(page)[0]
    assert "\u202e" not in data["prompt"] and "\x1b" not in data["prompt"]
    assert "</script>" in data["samples"][0]["frames"][0][0][2]
    assert not re.search(r"(src|href)\s*=|https?://|url\(|@import", page)
    assert "default-src 'none'" in page


def write(folder: Path, make: Callable[[], RolloutGroup], update: int, **kwargs: Any) -> Path:
    path = folder / "rollouts" / f"update_{update:06d}.parquet"
    write_parquet(to_table([make()], None, update=update, **kwargs), path)
    return path


def test_a_run_folder_plays_its_newest_or_the_named_update(tmp_path: Path) -> None:
    first = write(tmp_path, lambda: group(rollout(0)), 1, step_rewards=[np.array([0.0, 1.0])])
    write(tmp_path, lambda: group(rollout(0), rollout(1)), 4)
    newest = inspect_rollouts(tmp_path)
    assert newest == tmp_path / "rollouts" / "update_000004.html"
    assert len(data_of(newest.read_text())[0]["samples"]) == 2
    older = inspect_rollouts(tmp_path, update=1, output=tmp_path / "page.html")
    sample = data_of(older.read_text())[0]["samples"][0]
    assert sample["stepRewards"] == [0.0, 1.0]
    # Without a tokenizer ids are shown.
    assert played(sample, 3) == ["5 ", "6 ", "7 ", "8 "]
    assert inspect_rollouts(first).read_text() == older.read_text()


def test_what_cannot_be_played_is_refused_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no recorded rollouts.*\nFix: "):
        inspect_rollouts(tmp_path)
    write(tmp_path, lambda: group(rollout()), 2)
    with pytest.raises(DataError, match="no rollouts of update 3 .there are update_000002 to update_000002"):
        inspect_rollouts(tmp_path, update=3)
    (tmp_path / "text.parquet").write_text("no table")
    with pytest.raises(DataError, match="cannot be read"):
        inspect_rollouts(tmp_path / "text.parquet")
    bare = write(tmp_path, lambda: group(replace(rollout(), text="")), 5, record_states=False)
    with pytest.raises(DataError, match="record_states: true"):
        inspect_rollouts(bare)


@pytest.mark.parametrize("token", [-1, 2**31, 2**40])
@pytest.mark.parametrize("column", ["prompt_ids", "completion_ids"])
def test_ids_that_no_tokenizer_has_are_refused_by_row(column: str, token: int, tmp_path: Path) -> None:
    path = write(tmp_path, lambda: group(rollout(0), rollout(1)), 1)
    table = pq.read_table(path)
    ids = table.column(column).to_pylist()
    ids[1][0] = token
    changed = table.set_column(table.column_names.index(column), column, pa.array(ids, pa.list_(pa.int64())))
    pq.write_table(changed, path)
    with pytest.raises(DataError, match=f"row 1: `{column}` is no list of token ids from 0 .*\nFix: "):
        inspect_rollouts(path)


@pytest.mark.parametrize(
    ("column", "value"),
    [("completion_ids", None), ("step_map", [7]), ("prompt", "["), ("prompt", "[" * 5000), ("num_steps", -3)],
)
def test_a_table_that_contradicts_itself_is_refused(column: str, value: object, tmp_path: Path) -> None:
    path = write(tmp_path, lambda: group(rollout(0)), 1)
    table = pq.read_table(path)
    field = table.schema.field(column)
    pq.write_table(
        table.set_column(table.column_names.index(column), column, pa.array([value], field.type)), path
    )
    with pytest.raises(DataError, match="\nFix: "):
        inspect_rollouts(path)
