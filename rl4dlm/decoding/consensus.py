"""Strategies that trust what several steps agree on: CCD with a fixed and with an adaptive number of commits.

Source: Coherent contextual decoding, arXiv:2512.02044, and its released code for Dream. History decides the
order only; tokens are drawn from the present distribution, so that their recorded log-probabilities can be
replayed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rl4dlm.decoding.confidence import neg_entropy
from rl4dlm.decoding.proposal import draw, probabilities
from rl4dlm.decoding.selection import top_k
from rl4dlm.decoding.spec import SamplerSpec
from rl4dlm.decoding.step import Decision, StateShapes, StepInput, Strategy
from rl4dlm.types import FORCED, SAMPLED

# Positions per step whose distributions are kept, and steps that they are kept for (LLaDA; Dream: 3).
KEPT_POSITIONS, KEPT_STEPS = 4, 2

# CCD-DS: plain steps at the start of a block, growth of the candidate list, and the share of masks from
# which on it has `LATE_SIZE` entries.
WARM_UP_STEPS, GROWTH, FEW_MASKS, LATE_SIZE = 5, 4, 0.1, 2


def ccd(spec: SamplerSpec, step: StepInput) -> Decision:
    """Commit the positions whose distribution, averaged over recent steps, has the least entropy."""
    probs = probabilities(step.logits, spec.confidence_law)
    past, past_positions = step.state["probs"], step.state["positions"]
    score = _averaged_neg_entropy(step, probs, past, past_positions)
    picked, rank = step.select(score)
    kept, positions = _most_confident(step, probs, score)
    return _drawn_at(
        spec,
        step,
        picked,
        rank,
        score,
        state={
            "probs": torch.cat([kept[:, None], past[:, :-1]], dim=1),
            "positions": torch.cat([positions[:, None], past_positions[:, :-1]], dim=1),
        },
    )


def _averaged_neg_entropy(step: StepInput, probs: Tensor, past: Tensor, past_positions: Tensor) -> Tensor:
    """Minus the entropy of the mean over the present and the kept distributions, float32 `[seen]`.

    Args:
        probs: `[seen, vocab]`.
        past: `[rows, steps, positions, vocab]`.
        past_positions: int64 `[rows, steps, positions]`, canvas position + 1; 0 = nothing kept.
    """
    row = step.index // step.eligible.shape[1]
    here = step.at_seen(step.position)[:, None, None] + 1  # [seen, 1, 1]
    match = past_positions[row] == here  # [seen, steps, positions]
    total, count = probs.clone(), 1 + match.sum(dim=(1, 2))
    entry, *place = match.nonzero(as_tuple=True)
    total.index_add_(0, entry, past[row[entry], place[0], place[1]].to(total.dtype))
    mean = total / count[:, None]
    return -torch.special.entr(mean).sum(dim=1).float()


def _most_confident(step: StepInput, probs: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
    """Distributions and canvas positions + 1 of the best eligible positions of each row.

    Returns:
        `[rows, KEPT_POSITIONS, vocab]` and int64 `[rows, KEPT_POSITIONS]`, 0 where there are fewer.
    """
    rows, width = step.eligible.shape
    chosen, rank = top_k(
        step.dense(score), step.eligible, torch.full((rows,), KEPT_POSITIONS, device=probs.device)
    )
    picked = step.at_seen(chosen).nonzero().squeeze(1)
    flat = step.index[picked]
    where = (flat // width, rank.flatten()[flat])
    kept = probs.new_zeros(rows, KEPT_POSITIONS, probs.shape[1])
    positions = step.seed.new_zeros(rows, KEPT_POSITIONS)
    kept[where] = probs[picked]
    positions[where] = step.position.flatten()[flat] + 1
    return kept.float(), positions


def ccd_ds(spec: SamplerSpec, step: StepInput) -> Decision:
    """Commit the candidates that were candidates of the step before, too, with the same likeliest token.

    Candidates are the most certain positions; those of the step before are what was left masked then. Where
    none of the schedule's positions was a candidate before, or fewer agree than the schedule commits, the
    schedule's positions are committed, as they are in the first `WARM_UP_STEPS` steps of a block.
    """
    assert step.block_step is not None
    score = neg_entropy(step.logits, spec.confidence_law)
    dense, best = step.dense(score), step.dense(step.logits.max(dim=1).indices)
    size = _list_size(step)
    candidates = top_k(dense, step.eligible, size)[0]
    leading = top_k(dense, step.eligible, step.count)[0]
    before = _in_window(step, step.state["candidate"])
    agreed = candidates & before & (_in_window(step, step.state["token"]) == best)
    plain = (step.block_step < WARM_UP_STEPS)[:, None]
    enough = (agreed.sum(dim=1) >= step.count)[:, None]
    consensus = ~plain & enough & (leading & before).any(dim=1, keepdim=True)
    chosen = torch.where(consensus, agreed, leading)
    picked = step.at_seen(chosen).nonzero().squeeze(1)
    order = top_k(dense, chosen, chosen.sum(dim=1))[1].flatten()[step.index[picked]]
    fell_back = step.at_seen((~consensus & ~plain).expand_as(chosen))[picked]
    kept = top_k(dense, step.eligible & ~chosen, size)[0]
    state = {
        "candidate": _on_canvas(step, kept, torch.zeros_like(step.state["candidate"])),
        "token": _on_canvas(step, best, step.state["token"]),
    }
    kind = torch.where(fell_back, FORCED, SAMPLED).to(torch.uint8)
    return _drawn_at(spec, step, picked, order, score, state=state, kind=kind)


def _list_size(step: StepInput) -> Tensor:
    """Candidates of a step, int64 `[rows]`: 1 in the warm-up but for its last step, then one more per step
    up to 1 + `GROWTH` times the schedule's number; `LATE_SIZE` where few masks are left."""
    assert step.block_step is not None and step.block_length is not None
    grown = torch.minimum(step.block_step - WARM_UP_STEPS + 3, step.count * (1 + GROWTH))
    late = step.eligible.sum(dim=1) <= FEW_MASKS * step.block_length
    return torch.where(step.block_step < WARM_UP_STEPS - 1, 1, torch.where(late, LATE_SIZE, grown))


