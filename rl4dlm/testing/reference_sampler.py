"""The obvious sampler: one request at a time, the whole canvas at every step, logits at every position.

What the engine must equal, token by token and step by step. It shares with the engine the drawing of one
token, the confidences of a distribution and the numbers that are drawn with; its loop, its selections and its
bookkeeping are its own and as plain as can be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rl4dlm.decoding import PolicyFeatures, SamplerSpec, action_logp
from rl4dlm.decoding.confidence import drawn_probability, logit_gap, margin, neg_entropy, top_probability
from rl4dlm.decoding.consensus import FEW_MASKS, GROWTH, KEPT_POSITIONS, KEPT_STEPS, LATE_SIZE, WARM_UP_STEPS
from rl4dlm.decoding.early import gap_threshold
from rl4dlm.decoding.learned import find_policy
from rl4dlm.decoding.proposal import Law, draw, probabilities
from rl4dlm.decoding.schedules import TIME_EPS
from rl4dlm.decoding.step import ORDER_STREAM
from rl4dlm.diffusion.blocks import sequence_layout
from rl4dlm.diffusion.seeds import counter_uniform
from rl4dlm.rollout.finish import Decode, Finisher
from rl4dlm.rollout.journal import RowJournal
from rl4dlm.rollout.request import Request, block_offset, check_room
from rl4dlm.rollout.sampler_checks import check_sampler
from rl4dlm.rollout.slots import RawRow
from rl4dlm.types import EARLY_COMMIT, FILL, FORCED, REMASK, REVEAL, SAMPLED, Denoiser, Rollout


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
        RecipeError: the sampler does not fit the model.
    """
    check_room(requests, spec.gen_len, denoiser.spec)
    finisher, rollouts = Finisher(denoiser.spec, policy_version, decode), []
    for request in requests:
        sampler = request.sampler(spec)
        check_sampler(sampler, denoiser.spec)
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
    running: dict[int, float] = field(default_factory=dict)
    """RCR: the confidence of every position that was ever written."""
    committed: dict[int, float] = field(default_factory=dict)
    """Saber: the confidence at which each position was last committed."""
    before: dict[int, float] = field(default_factory=dict)
    """Saber: the confidence of each position in the step before."""
    history: list[dict[int, Tensor]] = field(default_factory=list)
    """CCD: distributions of the surest positions, the newest step first."""
    candidates: dict[int, int] = field(default_factory=dict)
    """CCD-DS: candidates of the step before and their likeliest tokens."""
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
    """Positions whose tokens are remasked."""
    score: np.ndarray
    """What every position was chosen by."""
    confidence: np.ndarray
    """What is recorded beside the prediction of every position."""
    early: bool = False
    """All masks are written, with their likeliest tokens."""
    actions: tuple[np.ndarray, ...] | None = None
    """What an unmasking policy saw and did: positions, confidences, actions, log-probability."""


def denoise(denoiser: Denoiser, spec: SamplerSpec, request: Request) -> tuple[RawRow, RowJournal]:
    """Denoise one canvas, block by block."""
    mask_id, journal = denoiser.spec.mask_id, RowJournal()
    row = blank_row(spec, mask_id)
    state = State(spec, request, row.canvas, mask_id)
    offset = block_offset(len(request.prompt_ids), denoiser.spec, spec.block_length)
    block, start = 0, -offset
    while start < spec.gen_len:
        inside = range(max(0, start), min(start + spec.block_length, spec.gen_len))
        state.block_step = 0
        ended = False
        while state.masked(range(inside.stop)) and not ended:
            take_step(denoiser, state, row, journal, block, inside)
            ended = has_ended(state, inside, denoiser.spec.stop_ids)
        if ended or not state.masked(range(spec.gen_len)):
            break
        block, start = block + 1, start + spec.block_length
    forwards = state.step * (2 if spec.cfg_scale else 1)
    length = len(request.prompt_ids) + spec.gen_len
    return replace(row, num_steps=state.step, forwards=forwards, tokens=forwards * length), journal


def has_ended(state: State, inside: range, stop_ids: Sequence[int]) -> bool:
    """Whether the policy on end-of-text ends the row."""
    canvas, policy = state.canvas.tolist(), state.spec.eos_policy
    if policy == "accepted_eos":
        first = min((i for i, token in enumerate(canvas) if token in stop_ids), default=len(canvas))
        return first < len(canvas) and not state.masked(range(first))
    if policy == "none" or state.masked(range(inside.stop)):
        return False
    if policy == "block_all_eos":
        return all(canvas[i] in stop_ids for i in inside)
    return any(token in stop_ids for token in canvas[: inside.stop])


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
    drawn, drawn_logp = state.token.copy(), state.logp.copy()
    if spec.early_commit != "none":
        choice = leave_early(state, choice, masked)
    logp = state.logp
    journal.predictions.append((drawn[masked], drawn_logp[masked], choice.confidence[masked]))
    if choice.actions is not None:
        journal.actions.append(choice.actions)
    shown = sorted(choice.commits)
    journal.events.append(
        (
            np.array([*shown, *choice.hidden]),
            np.array([FILL if choice.early else REVEAL] * len(shown) + [REMASK] * len(choice.hidden)),
            np.array([*state.token[shown], *[state.mask_id] * len(choice.hidden)]),
            np.array([*logp[shown] * (not choice.early), *[0.0] * len(choice.hidden)]),
        )
    )
    canvas[choice.hidden] = state.mask_id
    for rank, position in enumerate(choice.commits):
        canvas[position], row.step_map[position], row.rank[position] = state.token[position], now, rank
        how = FORCED if position in choice.forced else SAMPLED
        row.kind[position] = EARLY_COMMIT if choice.early else how
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
        forwards=0,
        tokens=0,
    )


