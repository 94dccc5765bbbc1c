"""What one denoising step is given and what it decides: the interface of every strategy.

A strategy gets logits and returns a decision; it never calls the model, so rows of one batch may be in
different blocks and steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rl4dlm.decoding.confidence import drawn_probability
from rl4dlm.decoding.proposal import Law, Proposal, draw
from rl4dlm.decoding.selection import top_k
from rl4dlm.decoding.spec import SamplerSpec
from rl4dlm.diffusion.seeds import counter_uniform

# Third counter of the uniforms that order positions; those that draw tokens have two counters.
ORDER_STREAM = 1


@dataclass(frozen=True)
class StepInput:
    """What a strategy sees of one denoising step; `seen` counts the positions of all rows with logits.

    The window is the active block, or the whole canvas where the strategy or a recording needs it.
    """

    logits: Tensor
    """`[seen, vocab]`, in row-major order of the window."""
    eligible: Tensor
    """bool `[rows, width]`: positions that may be committed now, all of them seen."""
    index: Tensor
    """int64 `[seen]`: where the seen positions are in the flattened `[rows * width]`."""
    position: Tensor
    """int64 `[rows, width]`: canvas positions of the window."""
    seed: Tensor
    """int64 `[rows]`."""
    step: Tensor
    """int64 `[rows]`: the row's global step, from 0."""
    count: Tensor
    """int64 `[rows]`: positions that the schedule wants committed."""
    num_steps: Tensor | None = None
    """int64 `[rows]`: steps that the whole canvas is given."""
    block_steps: Tensor | None = None
    """int64 `[rows]`: steps that a block is given."""
    block_step: Tensor | None = None
    """int64 `[rows]`: step within the block, from 0."""
    block_length: Tensor | None = None
    """int64 `[rows]`: tokens of a block."""
    masked: Tensor | None = None
    """bool `[rows, width]`: every masked position of the window; None: the eligible ones."""
    state: Mapping[str, Tensor] = field(default_factory=dict)
    """`[rows, ...]` per name: what the strategy keeps of a row between steps, 0 at its start."""

    def uniform(self, *stream: Tensor) -> Tensor:
        """float64 `[seen]`: a number per seen position, a function of (seed, step, position) alone."""
        return self._uniform(self.step, *stream)

    def fixed_uniform(self, *stream: Tensor) -> Tensor:
        """float64 `[seen]`: a number per seen position that is the same in every step."""
        return self._uniform(torch.zeros_like(self.step), *stream)

    def _uniform(self, step: Tensor, *stream: Tensor) -> Tensor:
        every = counter_uniform(self.seed[:, None], step[:, None], self.position, *stream)
        return every.flatten()[self.index]

    def stream(self, number: int) -> Tensor:
        """A counter that separates one use of uniforms from others."""
        return self.seed.new_full((1, 1), number)

    def dense(self, values: Tensor) -> Tensor:
        """`[seen]` to `[rows, width]`, 0 where nothing is seen."""
        flat = values.new_zeros(self.eligible.numel()).index_copy(0, self.index, values)
        return flat.view_as(self.eligible)

    def at_seen(self, dense: Tensor) -> Tensor:
        """`[rows, width]` to `[seen]`."""
        return dense.flatten()[self.index]

    def select(self, score: Tensor, count: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Indices into `seen` of the best-scored positions, and their ranks, both int64 `[committed]`.

        Args:
            score: `[seen]`.
            count: int64 `[rows]`; None: the schedule's.
        """
        chosen, rank = top_k(self.dense(score), self.eligible, self.count if count is None else count)
        picked = self.at_seen(chosen).nonzero().squeeze(1)
        return picked, rank.flatten()[self.index[picked]]


@dataclass(frozen=True)
class Actions:
    """What an unmasking policy saw and did in a step, for its own training."""

    index: Tensor
    """int64 `[decided]`: positions it decided on, in the flattened window, ascending."""
    confidence: Tensor
    """float32 `[decided]`: probability of the likeliest token."""
    action: Tensor
    """bool `[decided]`: drawn; before the fallback that commits one position when all are False."""
    logp: Tensor
    """float32 `[rows]`, nats: of the drawn actions of each row."""


@dataclass(frozen=True)
class Decision:
    """What a step does, all rows together."""

    picked: Tensor
    """int64 `[committed]`: indices into the seen positions, ascending."""
    rank: Tensor
    """int64 `[committed]`: order within the row's step."""
    token: Tensor
    """int64 `[committed]`."""
    logp: Tensor
    """float32 `[committed]`, nats: `log softmax(logits / T)[token]`, T = 1 for greedy decoding."""
    score: Tensor
    """float32 `[committed]`: the confidence that the selection used."""
    kind: Tensor | None = None
    """uint8 `[committed]`: SAMPLED, FORCED or EARLY_COMMIT; None: all SAMPLED."""
    remask: Tensor | None = None
    """bool `[rows, width]`: committed positions to remask; None: none."""
    proposal: Proposal | None = None
    """What was drawn at all seen positions; None: drawn at the committed ones only."""
    confidence: Tensor | None = None
    """float32 `[seen]`: confidence in every seen position."""
    state: Mapping[str, Tensor] = field(default_factory=dict)
    """What the strategy keeps of each row, `[rows, ...]`; replaces `StepInput.state`."""
    actions: Actions | None = None
    """What an unmasking policy saw and did; None: there is no policy."""


StateShapes = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Per name the shape after `[rows]`, and the dtype."""


def _no_state(spec: SamplerSpec, vocab_size: int) -> StateShapes:
    return {}


@dataclass(frozen=True)
class Strategy:
    """The functions of a sampler; its facts are its row in `rl4dlm.recipe.samplers.SAMPLERS`."""

    decide: Callable[[SamplerSpec, StepInput], Decision]
    picks: Callable[[SamplerSpec, StepInput], Tensor] | None = None
    """Indices into the seen positions that a step will commit, where that needs no logits."""
    state: Callable[[SamplerSpec, int], StateShapes] = _no_state
    """(sampler, vocabulary size) -> what it keeps of a row."""


def draw_everywhere(spec: SamplerSpec, step: StepInput) -> tuple[Proposal, Tensor]:
    """A draw at every seen position, and the confidence in it."""
    drawn = draw(step.logits, step.uniform(), spec.temperature, top_p=spec.top_p, top_k=spec.top_k)
    if spec.confidence_law == Law(spec.temperature or 1.0):
        return drawn, drawn.prob
    return drawn, drawn_probability(step.logits, drawn.token, spec.confidence_law)
