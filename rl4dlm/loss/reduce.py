"""Many numbers to one: the only place where a `[batch]` becomes a scalar, always by a global count.

Dividing by the count over the whole optimizer step, instead of by what is at hand, makes the sum over
micro-batches and ranks independent of how the rows were split.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor


def mean_over_rows(values: Tensor, num_rows: float) -> Tensor:
    """This part's share of the mean over the rows of an optimizer step.

    Args:
        values: `[rows]`, the rows at hand.
        num_rows: rows of the whole step over all ranks and micro-batches.

    Returns:
        Scalar; the shares of all parts add up to the mean.

    Raises:
        ValueError: `num_rows` is not positive.
    """
    if num_rows <= 0:
        raise ValueError(f"num_rows = {num_rows}: the rows of an optimizer step are counted over all ranks.")
    return values.sum() / num_rows


def token_weights(
    aggregation: str,
    live: Tensor,
    *,
    num_rows: int,
    num_tokens: float,
    row_tokens: Tensor,
) -> Tensor:
    """The weight of each token in a loss that is a sum over tokens: `[batch, completion]` to a scalar.

    Denominators are counted over the whole optimizer step, so they depend neither on micro-batches nor on
    ranks.

    Args:
        aggregation: `token_mean`: every token alike (DAPO). `seq_mean`: the mean over completions of each
            one's mean over its tokens. `canvas`: the sum over tokens divided by completions times canvas
            length (JustGRPO, Dr. GRPO).
        live: bool `[rows, completion]`, tokens that have a weight here.
        num_rows: completions of the step.
        num_tokens: tokens of the step.
        row_tokens: `[rows]`, float: tokens of each completion, at least 1.

    Returns:
        `[rows, completion]` in the dtype of `row_tokens`; 0 where not `live`.

    Raises:
        ValueError: there is no such aggregation.
    """
    weights = live.to(row_tokens)
    if aggregation == "token_mean":
        return weights / num_tokens
    if aggregation == "seq_mean":
        return weights / (num_rows * row_tokens[:, None])
    if aggregation == "canvas":
        return weights / (num_rows * live.shape[1])
    raise ValueError(f"aggregation {aggregation!r} does not exist. Fix: one of token_mean, seq_mean, canvas.")


def merge_metrics(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Combine metrics of micro-batches or ranks: names ending in `/max`, `/min` by extremes, others by sum.

    May be applied in stages, first over micro-batches, then over ranks.
    """
    merged: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            if name not in merged:
                merged[name] = value
            elif name.endswith("/max"):
                merged[name] = max(merged[name], value)
            elif name.endswith("/min"):
                merged[name] = min(merged[name], value)
            else:
                merged[name] += value
    return merged


def finish_metrics(merged: Mapping[str, float]) -> dict[str, float]:
    """Turn the moments `<name>/mean` and `<name>/mean_square` of a step into `<name>/mean` and `<name>/std`.

    A standard deviation does not add up over parts; these two moments do.
    """
    finished = dict(merged)
    for name in [name for name in merged if name.endswith("/mean_square")]:
        stem = name.removesuffix("/mean_square")
        variance = finished.pop(name) - merged[f"{stem}/mean"] ** 2
        finished[f"{stem}/std"] = max(variance, 0.0) ** 0.5
    return finished
