"""Key-value caches: which tokens a forward computes anew, and where keys and values of the others are kept.

A plan names the query tokens of every row; the store holds keys and values by column, so a forward
overwrites what it computes and attends to everything else as it was left. Exact for block-causal models,
whose finished blocks see nothing that changes; approximate for full attention, where every token's keys
change with the canvas.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rl4dlm.decoding import STRATEGIES, SamplerSpec
from rl4dlm.diffusion.blocks import WindowLayout
from rl4dlm.recipe.samplers import CACHES, CacheFacts
from rl4dlm.rollout.graphs import Graphs, round_queries
from rl4dlm.rollout.slots import Slots, Window
from rl4dlm.rollout.store import Store
from rl4dlm.types import Denoiser

Queries = Callable[["RowView"], Tensor]
"""Per-row state -> bool `[rows, columns]`: the tokens to compute in this forward."""


@dataclass(frozen=True)
class RowView:
    """What a plan may look at: the rows under way by columns of prompt and canvas."""

    slots: Slots
    window: Window
    spec: SamplerSpec
    column: Tensor
    """int64 `[rows, columns]`: canvas position of each column, negative in the prompt."""
    is_real: Tensor
    """bool `[rows, columns]`: not padding."""
    start: Tensor
    """int64 `[rows, 1]`: canvas position that the active block begins at; in the prompt where negative."""
    end: Tensor
    """int64 `[rows, 1]`: one past its last canvas position."""

    @property
    def begins_block(self) -> Tensor:
        """bool `[rows, 1]`: first step of a block, or a step at which the cache is refreshed."""
        step, refresh = self.slots.block_step, self.spec.cache_refresh
        begins = step == 0
        if refresh:
            begins = step % refresh == 0
        return begins[:, None]

    @property
    def is_first(self) -> Tensor:
        """bool `[rows, 1]`: first step of the row."""
        return (self.slots.step == 0)[:, None]

    @property
    def with_block_before(self) -> Tensor:
        """int64 `[rows, 1]`: start of the active block, in its first step that of the block before."""
        slots = self.slots
        entered = (slots.block_step == 0) & (slots.block > 0)
        return self.start - torch.where(entered, slots.block_length, 0)[:, None]

    @property
    def due(self) -> Tensor:
        """bool `[rows, columns]`: what the step looks at, where that is what it will commit."""
        return self.on_columns(scatter(self.slots.canvas, self.window, self.window.index))

    def on_columns(self, canvas: Tensor) -> Tensor:
        """bool `[rows, completion]` to `[rows, columns]`, False in the prompt."""
        prompt = self.column.shape[1] - canvas.shape[1]
        return torch.cat([torch.zeros_like(self.is_real[:, :prompt]), canvas], dim=1)


def prefix_queries(view: RowView) -> Tensor:
    """Everything at a block's start, then the block and what follows it. Fast-dLLM, arXiv:2505.22618."""
    return view.begins_block | (view.column >= view.start)


def dual_queries(view: RowView) -> Tensor:
    """Everything at a block's start, then the block alone. Fast-dLLM, arXiv:2505.22618."""
    return view.begins_block | ((view.column >= view.start) & (view.column < view.end))


def dkv_decode_queries(view: RowView) -> Tensor:
    """What was not yet clean in the forward before: masked, or written in the last step (delayed caching).

    Everything in the first two steps of every block, and every `cache_refresh` steps. dKV-Cache,
    arXiv:2505.15781, and its released code.
    """
    early = (view.slots.block_step <= 1)[:, None]
    return early | view.begins_block | view.on_columns(_unclean(view.slots))


def dkv_greedy_queries(view: RowView) -> Tensor:
    """What was written in the last step, what is written in this one, and its masked neighbours.

    Needs a sampler that knows the order of positions beforehand. Everything in the row's first two steps, at
    block starts, and every `cache_refresh` steps. dKV-Cache-Greedy, arXiv:2505.15781.
    """
    recent = view.on_columns(_unclean(view.slots) & (view.slots.canvas != view.slots.mask_id))
    near = torch.nn.functional.max_pool1d(
        (view.due | recent).float()[:, None], 2 * NEIGHBOURS + 1, stride=1, padding=NEIGHBOURS
    )[:, 0].bool()
    masked = view.on_columns(view.slots.canvas == view.slots.mask_id)
    early = (view.slots.step <= 1)[:, None]
    return early | view.begins_block | recent | view.due | (near & masked)


def _unclean(slots: Slots) -> Tensor:
    """bool `[rows, completion]`: masked, or written in the step before this one."""
    return (slots.canvas == slots.mask_id) | (slots.step_map == slots.step[:, None] - 1)


