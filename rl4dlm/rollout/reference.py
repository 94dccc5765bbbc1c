"""The obvious sampler: one request at a time, the whole canvas at every step, logits at every position.

What the engine must equal, token by token and step by step. It shares with the engine the drawing of one
token, the confidences of a distribution and the numbers that are drawn with; its loop, its selections and its
bookkeeping are its own and as plain as can be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rl4dlm.decoding import SamplerSpec
from rl4dlm.decoding.confidence import drawn_probability, margin, neg_entropy, top_probability
from rl4dlm.decoding.proposal import draw
from rl4dlm.decoding.schedules import TIME_EPS
from rl4dlm.decoding.strategies import ORDER_STREAM
from rl4dlm.diffusion.blocks import sequence_layout
from rl4dlm.diffusion.seeds import counter_uniform
from rl4dlm.rollout.finish import Decode, Finisher
from rl4dlm.rollout.journal import RowJournal
from rl4dlm.rollout.request import Request, block_offset, check_blocks, check_lengths
from rl4dlm.rollout.slots import RawRow
from rl4dlm.types import FORCED, REMASK, REVEAL, SAMPLED, Denoiser, Rollout


@torch.inference_mode()
def generate_reference(
    denoiser: Denoiser,
    spec: SamplerSpec,
    requests: Sequence[Request],
    *,
    policy_version: int,
    decode: Decode | None = None,
) -> list[Rollout]:
    """Sample one completion per request, as `Engine.generate` does.

    Args:
        denoiser: the model, in evaluation mode.
        spec: the sampler.
        requests: what to sample.
        policy_version: recorded in every rollout.
        decode: token ids -> text; None leaves `Rollout.text` empty.

    Returns:
        Rollouts in the order of `requests`.

    Raises:
        DataError: a prompt and the canvas are longer than the model's positions.
        RecipeError: blocks do not fit the canvas or the model.
    """
    check_lengths(requests, spec.gen_len, denoiser.spec)
    finisher, rollouts = Finisher(denoiser.spec, policy_version, decode), []
    for request in requests:
        sampler = request.sampler(spec)
        check_blocks(sampler, denoiser.spec)
        row, journal = denoise(denoiser, sampler, request)
        rollouts.append(finisher.finish(request, sampler, row, journal))
    return rollouts


@dataclass
class State:
    """One canvas and everything that a step may look at; positions index every array."""

    spec: SamplerSpec
    request: Request
    canvas: np.ndarray
    mask_id: int
    running: dict[int, float]
    """RCR: the confidence of every position that was ever written."""
    step: int = 0
    block_step: int = 0
    logits: Tensor | None = None
    """`[completion, vocab]`."""
    token: np.ndarray | None = None
    logp: np.ndarray | None = None
    """Log-probability of `token` where it was drawn from, before any cut."""

    def uniform(self, step: int, stream: int | None = None) -> Tensor:
        """The number of every position in a step."""
        assert self.logits is not None
        position = torch.arange(len(self.canvas), device=self.logits.device)
        counters = [torch.full_like(position, step), position]
        if stream is not None:
            counters.append(torch.full_like(position, stream))
        return counter_uniform(torch.full_like(position, self.request.seed), *counters)

    def masked(self, positions: Sequence[int]) -> list[int]:
        """Those of `positions` that hold the mask."""
        return [position for position in positions if self.canvas[position] == self.mask_id]


class Choice(NamedTuple):
    """What a step does."""

    commits: list[int]
    """Positions, the best first."""
    forced: set[int]
    hidden: list[int]
    """Positions whose tokens are taken back."""
    score: np.ndarray
    """What every position was chosen by."""
    confidence: np.ndarray
    """What is recorded beside the prediction of every position."""


def denoise(denoiser: Denoiser, spec: SamplerSpec, request: Request) -> tuple[RawRow, RowJournal]:
    """Denoise one canvas, block by block."""
    mask_id, journal = denoiser.spec.mask_id, RowJournal()
    row = blank_row(spec, mask_id)
    state = State(spec, request, row.canvas, mask_id, {})
    offset = block_offset(len(request.prompt_ids), denoiser.spec, spec.block_length)
    block, start = 0, -offset
    while start < spec.gen_len:
        inside = range(max(0, start), min(start + spec.block_length, spec.gen_len))
        state.block_step = 0
        while state.masked(range(inside.stop)):
            take_step(denoiser, state, row, journal, block, inside)
        stops = [token in denoiser.spec.stop_ids for token in row.canvas[: inside.stop]]
        if spec.eos_policy == "block_eos" and any(stops):
            break
        block, start = block + 1, start + spec.block_length
    return replace(row, num_steps=state.step), journal


def take_step(
    denoiser: Denoiser, state: State, row: RawRow, journal: RowJournal, block: int, inside: range
) -> None:
    """One forward, one decision, and what is written down about it."""
    spec, now, canvas = state.spec, state.step, state.canvas
    masked = state.masked(range(spec.gen_len))
    propose(denoiser, state)
    assert state.token is not None and state.logp is not None
    row.step_block[now], row.step_masked[now] = block, len(masked)
    choice = CHOICES[spec.remasking](state, inside)
    logp = state.logp
    journal.predictions.append((state.token[masked], logp[masked], choice.confidence[masked]))
    shown = sorted(choice.commits)
    journal.events.append(
        (
            np.array([*shown, *choice.hidden]),
            np.array([REVEAL] * len(shown) + [REMASK] * len(choice.hidden)),
            np.array([*state.token[shown], *[state.mask_id] * len(choice.hidden)]),
            np.array([*logp[shown], *[0.0] * len(choice.hidden)]),
        )
    )
    canvas[choice.hidden] = state.mask_id
    for rank, position in enumerate(choice.commits):
        canvas[position], row.step_map[position], row.rank[position] = state.token[position], now, rank
        row.kind[position] = FORCED if position in choice.forced else SAMPLED
        row.logp[position], row.score[position] = logp[position], choice.score[position]
    state.step += 1
    state.block_step += 1


def blank_row(spec: SamplerSpec, mask_id: int) -> RawRow:
    """A canvas of masks and an empty trace."""
    return RawRow(
        canvas=np.full(spec.gen_len, mask_id, np.int64),
        step_map=np.zeros(spec.gen_len, np.int32),
        rank=np.zeros(spec.gen_len, np.int16),
        kind=np.zeros(spec.gen_len, np.uint8),
        logp=np.zeros(spec.gen_len, np.float32),
        score=np.zeros(spec.gen_len, np.float32),
        step_block=np.zeros(spec.gen_len, np.int16),
        step_masked=np.zeros(spec.gen_len, np.int32),
        num_steps=0,
    )


def canvas_logits(denoiser: Denoiser, spec: SamplerSpec, request: Request, canvas: np.ndarray) -> Tensor:
    """`[completion, vocab]`, from logits at every position of prompt and canvas."""
    ids = torch.tensor([[*request.prompt_ids, *canvas.tolist()]], dtype=torch.int64, device=denoiser.device)
    every = torch.ones_like(ids, dtype=torch.bool)
    layout = None
    if denoiser.spec.attention == "block_causal" and spec.block_length != denoiser.spec.block_length:
        layout = sequence_layout(every, spec.block_length)
    return denoiser.logits(ids, None, every, layout)[len(request.prompt_ids) :]


def propose(denoiser: Denoiser, state: State) -> None:
    """Draw a token at every position of the canvas."""
    spec = state.spec
    state.logits = canvas_logits(denoiser, spec, state.request, state.canvas)
    numbers = state.uniform(state.step)
    drawn = draw(state.logits, numbers, spec.temperature, top_p=spec.top_p, top_k=spec.top_k)
    state.token, state.logp = drawn.token.cpu().numpy(), drawn.prob.log().cpu().numpy()


# --- Scores of all positions. ---


def drawn_score(state: State) -> np.ndarray:
    assert state.logits is not None
    token = torch.as_tensor(state.token, device=state.logits.device)
    return drawn_probability(state.logits, token, state.spec.confidence_law).cpu().numpy()


def distribution_score(measure: Callable[..., Tensor]) -> Callable[[State], np.ndarray]:
    return lambda state: measure(state.logits, state.spec.confidence_law).cpu().numpy()


def random_score(state: State) -> np.ndarray:
    return state.uniform(state.step, ORDER_STREAM).float().cpu().numpy()


def leftmost_score(state: State) -> np.ndarray:
    return -np.arange(len(state.canvas), dtype=np.float32)


def reveal_score(state: State) -> np.ndarray:
    """Minus the step of Dream's time grid whose interval holds the position's own uniform number."""
    steps = state.spec.steps_per_block
    times = [1 - (1 - TIME_EPS) * step / steps for step in range(steps)]
    number = state.uniform(0, ORDER_STREAM).cpu().numpy()
    return -np.array([sum(1 - time <= u for time in times[1:]) for u in number], dtype=np.float32)


# --- How many positions of an order are committed: what the rule asks for, and at least. ---


def scheduled(state: State, ordered: list[float]) -> tuple[int, int]:
    counts = state.spec.schedule()
    count = counts[min(state.block_step, len(counts) - 1)]
    return count, count


def by_threshold(state: State, ordered: list[float]) -> tuple[int, int]:
    return sum(score >= state.spec.threshold for score in ordered), 1


def by_threshold_or_schedule(state: State, ordered: list[float]) -> tuple[int, int]:
    return sum(score > state.spec.threshold for score in ordered), scheduled(state, ordered)[1]


def by_factor(state: State, ordered: list[float]) -> tuple[int, int]:
    for count, score in enumerate(ordered, start=1):
        if (count + 1) * (1 - score) >= state.spec.factor:
            return count - 1, 1
    return len(ordered), 1


def by_entropy(state: State, ordered: list[float]) -> tuple[int, int]:
    """The longest prefix whose entropies without the largest are within the budget."""
    good = [n for n in range(1, len(ordered) + 1) if -sum(ordered[: n - 1]) <= state.spec.entropy_budget]
    return max(good), 1


def by_whole_entropy(state: State, ordered: list[float]) -> tuple[int, int]:
    good = [n for n in range(1, len(ordered) + 1) if -sum(ordered[:n]) < state.spec.entropy_budget]
    return max(good, default=0), 1


def by_each_entropy(state: State, ordered: list[float]) -> tuple[int, int]:
    return sum(-score <= state.spec.entropy_budget for score in ordered), 1


def by_ties(state: State, ordered: list[float]) -> tuple[int, int]:
    return ordered.count(ordered[0]), 1


# --- Choices. ---


def ordered_choice(
    score: Callable[[State], np.ndarray],
    how_many: Callable[[State, list[float]], tuple[int, int]] = scheduled,
) -> Callable[[State, range], Choice]:
    """Commit the best masked positions of the active block."""

    def choose(state: State, inside: range) -> Choice:
        scores = score(state)
        rank_by = scores.astype(np.float64)
        if state.spec.order_temperature:
            numbers = state.uniform(state.step, ORDER_STREAM)
            rank_by = rank_by + (state.spec.order_temperature * -(-numbers.log()).log()).cpu().numpy()
        order = sorted(state.masked(inside), key=lambda position: (-rank_by[position], position))
        asked, least = how_many(state, [float(scores[position]) for position in order])
        count = max(asked, least)
        return Choice(order[:count], set(order[asked:count]), [], scores, scores)

    return choose


def rcr_choice(state: State, inside: range) -> Choice:
    """Write all masked positions up to the block's end, hide the least confident of all ever written."""
    scores, masked = drawn_score(state), state.masked(range(inside.stop))
    merge = {"last": lambda old, new: new, "max": max, "min": min}[state.spec.rcr_update]
    for position in masked:
        new = float(scores[position])
        state.running[position] = merge(state.running.get(position, new), new)
    count = scheduled(state, [])[0]
    by_running = sorted(state.running, key=lambda position: (state.running[position], position))
    hidden = by_running[: max(0, len(masked) - count)]
    kept = sorted(set(masked) - set(hidden), key=lambda position: (-scores[position], position))
    running = np.array([state.running.get(p, 0.0) for p in range(len(scores))], dtype=np.float32)
    return Choice(kept, set(), sorted(set(hidden) - set(masked)), scores, running)


