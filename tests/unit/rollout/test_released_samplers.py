"""Samplers against the loops that their authors released, written anew and as plainly as they are: batch 1,
greedy.

CCD-DS: arXiv:2512.02044. Saber: arXiv:2510.18165. RCR: MDPO, arXiv:2508.13148. Prophet: arXiv:2508.19982.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from rollout_toys import MASK, requests, table, transformer
from torch import Tensor

from rl4dlm.decoding import SamplerSpec
from rl4dlm.rollout import Engine, Request, state_before
from rl4dlm.types import EARLY_COMMIT, FORCED, Denoiser, Rollout

Look = Callable[[list[int]], Tensor]
"""A canvas -> probabilities `[completion, vocab]`."""


def looking_at(denoiser: Denoiser, request: Request) -> Look:
    def look(canvas: list[int]) -> Tensor:
        ids = torch.tensor([[*request.prompt_ids, *canvas]])
        logits = denoiser.logits(ids, None, torch.ones_like(ids, dtype=torch.bool))
        return torch.softmax(logits[len(request.prompt_ids) :], dim=1)

    return look


def ours(denoiser: Denoiser, request: Request, length: int, steps: int, **settings: Any) -> Rollout:
    spec = SamplerSpec(length, length, steps, 0.0, eos_policy="none", **settings)
    return Engine(denoiser, spec, 1).generate([request], policy_version=0)[0]


def canvases(rollout: Rollout) -> list[list[int]]:
    return [state_before(rollout, step, MASK).tolist() for step in range(rollout.num_steps + 1)]


CASES = [(seed, scale) for seed in range(4) for scale in (1.0, 2.5)]


def case(number: int, scale: float) -> tuple[Denoiser, Request]:
    return transformer(scale=scale), requests(number + 1, run=7)[number]


def released_ccd_ds(look: Look, length: int, steps: int) -> list[list[int]]:
    """Every state of the canvas; the loop has no bound of steps here, the released one commits what is
    due."""
    canvas, per_step, size = [MASK] * length, length // steps, 1
    kept: list[int] = []
    last_best: list[int] = []
    states = [canvas.copy()]
    step = 0
    while MASK in canvas:
        masked = [i for i, token in enumerate(canvas) if token == MASK]
        if len(masked) <= 0.1 * length:
            size = 1
        size = 1 if step < 4 else min(size + 1, per_step + 4 * per_step)
        probs = look(canvas)
        entropy, best = torch.special.entr(probs).sum(1).tolist(), probs.argmax(1).tolist()
        order = sorted(masked, key=lambda i: (entropy[i], i))
        top = order[:per_step]
        chosen = top
        if step >= 5 and any(i in kept for i in top):
            same = [i for i in order[:size] if i in kept and best[i] == last_best[i]]
            if len(same) >= per_step:
                chosen = same
        for i in chosen:
            canvas[i] = best[i]
        kept = [i for i in order if i not in chosen][:size]
        last_best = best
        states.append(canvas.copy())
        step += 1
    return states


@pytest.mark.parametrize(("number", "scale"), CASES)
@pytest.mark.parametrize("per_step", [1, 2])
def test_ccd_ds_is_the_released_loop(number: int, scale: float, per_step: int) -> None:
    denoiser, request = case(number, scale)
    rollout = ours(denoiser, request, 30, 30 // per_step, remasking="ccd_ds")
    expected = released_ccd_ds(looking_at(denoiser, request), 30, 30 // per_step)
    assert canvases(rollout) == expected
    assert rollout.num_steps <= 30 // per_step


def test_ccd_ds_commits_several_tokens_once_they_were_candidates_twice() -> None:
    # The same distributions at every step, so every candidate agrees with itself. One token per step for 5
    # steps; the list of step 4 keeps the two best of what is left, so step 5 (three candidates) commits those
    # two and keeps three, step 6 commits three and keeps four, step 7 four. 5 + 2 + 3 + 4 = 14.
    rollout = ours(table([0.5, 0.3, 0.2]), Request(0, 0, 5, ()), 14, 14, remasking="ccd_ds")
    assert np.bincount(rollout.trace.step_map).tolist() == [1, 1, 1, 1, 1, 2, 3, 4]
    assert not (rollout.trace.kind == FORCED).any()
    # With 30 masks three or fewer are few: the list is of two then. 5 + 2 + 3 + 4 + 5 + 5 + 5 = 29, one left.
    rollout = ours(table([0.5, 0.3, 0.2]), Request(0, 0, 5, ()), 30, 30, remasking="ccd_ds")
    assert np.bincount(rollout.trace.step_map).tolist() == [1, 1, 1, 1, 1, 2, 3, 4, 5, 5, 5, 1]
    # Of 32 three are left: two candidates of the five that were kept, then the last one.
    rollout = ours(table([0.5, 0.3, 0.2]), Request(0, 0, 5, ()), 32, 32, remasking="ccd_ds")
    assert np.bincount(rollout.trace.step_map).tolist() == [1, 1, 1, 1, 1, 2, 3, 4, 5, 5, 5, 2, 1]


def released_saber(look: Look, length: int, least: int) -> list[list[int]]:
    canvas = [MASK] * length
    last = [0.0] * length
    recorded: dict[int, float] = {}
    states = [canvas.copy()]
    while True:
        best = look(canvas).max(1)
        now, token = best.values.float().tolist(), best.indices.tolist()
        gain = [float(np.float32(now[i]) - np.float32(last[i])) for i in range(length)]
        last = now
        masked = [i for i in range(length) if canvas[i] == MASK]
        threshold = sum(recorded.values()) / len(recorded) if recorded else 1.0
        chosen = [i for i in masked if now[i] > threshold]
        if len(chosen) < least:
            chosen = sorted(masked, key=lambda i: (-now[i], i))[:least]
        commits = max(least, len(chosen))
        for i in chosen:
            canvas[i], recorded[i] = token[i], now[i]
        if MASK not in canvas:
            return [*states, canvas]
        back = min(commits - 1, max(least // 2, math.ceil(commits / 8)))
        written = [i for i in range(length) if canvas[i] != MASK]
        for i in sorted(written, key=lambda i: (gain[i], i))[:back]:
            canvas[i] = MASK
        states.append(canvas.copy())


@pytest.mark.parametrize(("number", "scale"), CASES)
@pytest.mark.parametrize("least", [1, 2, 4])
def test_saber_is_the_released_loop(number: int, scale: float, least: int) -> None:
    denoiser, request = case(number, scale)
    rollout = ours(denoiser, request, 16, 16 // least, remasking="saber")
    assert canvases(rollout) == released_saber(looking_at(denoiser, request), 16, least)


def released_rcr(look: Look, counts: list[int], confidence: str) -> list[list[int]]:
    canvas = [MASK] * sum(counts)
    running: dict[int, float] = {}
    states = [canvas.copy()]
    for step in range(len(counts)):
        probs = look(canvas)
        top = probs.topk(2, dim=1)
        score = {
            "probability": top.values[:, 0],
            "margin": top.values[:, 0] - top.values[:, 1],
            "neg_entropy": -torch.special.entr(probs).sum(1),
        }[confidence].tolist()
        for i in [i for i, token in enumerate(canvas) if token == MASK]:
            canvas[i], running[i] = int(top.indices[i, 0]), score[i]
        for i in sorted(running, key=lambda i: (running[i], i))[: sum(counts[step + 1 :])]:
            canvas[i] = MASK
        states.append(canvas.copy())
    return states


@pytest.mark.parametrize(("number", "scale"), CASES)
@pytest.mark.parametrize("confidence", ["probability", "neg_entropy", "margin"])
def test_rcr_is_the_released_loop_with_its_floors_and_confidences(
    number: int, scale: float, confidence: str
) -> None:
    denoiser, request = case(number, scale)
    # 10 tokens in 4 steps: floor(10 (1 - i / 4)) = 7, 5, 2, 0 are left.
    settings = {"remasking": "rcr", "rcr_schedule": "linear", "rcr_confidence": confidence}
    rollout = ours(denoiser, request, 10, 4, **settings)
    assert canvases(rollout) == released_rcr(looking_at(denoiser, request), [3, 2, 3, 2], confidence)


@pytest.mark.parametrize(("gap", "steps"), [(8.0, 1), (6.0, 2), (3.0, 5)])
def test_prophet_counts_the_present_step(gap: float, steps: int) -> None:
    # Six steps: progress 1/6, 2/6 (beyond .33), 3/6, 4/6 (below .67), 5/6. A gap of 8 exceeds 7.5 at once, 6
    # exceeds 5 from the second step on, and 3 exceeds 2.5 from the fifth. Counted from 0 it would be the
    # third and the sixth.
    first = 1 / (1 + 2 * math.exp(-gap))
    denoiser = table([first, first * math.exp(-gap), first * math.exp(-gap)])
    rollout = ours(denoiser, Request(0, 0, 3, ()), 6, 6, early_commit="prophet", answer_region=(0, 6))
    assert rollout.num_steps == steps
    assert (rollout.trace.kind == EARLY_COMMIT).sum() == 6 - (steps - 1)