def free_queries(view: RowView) -> Tensor:
    """The block and what follows it; at a block's start also the block before, whose tokens are now final.

    Nothing before is ever computed again. FreeCache, arXiv:2505.21467, with the delayed write that keeps
    keys of masks out of the store.
    """
    first = view.with_block_before
    return view.is_first | (view.column >= first)


def block_queries(view: RowView) -> Tensor:
    """The active block; at its start also the block before, which is thereby committed (fused commit).

    Exact for block-causal attention: the prompt is computed once, and each finished block once more in the
    first forward of the next one.
    """
    first = view.with_block_before
    new = view.is_first & ~view.slots.prompt_is_stored[:, None]
    return (new | (view.column >= first)) & (view.column < view.end)


# Masked neighbours on each side that dKV-Cache-Greedy computes with a position.
NEIGHBOURS = 2


QUERIES: dict[str, Queries] = {
    "block": block_queries,
    "prefix": prefix_queries,
    "dual": dual_queries,
    "dkv_decode": dkv_decode_queries,
    "dkv_greedy": dkv_greedy_queries,
    "free": free_queries,
}
"""By the name that `rl4dlm.recipe.samplers.CACHES` has the facts of."""


class CachedForward:
    """Logits of a step, computed for the plan's queries only."""

    def __init__(
        self, denoiser: Denoiser, spec: SamplerSpec, slots: Slots, graphs: Graphs | None = None
    ) -> None:
        """
        Args:
            graphs: what the denoiser runs its layers by; sizes are rounded for it.
        """
        self._denoiser, self._spec, self._plan = denoiser, spec, CACHES[spec.cache]
        self._queries, self._picks = QUERIES[spec.cache], STRATEGIES[spec.remasking].picks
        self._align = None if graphs is None else graphs.align
        make = Store if graphs is None else graphs.store
        self._store = make(len(slots), slots.num_columns)

    def keep(self, rows: list[int]) -> None:
        """Drop every other row."""
        self._store.keep(rows)

    def window(self, slots: Slots) -> Window:
        """What the step looks at: only what it will commit, where the plan needs to know that beforehand."""
        window = slots.window()
        if not self._plan.needs_order:
            return window
        assert self._picks is not None
        blind = torch.zeros(len(window.index), 0, device=slots.canvas.device)
        due = window.index[self._picks(self._spec, slots.step_input(window, blind))]
        eligible = torch.zeros_like(window.eligible).flatten().index_fill(0, due, True)
        return replace(window, eligible=eligible.view_as(window.eligible), index=due)

    def __call__(self, slots: Slots, window: Window) -> Tensor:
        """Logits at the seen positions, `[seen, vocab]`."""
        view = self._view(slots, window)
        if self._plan.attention == "block_causal":
            self._share_prompts(view)
        wanted = view.on_columns(scatter(slots.canvas, window, window.index))
        queries = self._queries(view) & view.is_real
        if self._denoiser.spec.logit_shift:
            queries = queries | (with_token_before(wanted) & view.is_real)
        counts = queries.sum(dim=1)
        slots.forwards += 1
        slots.tokens += counts
        place = (wanted.flatten().cumsum(0) - 1).view_as(wanted)
        logits = None
        for rows, most in size_classes(counts.tolist()):
            part, where = self._forward(view, queries, wanted, place, rows, most)
            if len(rows) == len(slots):
                return part
            if logits is None:
                logits = part.new_empty(len(window.index), part.shape[1])
            logits[where] = part
        assert logits is not None
        return logits

    def _view(self, slots: Slots, window: Window) -> RowView:
        start = slots.block * slots.block_length - slots.offset
        column = torch.arange(slots.num_columns, device=start.device) - slots.prompt.shape[1]
        is_real = column >= -slots.prompt_len[:, None]
        return RowView(
            slots, window, self._spec, column.expand_as(is_real), is_real, start[:, None], slots.span()[:, 1:]
        )

    def _share_prompts(self, view: RowView) -> None:
        """Compute a prompt that several new rows have once, and copy it; copy it from older rows, too."""
        slots = view.slots
        sources = shared_prompts(slots)
        if not sources:
            return
        aligned = (view.column < view.start) & view.is_real
        makers = sorted({source for source in sources.values() if source in slots.fresh})
        if makers:
            queries = torch.zeros_like(aligned)
            queries[makers] = aligned[makers]
            counts = queries.sum(dim=1)
            slots.forwards[makers] += 1
            slots.tokens += counts
            nowhere = torch.zeros_like(queries)
            for rows, most in size_classes(counts.tolist()):
                self._forward(view, queries, nowhere, nowhere.long(), rows, most)
        pairs = [(source, row) for row, source in sources.items() if row != source]
        self._store.copy_columns(pairs, slice(0, slots.prompt.shape[1]))
        slots.prompt_is_stored[[*sources, *makers]] = True

    def _forward(
        self,
        view: RowView,
        queries: Tensor,
        wanted: Tensor,
        place: Tensor,
        row_list: list[int],
        most: int,
    ) -> tuple[Tensor, Tensor]:
        """One forward of some rows, `most` queries at most: logits, and their places among all wanted."""
        slots = view.slots
        rows = torch.tensor(row_list, device=queries.device)
        if self._align is not None:
            most = min(round_queries(most), slots.num_columns)
        columns, real = pad_columns(queries[rows], most, self._store.dump)
        keys = _bounds(view, row_list, self._plan, self._align or 1)
        self._store.aim(rows, columns, keys, are_first=row_list == list(range(len(row_list))))
        inside = columns.clamp(max=slots.num_columns - 1)
        ids = slots.all_ids()[rows].gather(1, inside).masked_fill(~real, self._denoiser.spec.pad_id)
        select = wanted[rows].gather(1, inside) & real
        position = (inside - slots.prompt.shape[1] + slots.prompt_len[rows, None]).clamp(min=0)
        layout = WindowLayout(position, _visible(view, rows, inside, keys, self._plan))
        logits = self._denoiser.logits(ids, None, select, layout, self._store)
        return logits, place[rows].gather(1, inside)[select]


