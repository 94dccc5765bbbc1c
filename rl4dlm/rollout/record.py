"""The trajectory record: every recorded step checked by replay, and the parquet form of rollouts.

In memory a rollout takes 19 bytes per canvas token (id, step, log-probability and score 4 each, rank 2, kind
1), 6 per step, 4 per prompt token, and its text: about 6 KB for 256 tokens in 128 steps. Recorded predictions
add 12 bytes per masked position and step (some 200 KB there), events 13 per change. The table holds the same
arrays unchanged.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rl4dlm.diffusion.replay import commits_of, prediction_at, state_before, step_prediction
from rl4dlm.errors import DataError, RolloutError, StorageError
from rl4dlm.recipe.bounded import parse_json
from rl4dlm.types import (
    EOS_FILLER,
    FILL,
    REMASK,
    REVEAL,
    Events,
    PolicyActions,
    Predictions,
    Prompt,
    Rollout,
    RolloutGroup,
    Scores,
    Trace,
    flatten,
)

__all__ = [
    "STEP_REWARDS",
    "check_trace",
    "commits_of",
    "from_table",
    "prediction_at",
    "state_before",
    "step_prediction",
    "to_table",
    "trace_problems",
    "write_parquet",
]

_SCALARS = {
    "prompt_uid": pa.int64(),
    "sample": pa.int32(),
    "seed": pa.int64(),
    "completion_len": pa.int32(),
    "stop_reason": pa.uint8(),
    "num_steps": pa.int32(),
    "num_forwards": pa.int32(),
    "token_forwards": pa.int64(),
    "policy_version": pa.int32(),
    "spec_hash": pa.int64(),
    "text": pa.string(),
}
_LARGEST_ID = 2**31 - 1
_IDS = {"prompt_ids": pa.int32(), "completion_ids": pa.int32()}
_TRACE = {
    "step_map": pa.int32(),
    "rank": pa.int16(),
    "kind": pa.uint8(),
    "rollout_logp": pa.float32(),
    "score": pa.float32(),
    "step_block": pa.int16(),
    "step_masked": pa.int32(),
}
# Records that only some samplers keep, by their field of the trace.
_RECORDS: dict[str, tuple[type, dict[str, pa.DataType]]] = {
    "predictions": (
        Predictions,
        {"ptr": pa.int32(), "token": pa.int32(), "logp": pa.float32(), "confidence": pa.float32()},
    ),
    "events": (
        Events,
        {"ptr": pa.int32(), "pos": pa.int32(), "op": pa.uint8(), "token": pa.int32(), "logp": pa.float32()},
    ),
    "actions": (
        PolicyActions,
        {
            "ptr": pa.int32(),
            "pos": pa.int32(),
            "confidence": pa.float32(),
            "action": pa.uint8(),
            "logp": pa.float32(),
        },
    ),
}
_PROMPT = ("prompt", "prompt_text", "prompt_columns")
_REWARD_PREFIX = "rewards/"
STEP_REWARDS = "step_rewards"
"""Column of rewards per step, where a method scored the predictions."""


def check_trace(rollout: Rollout, mask_id: int) -> None:
    """Replay a rollout and compare every step with what was written down about it.

    Args:
        rollout: a recorded rollout.
        mask_id: the model's mask token.

    Raises:
        RolloutError: naming the prompt and the first thing that does not fit.
    """
    for problem in trace_problems(rollout, mask_id):
        raise RolloutError(
            f"prompt uid {rollout.prompt_uid}, sample {rollout.sample}: the recorded trajectory cannot be "
            f"replayed: {problem}."
        )


def trace_problems(rollout: Rollout, mask_id: int) -> Iterator[str]:
    """What contradicts itself in a record, one sentence each."""
    trace, size = rollout.trace, len(rollout.completion_ids)
    expected = {
        **dict.fromkeys(_TRACE, size),
        "step_block": rollout.num_steps,
        "step_masked": rollout.num_steps,
    }
    lengths = {name: len(getattr(trace, name)) for name in _TRACE}
    if lengths != expected:
        yield f"its arrays have lengths {lengths} instead of {expected}"
        return
    if (rollout.completion_ids == mask_id).any():
        yield "the completion holds the mask token"
    chosen = trace.kind != EOS_FILLER
    if (trace.step_map[chosen] < 0).any() or (trace.step_map[chosen] >= rollout.num_steps).any():
        yield f"a position was committed outside steps 0 to {rollout.num_steps - 1}"
    if not np.isfinite(trace.rollout_logp).all() or (trace.rollout_logp > 0).any():
        yield "a log-probability is not a number from -inf to 0"
    if trace.rollout_logp[~chosen].any():
        yield "a position that the policy did not fill has a log-probability"
    if trace.predictions is not None and (
        not np.array_equal(np.diff(trace.predictions.ptr), trace.step_masked)
    ):
        yield "a step has not one prediction per masked position"
    for step in range(rollout.num_steps):
        yield from _step_problems(rollout, step, chosen, mask_id)
    yield from _event_problems(rollout, mask_id)


def _step_problems(rollout: Rollout, step: int, chosen: np.ndarray, mask_id: int) -> Iterator[str]:
    trace = rollout.trace
    masked = int((state_before(rollout, step, mask_id) == mask_id).sum())
    if masked != trace.step_masked[step]:
        yield f"step {step} saw {trace.step_masked[step]} masked positions, the replay has {masked}"
    if trace.events is not None:
        return
    ranks = np.sort(trace.rank[chosen & (trace.step_map == step)])
    if len(ranks) == 0:
        yield f"step {step} committed nothing"
    elif not np.array_equal(ranks, np.arange(len(ranks))):
        yield f"the positions of step {step} have ranks {ranks.tolist()}"


def _event_problems(rollout: Rollout, mask_id: int) -> Iterator[str]:
    """What contradicts itself in the events of a record."""
    events = rollout.trace.events
    if events is None:
        return
    if len(events.ptr) != rollout.num_steps + 2 or events.ptr[-1] != len(events.pos):
        yield f"its events do not fit {rollout.num_steps} steps and the fillers"
        return
    if not np.array_equal(state_before(rollout, rollout.num_steps + 1, mask_id), rollout.completion_ids):
        yield "its events do not end in the completion"
    for step in range(rollout.num_steps + 1):
        before = state_before(rollout, step, mask_id) == mask_id
        inside = slice(int(events.ptr[step]), int(events.ptr[step + 1]))
        op, hidden = events.op[inside], before[events.pos[inside]]
        if step < rollout.num_steps and not np.isin(op, (REVEAL, FILL)).any():
            yield f"step {step} committed nothing"
        if (hidden != np.isin(op, (REVEAL, FILL))).any() or not np.isin(op, (REVEAL, FILL, REMASK)).all():
            yield f"step {step} writes where something stands, or changes what is hidden"


def to_table(
    groups: Sequence[RolloutGroup],
    scores: Scores | None,
    *,
    update: int,
    advantage: np.ndarray | None = None,
    step_rewards: Sequence[np.ndarray | None] | None = None,
    record_states: bool = True,
    record_predictions: bool = True,
) -> pa.Table:
    """Rollouts as a table, one row per completion in canonical order.

    Args:
        groups: what was sampled.
        scores: their rewards; None before scoring. Function `f` is column `rewards/f`, the weighted sum
            `reward`.
        update: the update that they were sampled for.
        advantage: float32 `[batch]`, or None.
        step_rewards: per rollout float32 `[num_steps]`, the reward of its prediction at each step, NaN where
            none was asked for, or None; column `step_rewards`, which the player shows.
        record_states: keep the traces; without them the table cannot be read back into rollouts.
        record_predictions: keep predictions in the traces that have them; they are most of a rollout's bytes.

    Returns:
        The table. A reward of NaN means none: not applicable, or the function failed.
    """
    rollouts = flatten(groups)
    columns: dict[str, pa.Array] = {"update": pa.array([update] * len(rollouts), pa.int32())}
    for name, dtype in _SCALARS.items():
        columns[name] = pa.array([getattr(rollout, name) for rollout in rollouts], dtype)
    for name, dtype in _IDS.items():
        columns[name] = _lists([getattr(rollout, name) for rollout in rollouts], dtype)
    if record_states:
        for name, dtype in _TRACE.items():
            columns[name] = _lists([getattr(rollout.trace, name) for rollout in rollouts], dtype)
        wanted = [name for name in _RECORDS if name != "predictions" or record_predictions]
        columns |= _record_columns(rollouts, wanted)
    prompts = [_prompt_row(group.prompt) for group in groups for _ in group.rollouts]
    for i, name in enumerate(_PROMPT):
        columns[name] = pa.array([row[i] for row in prompts], pa.string())
    if scores is not None:
        columns["reward"] = pa.array(scores.reward, pa.float32())
        columns["reward_failed"] = pa.array(scores.failed, pa.bool_())
        for name, values in scores.components.items():
            columns[_REWARD_PREFIX + name] = pa.array(values, pa.float32())
    if advantage is not None:
        columns["advantage"] = pa.array(advantage, pa.float32())
    if step_rewards is not None:
        columns[STEP_REWARDS] = pa.array(list(step_rewards), pa.list_(pa.float32()))
    return pa.table(columns)


def _record_columns(rollouts: Sequence[Rollout], wanted: Sequence[str]) -> dict[str, pa.Array]:
    """Columns such as `events/op` for the records that some rollout has; null where a rollout has none."""
    columns = {}
    for name in wanted:
        records = [getattr(rollout.trace, name) for rollout in rollouts]
        if any(record is not None for record in records):
            for field, dtype in _RECORDS[name][1].items():
                values = [None if record is None else getattr(record, field) for record in records]
                columns[f"{name}/{field}"] = pa.array(values, pa.list_(dtype))
    return columns


def _lists(arrays: Sequence[np.ndarray], dtype: pa.DataType) -> pa.ListArray:
    """Arrays of unequal length as one list column."""
    offsets = np.cumsum([0, *(len(array) for array in arrays)], dtype=np.int32)
    values = np.concatenate(arrays) if len(arrays) else np.zeros(0, np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, dtype))


def _prompt_row(prompt: Prompt) -> tuple[str, str, str]:
    """Prompt as JSON (text or chat messages), what the model read, and the other columns as JSON."""
    columns = json.dumps(dict(prompt.columns), default=_plain, ensure_ascii=False)
    return json.dumps(prompt.prompt, ensure_ascii=False), prompt.text, columns


def _plain(value: Any) -> Any:
    """Numpy values as Python ones; whatever else JSON does not know (a date) as text."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return str(value)