def _in_window(step: StepInput, canvas: Tensor) -> Tensor:
    """`[rows, completion]` to the window's `[rows, width]`."""
    return canvas.gather(1, step.position)


def _on_canvas(step: StepInput, window: Tensor, canvas: Tensor) -> Tensor:
    """The canvas with the eligible positions of the window written into it."""
    row = step.index // step.eligible.shape[1]
    written = canvas.clone()
    written[row, step.at_seen(step.position)] = step.at_seen(window)
    return written


def _drawn_at(
    spec: SamplerSpec,
    step: StepInput,
    picked: Tensor,
    rank: Tensor,
    score: Tensor,
    *,
    state: dict[str, Tensor],
    kind: Tensor | None = None,
) -> Decision:
    """Tokens drawn at chosen positions."""
    uniform = step.uniform()[picked]
    drawn = draw(step.logits[picked], uniform, spec.temperature, top_p=spec.top_p, top_k=spec.top_k)
    return Decision(
        picked, rank, drawn.token, drawn.prob.log(), score[picked], kind, confidence=score, state=state
    )


def _ccd_state(spec: SamplerSpec, vocab_size: int) -> StateShapes:
    kept = (KEPT_STEPS, KEPT_POSITIONS)
    return {"probs": ((*kept, vocab_size), torch.float32), "positions": (kept, torch.int64)}


def _ccd_ds_state(spec: SamplerSpec, vocab_size: int) -> StateShapes:
    return {"candidate": ((spec.gen_len,), torch.bool), "token": ((spec.gen_len,), torch.int64)}


CCD, CCD_DS = Strategy(ccd, state=_ccd_state), Strategy(ccd_ds, state=_ccd_ds_state)
