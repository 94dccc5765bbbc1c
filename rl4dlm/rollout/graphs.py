"""CUDA graphs: a model's layers recorded once per shape and replayed as one launch.

A forward of few tokens is bound by launching its kernels, not by running them. Shapes are rounded up so that
few occur, and a shape that keeps coming back is recorded; embedding and layers only, since how many positions
go through the head differs from step to step. The numbers are those of the same kernels on padded inputs.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rl4dlm.errors import RolloutError
from rl4dlm.rollout.store import Store

Record = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]
"""Runs a program of fixed tensors once, and returns what runs it again and where its result then lies."""


def rounded(count: int, step: int) -> int:
    """The next power of two up to `step`, the next multiple of `step` from there on."""
    if count >= step:
        return -(-count // step) * step
    return 1 << max(count - 1, 0).bit_length()


def round_rows(rows: int) -> int:
    """Rows that a forward of `rows` is padded to."""
    return rounded(rows, 8)


def round_queries(queries: int) -> int:
    """Query tokens that a cached forward of `queries` per row is padded to."""
    return rounded(queries, 64)


@dataclass(frozen=True)
class _Program:
    """Recorded layers."""

    inputs: Mapping[str, Tensor]
    store: Store | None
    """What the recording reads and writes beside its inputs; held here, since a recording holds nothing."""
    replay: Callable[[], None]
    output: Tensor


def _fill(inputs: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Write what is given into a program's inputs; what pads them copies the last row, keys that it writes
    included."""
    for name, fixed in inputs.items():
        rows = len(given[name])
        fixed[:rows].copy_(given[name])
        if len(fixed) > rows:
            fixed[rows:] = given[name][-1:]


class Graphs:
    """The recorded programs of one model, and the store that they write to; they outlive an engine's calls.

    It is what `rl4dlm.types.Denoiser.run` takes.
    """

    def __init__(
        self, record: Record | None = None, *, after: int = 2, most: int = 64, align: int = 128
    ) -> None:
        """
        Args:
            record: what records; None: CUDA graphs of the present device.
            after: forwards of a shape that run as they are before it is recorded; at least one.
            most: programs that are kept; the one that was not used for longest goes.
            align: columns of prompts, and of keys that are attended to, come in multiples of it.

        Raises:
            ValueError: a count is not positive.
        """
        if min(after, most, align) < 1:
            raise ValueError(f"must be positive: after = {after}, most = {most}, align = {align}")
        self.align = align
        self._record, self._after, self._most = record or CudaRecorder(), after, most
        self._programs: OrderedDict[Hashable, _Program] = OrderedDict()
        self._seen: Counter[Hashable] = Counter()
        self._store: Store | None = None
        self._addresses: tuple[int, ...] = ()
        self.forwards = self.replays = 0
        """Forwards so far, and those of them that were replayed."""

    def __len__(self) -> int:
        return len(self._programs)

    def begin(self, model: object) -> None:
        """Called before rows are sampled: a model whose weights have moved in memory is recorded anew."""
        parameters = model.parameters() if isinstance(model, nn.Module) else ()
        addresses = tuple(parameter.data_ptr() for parameter in parameters)
        if addresses != self._addresses:
            self._forget()
            self._store, self._addresses = None, addresses

    def store(self, num_rows: int, num_columns: int) -> Store:
        """An empty store with room for so many rows and columns: the last one, where it is large enough."""
        store = self._store
        if store is not None and store.num_rows >= num_rows and store.num_columns >= num_columns:
            store.clear()
            return store
        self._forget()
        self._store = Store(num_rows, num_columns)
        return self._store

    def _forget(self) -> None:
        self._programs.clear()
        self._seen.clear()

    def __call__(
        self,
        states: Callable[..., Tensor],
        input_ids: Tensor,
        mask: Tensor | None,
        positions: Tensor,
        cache: Store | None,
    ) -> Tensor:
        """The layers' output `[rows, length, hidden]`, valid until the next call.

        Args:
            states: runs the layers: the same kernels for all inputs of a shape.
            input_ids: int64 `[rows, length]`.
            mask: bool `[rows or 1, 1, length or 1, keys]`, or None.
            positions: int64 `[rows or 1, length]`.
            cache: aimed at these rows, or None.

        Raises:
            RolloutError: the layers cannot be recorded.
        """
        self.forwards += 1
        rows, given = len(input_ids), {"input_ids": input_ids, "positions": positions}
        if mask is not None:
            given["mask"] = mask
        padded, aim = round_rows(rows), None
        if cache is not None:
            aim = cache.are_first, cache.keys
            given["columns"] = cache.columns
            if cache.are_first:  # rows of the store that are free take part as padding
                padded = min(padded, cache.num_rows)
            else:
                given["rows"] = cache.rows
        key = (padded, aim, *((name, len(part) == rows, part.shape[1:]) for name, part in given.items()))
        program = self._programs.get(key)
        if program is None:
            self._seen[key] += 1
            if self._seen[key] <= self._after:
                return states(input_ids, mask, positions, cache)
            program = self._programs[key] = self._recorded(states, given, rows, padded, cache)
            if len(self._programs) > self._most:
                self._programs.popitem(last=False)
        self._programs.move_to_end(key)
        self.replays += 1
        _fill(program.inputs, given)
        program.replay()
        return program.output[:rows]

    def _recorded(
        self,
        states: Callable[..., Tensor],
        given: Mapping[str, Tensor],
        rows: int,
        padded: int,
        cache: Store | None,
    ) -> _Program:
        """A program for inputs of these shapes."""
        fixed = {
            name: part.new_empty(padded if len(part) == rows else 1, *part.shape[1:])
            for name, part in given.items()
        }
        _fill(fixed, given)
        store = None
        if cache is not None:
            first = torch.arange(padded, device=given["input_ids"].device)
            store = cache.aimed(fixed.get("rows", first), fixed["columns"])

        def run() -> Tensor:
            return states(fixed["input_ids"], fixed.get("mask"), fixed["positions"], store)

        return _Program(fixed, store, *self._record(run))


class CudaRecorder:
    """Records with `torch.cuda.graph`; all graphs share one pool of memory, since they never run at once."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """See `Record`.

        Raises:
            RolloutError: something in the program cannot be recorded.
        """
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph, aside = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        try:
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                run()  # libraries set themselves up, which cannot be recorded
            torch.cuda.current_stream().wait_stream(aside)
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                output = run()
        except RuntimeError as error:
            raise RolloutError(
                f"the model's layers cannot be recorded as a CUDA graph: {str(error).splitlines()[0]}\n"
                "Fix: set rollout.cuda_graphs=false."
            ) from error
        return graph.replay, output