def from_table(table: pa.Table) -> tuple[list[RolloutGroup], Scores | None]:
    """The rollouts and rewards of a table made by `to_table`.

    Args:
        table: rows of one update or of several, in the order in which they were written.

    Returns:
        The groups, and the scores in the order of their flattened rollouts (failure counts are not kept);
        None when the table has no rewards.

    Raises:
        DataError: columns are missing, or a row holds what no rollout does; names it.
    """
    missing = [
        name for name in ("update", *_SCALARS, *_IDS, *_TRACE, *_PROMPT) if name not in table.column_names
    ]
    if missing:
        raise DataError(
            f"the table of rollouts lacks the columns {', '.join(missing)}.\n"
            "Fix: use a file that rl4dlm wrote with rollout.record_states: true."
        )
    columns = {name: _column(table, name) for name in table.column_names}
    groups: list[RolloutGroup] = []
    members: list[Rollout] = []
    for row in range(table.num_rows):
        try:
            _require_ids(columns, row)
            members.append(_rollout(columns, row))
            if row + 1 == table.num_rows or _starts_group(columns, row + 1):
                groups.append(RolloutGroup(_prompt(columns, row), tuple(members)))
                members = []
        except (TypeError, ValueError, AttributeError, LookupError) as error:  # a file is made by anyone
            raise DataError(
                f"the table of rollouts, row {row}: {error or type(error).__name__}.\n"
                "Fix: use a file that rl4dlm wrote with rollout.record_states: true."
            ) from None
    return groups, _scores(table)