CHOICES: dict[str, Callable[[State, range], Choice]] = {
    "low_confidence": ordered_choice(drawn_score),
    "top_probability": ordered_choice(distribution_score(top_probability)),
    "random": ordered_choice(random_score),
    "ar": ordered_choice(leftmost_score),
    "margin": ordered_choice(distribution_score(margin)),
    "neg_entropy": ordered_choice(distribution_score(neg_entropy)),
    "dream_origin": ordered_choice(reveal_score, by_ties),
    "dream_maskgit_plus": ordered_choice(drawn_score),
    "dream_topk_margin": ordered_choice(distribution_score(margin)),
    "dream_entropy": ordered_choice(distribution_score(neg_entropy)),
    "dynamic": ordered_choice(drawn_score, by_threshold_or_schedule),
    "threshold": ordered_choice(drawn_score, by_threshold),
    "factor": ordered_choice(drawn_score, by_factor),
    "entropy_bound": ordered_choice(distribution_score(neg_entropy), by_entropy),
    "entropy_bound_cumsum": ordered_choice(distribution_score(neg_entropy), by_whole_entropy),
    "entropy_threshold": ordered_choice(distribution_score(neg_entropy), by_each_entropy),
    "rcr": rcr_choice,
}
"""By the name of the strategy."""