def sequence_logits(
    denoiser: Denoiser, spec: SamplerSpec, prompt: Sequence[int], canvas: np.ndarray
) -> Tensor:
    """`[completion, vocab]`, from logits at every position of prompt and canvas."""
    ids = torch.tensor([[*prompt, *canvas.tolist()]], dtype=torch.int64, device=denoiser.device)
    every = torch.ones_like(ids, dtype=torch.bool)
    layout = None
    if denoiser.spec.attention == "block_causal" and spec.block_length != denoiser.spec.block_length:
        layout = sequence_layout(every, spec.block_length)
    return denoiser.logits(ids, None, every, layout)[len(prompt) :]


def propose(denoiser: Denoiser, state: State) -> None:
    """Draw a token at every position of the canvas."""
    spec, prompt = state.spec, state.request.prompt_ids
    logits = sequence_logits(denoiser, spec, prompt, state.canvas)
    if spec.cfg_scale:
        hidden = [state.mask_id] * len(prompt)
        without = sequence_logits(denoiser, spec, hidden, state.canvas)
        guided = without + (spec.cfg_scale + 1) * (logits - without)
        logits = torch.where(logits.isinf(), logits, guided)
    state.logits = logits
    numbers = state.uniform(state.step)
    drawn = draw(logits, numbers, spec.temperature, top_p=spec.top_p, top_k=spec.top_k)
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
        rank_by: np.ndarray = scores.astype(np.float64)
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
    scores, masked = RCR_SCORES[state.spec.rcr_confidence](state), state.masked(range(inside.stop))
    merges: dict[str, Callable[[float, float], float]] = {
        "last": lambda old, new: new,
        "max": max,
        "min": min,
    }
    merge = merges[state.spec.rcr_update]
    for position in masked:
        new = float(scores[position])
        state.running[position] = merge(state.running.get(position, new), new)
    count = scheduled(state, [])[0]
    by_running = sorted(state.running, key=lambda position: (state.running[position], position))
    hidden = by_running[: max(0, len(masked) - count)]
    kept = sorted(set(masked) - set(hidden), key=lambda position: (-scores[position], position))
    running = np.array([state.running.get(p, 0.0) for p in range(len(scores))], dtype=np.float32)
    return Choice(kept, set(), sorted(set(hidden) - set(masked)), scores, running)