def _require_ids(columns: Mapping[str, Sequence[Any]], row: int) -> None:
    """Raises ValueError where a list of token ids holds what is none."""
    for name in _IDS:
        ids = np.asarray(columns[name][row])
        if ids.ndim != 1 or (
            len(ids) and (ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() > _LARGEST_ID)
        ):
            raise ValueError(f"`{name}` is no list of token ids from 0 to {_LARGEST_ID}")


def _starts_group(columns: Mapping[str, Sequence[Any]], row: int) -> bool:
    """Whether a row belongs to another group than the row before; samples are numbered from 0 in each."""
    other = any(columns[key][row] != columns[key][row - 1] for key in ("update", "prompt_uid"))
    return other or columns["sample"][row] <= columns["sample"][row - 1]


def _column(table: pa.Table, name: str) -> Sequence[Any]:
    """A column's values: numpy arrays for lists and floats, Python values otherwise."""
    column = table.column(name).combine_chunks()
    if not pa.types.is_list(column.type):
        return column.to_pylist()
    values, offsets = column.flatten().to_numpy(), column.offsets.to_numpy() - column.offsets[0].as_py()
    present = column.is_valid().to_pylist()
    return [values[offsets[i] : offsets[i + 1]] if present[i] else None for i in range(len(column))]


def _rollout(columns: Mapping[str, Sequence[Any]], row: int) -> Rollout:
    fields = {name: columns[name][row] for name in (*_SCALARS, *_IDS)}
    arrays = {name: columns[name][row] for name in _TRACE}
    records = {name: _record_of(columns, name, row) for name in _RECORDS}
    return Rollout(**fields, trace=Trace(**arrays, **records))