def with_token_before(wanted: Tensor) -> Tensor:
    """Columns and those to the left of them: a shifted model reads a token's logits off the row before it."""
    before = torch.zeros_like(wanted)
    before[:, :-1] = wanted[:, 1:]
    return wanted | before


def shared_prompts(slots: Slots) -> dict[int, int]:
    """For each new row whose prompt another row has: the row to take it from, an older one if there is any.

    Rows that share nothing are left out: their prompts go with their first block.
    """
    older = {slots.prompt_of(row): row for row in range(len(slots)) if row not in slots.fresh}
    first: dict[tuple[int, ...], list[int]] = {}
    for row in slots.fresh:
        first.setdefault(slots.prompt_of(row), []).append(row)
    sources: dict[int, int] = {}
    for prompt, rows in first.items():
        if prompt in older or len(rows) > 1:
            sources |= dict.fromkeys(rows, older.get(prompt, rows[0]))
    return sources


def scatter(canvas: Tensor, window: Window, flat: Tensor) -> Tensor:
    """The canvas positions of entries of the window: bool `[rows, completion]`."""
    row, position = window.where(flat)
    marked = torch.zeros_like(canvas, dtype=torch.bool)
    marked[row, position] = True
    return marked


def _bounds(view: RowView, rows: list[int], plan: CacheFacts, align: int) -> slice:
    """Columns that any of the rows may attend to; block-causal rows see nothing beyond their active block.

    Args:
        align: the first column is a multiple of it, and the last one too if the rows go on so far.
    """
    width = view.slots.prompt.shape[1]
    first = width - max(view.slots.prompt_lens[row] for row in rows)
    last = view.column.shape[1] if plan.attention == "full" else width + int(view.end[rows].max())
    return slice(first // align * align, min(-(-last // align) * align, view.column.shape[1]))


def _visible(view: RowView, rows: Tensor, columns: Tensor, keys: slice, plan: CacheFacts) -> Tensor:
    """bool `[rows, queries, keys]`; padded queries see what a real one in the last column would."""
    real = view.is_real[rows, keys][:, None, :]
    if plan.attention == "full":
        return real.expand(-1, columns.shape[1], -1)
    slots, width = view.slots, view.slots.prompt.shape[1]
    position = torch.arange(view.column.shape[1], device=columns.device) - width
    from_first = position[None] + slots.prompt_len[rows, None]
    block = torch.div(from_first, slots.block_length[rows, None], rounding_mode="floor")
    return real & (block[:, None, keys] <= block.gather(1, columns)[:, :, None])


def pad_columns(queries: Tensor, most: int, dump: int) -> tuple[Tensor, Tensor]:
    """Columns of each row's queries, ascending, rows padded to `most`.

    Returns:
        int64 `[rows, most]`, `dump` where padded, and bool `[rows, most]`, True where not.
    """
    order = queries.long().sort(dim=1, descending=True, stable=True).indices[:, :most]
    real = torch.arange(most, device=queries.device) < queries.sum(dim=1, keepdim=True)
    return order.masked_fill(~real, dump), real


def size_classes(sizes: list[int]) -> list[tuple[list[int], int]]:
    """Rows in classes of similar size, so that a short row is not padded to a long one.

    A class ends where the next row has less than half the queries of its longest.

    Args:
        sizes: queries of each row.

    Returns:
        Rows of each class, ascending, and the longest of them; rows without queries are in none.
    """
    classes: list[tuple[list[int], int]] = []
    for row in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        if classes and 2 * sizes[row] >= classes[-1][1]:
            classes[-1][0].append(row)
        elif sizes[row]:
            classes.append(([row], sizes[row]))
    return [(sorted(rows), most) for rows, most in classes]