def saber_choice(state: State, inside: range) -> Choice:
    """Commit above the mean of earlier commits, then remask what gained least."""
    assert state.logits is not None
    scores = top_probability(state.logits, state.spec.confidence_law).cpu().numpy()
    visible = range(inside.stop)
    masked = state.masked(visible)
    count = scheduled(state, [])[0]
    earlier = [confidence for position, confidence in sorted(state.committed.items()) if position in visible]
    threshold = sum(earlier) / len(earlier) if earlier else 1.0
    order = sorted(masked, key=lambda position: (-scores[position], position))
    asked = sum(float(scores[position]) - threshold > 0 for position in masked)
    chosen = order[: max(asked, count)]
    hidden: list[int] = []
    if len(chosen) < len(masked):
        written = sorted(set(visible) - set(masked) | set(chosen))
        nothing = 0.0 if state.step == 0 else -np.inf
        gain = {p: scores[p] - np.float32(state.before.get(p, nothing)) for p in written}
        commits = max(count, len(chosen))
        back = min(commits - 1, max(count // 2, math.ceil(commits / 8)))
        hidden = sorted(written, key=lambda position: (gain[position], position))[:back]
    for position in chosen:
        state.committed[position] = float(scores[position])
    state.before |= {position: scores[position] for position in visible}
    kept = [position for position in chosen if position not in hidden]
    return Choice(kept, set(order[asked:]), sorted(set(hidden) - set(chosen)), scores, scores)


def ccd_choice(state: State, inside: range) -> Choice:
    """Commit where the distribution, averaged over this step and the kept ones, has the least entropy."""
    assert state.logits is not None
    now = probabilities(state.logits, state.spec.confidence_law)
    scores: np.ndarray = np.zeros(len(state.canvas), np.float32)
    for position in state.masked(range(len(state.canvas))):
        total, count = now[position : position + 1].clone(), 1
        for kept in state.history:
            if position in kept:
                total, count = total + kept[position], count + 1
        scores[position] = float(-torch.special.entr(total / count).sum(dim=1))
    order = sorted(state.masked(inside), key=lambda position: (-scores[position], position))
    newest = {position: now[position].float() for position in order[:KEPT_POSITIONS]}
    state.history = [newest, *state.history][:KEPT_STEPS]
    return Choice(order[: scheduled(state, [])[0]], set(), [], scores, scores)


def ccd_ds_choice(state: State, inside: range) -> Choice:
    """Commit the candidates of this and the last step that kept their likeliest token, or as scheduled."""
    assert state.logits is not None
    scores = neg_entropy(state.logits, state.spec.confidence_law).cpu().numpy()
    likeliest = state.logits.argmax(dim=1).tolist()
    masked, count = state.masked(inside), scheduled(state, [])[0]
    order = sorted(masked, key=lambda position: (-scores[position], position))
    size = 1
    for _ in range(WARM_UP_STEPS - 1, state.block_step + 1):
        size = min(size + 1, count * (1 + GROWTH))
    if state.block_step >= WARM_UP_STEPS - 1 and len(masked) <= FEW_MASKS * state.spec.block_length:
        size = LATE_SIZE
    before, leading = state.candidates, order[:count]
    agreed = [position for position in order[:size] if before.get(position) == likeliest[position]]
    tried = state.block_step >= WARM_UP_STEPS
    consensus = tried and len(agreed) >= count and any(position in before for position in leading)
    chosen, forced = (agreed, []) if consensus else (leading, leading if tried else [])
    left = [position for position in order if position not in chosen]
    state.candidates = {position: likeliest[position] for position in left[:size]}
    return Choice(chosen, set(forced), [], scores, scores)


def policy_choice(state: State, inside: range) -> Choice:
    """Ask the policy about the active block, draw a decision for each position."""
    assert state.logits is not None
    masked = state.masked(inside)
    sure = top_probability(state.logits, Law())
    eligible = torch.zeros(1, len(state.canvas), dtype=torch.bool, device=sure.device)
    eligible[0, masked] = True
    time = torch.tensor([state.step / state.spec.gen_len], device=sure.device)
    features = PolicyFeatures(torch.where(eligible, sure, 0.0), eligible, time)
    logits = state.spec.policy_sharpness * find_policy(state.spec.policy)(features)[0]
    number = state.uniform(state.step, ORDER_STREAM)
    action = [bool(number[position] < torch.sigmoid(logits[position].double())) for position in masked]
    scores = torch.sigmoid(logits.double()).float().cpu().numpy()
    order = sorted(masked, key=lambda position: (-float(logits[position]), position))
    taken = [position for position in order if action[masked.index(position)]]
    logp = action_logp(logits[masked][None], torch.tensor([action]), eligible[:, masked])
    record = (np.array(masked), sure[masked].cpu().numpy(), np.array(action), logp.cpu().numpy())
    commits, forced = (taken, set()) if taken else (order[:1], {order[0]})
    return Choice(commits, forced, [], scores, scores, actions=record)


def leave_early(state: State, choice: Choice, masked: list[int]) -> Choice:
    """Write all masks at once where the mean gap of the two largest logits is large enough."""
    spec = state.spec
    assert state.logits is not None and state.token is not None and state.logp is not None
    region = masked if spec.answer_region is None else range(*spec.answer_region)
    gaps = logit_gap(state.logits).double()[list(region)]
    prophet = spec.early_commit == "prophet"
    done = (state.step + 1) / spec.steps if prophet else state.step / max(1, spec.steps - 1)
    progress = torch.tensor([min(1.0, done)], dtype=torch.float64)
    least = gap_threshold(spec.early_commit, progress, spec.early_commit_high, spec.early_commit_low)
    if float(gaps.mean()) < float(least):
        return choice
    prob, token = torch.softmax(state.logits / (spec.temperature or 1.0), dim=1).max(dim=1)
    state.token[masked], state.logp[masked] = token[masked].cpu(), prob.log()[masked].cpu()
    scores = choice.score.copy()
    scores[masked] = prob[masked].cpu()
    return Choice(masked, set(), [], scores, choice.confidence, early=True)


RCR_SCORES: dict[str, Callable[[State], np.ndarray]] = {
    "probability": drawn_score,
    "neg_entropy": distribution_score(neg_entropy),
    "margin": distribution_score(margin),
}
"""By `rcr_confidence`."""

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
    "top_dynamic": ordered_choice(distribution_score(top_probability), by_threshold_or_schedule),
    "top_threshold": ordered_choice(distribution_score(top_probability), by_threshold),
    "top_factor": ordered_choice(distribution_score(top_probability), by_factor),
    "entropy_bound": ordered_choice(distribution_score(neg_entropy), by_entropy),
    "entropy_bound_cumsum": ordered_choice(distribution_score(neg_entropy), by_whole_entropy),
    "entropy_threshold": ordered_choice(distribution_score(neg_entropy), by_each_entropy),
    "rcr": rcr_choice,
    "saber": saber_choice,
    "ccd": ccd_choice,
    "ccd_ds": ccd_ds_choice,
    "learned": policy_choice,
}
"""By the name of the strategy."""