def _record_of(columns: Mapping[str, Sequence[Any]], name: str, row: int) -> Any:
    """An optional record of a row, or None."""
    made, fields = _RECORDS[name]
    values = {field: columns[f"{name}/{field}"][row] for field in fields if f"{name}/{field}" in columns}
    return made(**values) if values and values["ptr"] is not None else None


def _prompt(columns: Mapping[str, Sequence[Any]], row: int) -> Prompt:
    prompt, text, extra = (columns[name][row] for name in _PROMPT)
    ids = tuple(columns["prompt_ids"][row].tolist())
    return Prompt(columns["prompt_uid"][row], parse_json(prompt), text, ids, parse_json(extra))


def _scores(table: pa.Table) -> Scores | None:
    if "reward" not in table.column_names:
        return None
    names = [name for name in table.column_names if name.startswith(_REWARD_PREFIX)]
    return Scores(
        reward=table.column("reward").to_numpy(),
        components={name.removeprefix(_REWARD_PREFIX): table.column(name).to_numpy() for name in names},
        errors={},
        failed=table.column("reward_failed").to_numpy(),
    )


def write_parquet(table: pa.Table, path: str | Path) -> None:
    """Write a table so that the file is either complete or absent, whatever happens meanwhile.

    Args:
        table: from `to_table`.
        path: where; the folder is made, an older file is replaced.

    Raises:
        StorageError: the disk refused (full, read-only); nothing half-written is left.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            pq.write_table(table, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StorageError(
            f"{path}: rollouts could not be written: {error}.\nFix: free space there."
        ) from error
