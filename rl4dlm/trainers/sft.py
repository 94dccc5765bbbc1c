"""Supervised fine-tuning: one page for all objectives, the warm start of an RL run among them.

    loss = mean over rows of (s / L) sum over targets i of w_i (-log p(y_i | what the state shows))

An objective is the choice of the state that a row shows, of its targets and of their weights (see
`sft_states`); how a state becomes a model input is that of every trainer (`likelihood/states`). Prompts are
never hidden and never trained. Mask rates are stratified over the rows of a step, which keeps each uniform
and lowers the variance of the mean; masks come from row seeds and counts are global, so the loss depends
neither on micro-batches nor on ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rl4dlm.data import Example
from rl4dlm.diffusion.blocks import prompt_tail, sequence_layout
from rl4dlm.diffusion.seeds import derive_seed
from rl4dlm.likelihood.packing import split_by_tokens
from rl4dlm.likelihood.states import StateInputs, state_inputs
from rl4dlm.loss.reduce import mean_over_rows
from rl4dlm.recipe.objectives import ObjectiveConfig
from rl4dlm.trainers.method import Metrics
from rl4dlm.trainers.sft_states import RowsAtHand, SFTStates, sft_states
from rl4dlm.types import Denoiser, DenoiserSpec


@dataclass(frozen=True)
class SFTPlan:
    """What turns examples into the batch of one optimizer step.

    Example: `SFTPlan(RandomMaskObjective(), fill="canvas", canvas=256)`.
    """

    objective: ObjectiveConfig
    fill: str
    """`canvas`, `batch`, `block` or `none`: what follows the first end-of-text."""
    canvas: int
    """Tokens of the canvas that rollouts denoise."""
    block_length: int | None = None
    """Of block-causal attention in this step; None: full attention, or causal for the objective `ar`."""
    average: str = "row"
    """`row` or `token`."""


@dataclass(frozen=True)
class SFTBatch:
    """The rows of one optimizer step over all ranks."""

    plan: SFTPlan
    prompt_ids: tuple[np.ndarray, ...]
    """Per row int32 `[prompt]`."""
    completion_ids: tuple[np.ndarray, ...]
    """Per row int32 `[completion]`, filled."""
    num_trained: np.ndarray
    """int64 `[rows]`: so many leading tokens of the completion are trained."""
    seed: np.ndarray
    """int64 `[rows]`: root of the row's masks."""
    t: np.ndarray
    """float64 `[rows]` in [0, 1): (u + row / rows) mod 1 with one random u."""
    step_map: tuple[np.ndarray, ...] | None = None
    """Per row int32 `[completion]`, -1 where the sampler committed nothing; None without a trace."""

    def __len__(self) -> int:
        return len(self.prompt_ids)

    @property
    def denominator(self) -> float:
        """What the sum over all rows is divided by: their number, or that of their trained tokens."""
        return float(self.num_trained.sum()) if self.plan.average == "token" else float(len(self))

    def tokens(self, row: int) -> int:
        """Tokens that the model reads for a row, padding excluded."""
        prompt, completion = len(self.prompt_ids[row]), len(self.completion_ids[row])
        block = self.plan.block_length
        return prompt + completion + (completion + prompt_tail(prompt, block) if block else 0)


def sft_batch(examples: Sequence[Example], plan: SFTPlan, spec: DenoiserSpec, seed: int) -> SFTBatch:
    """The batch of one optimizer step.

    Args:
        examples: the rows, over all ranks.
        plan: objective, fill and blocks of this step.
        spec: the model's ids.
        seed: of this step, e.g. `derive_seed(run seed, "sft", step)`; masks and mask rates follow from it and
            the row's index.
    """
    shift = np.random.default_rng(derive_seed(seed, "t")).random()
    rows = np.arange(len(examples))
    traced = plan.objective.type == "trace"
    filled = [_filled(example, plan, spec, examples) for example in examples]
    lengths = [len(e.completion_ids) if traced else len(ids) for e, ids in zip(examples, filled, strict=True)]
    return SFTBatch(
        plan=plan,
        prompt_ids=tuple(np.asarray(example.prompt_ids, dtype=np.int32) for example in examples),
        completion_ids=tuple(filled),
        num_trained=np.array(lengths, dtype=np.int64),
        seed=np.array([derive_seed(seed, "corruption", int(row)) for row in rows], dtype=np.int64),
        t=(shift + rows / len(rows)) % 1.0,
        step_map=tuple(_steps(e, len(ids)) for e, ids in zip(examples, filled, strict=True))
        if traced
        else None,
    )


def _filled(example: Example, plan: SFTPlan, spec: DenoiserSpec, step: Sequence[Example]) -> np.ndarray:
    """The completion with end-of-text after it, as far as the plan says; int32 `[completion]`."""
    ids = np.asarray(example.completion_ids, dtype=np.int32)
    if not example.ended:
        return ids
    least = len(ids) + (len(ids) == 0 or int(ids[-1]) not in spec.stop_ids)
    if plan.fill == "none" or not example.filled:
        length = least
    elif plan.fill == "canvas":
        length = plan.canvas
    elif plan.fill == "batch":
        length = max(len(other.completion_ids) + 1 for other in step)
    else:
        assert plan.block_length is not None, "a fill up to the end of the block needs blocks"
        length = least + -(len(example.prompt_ids) + least) % plan.block_length
    padding: np.ndarray = np.full(max(0, length - len(ids)), spec.eos_id, dtype=np.int32)
    return np.concatenate([ids, padding])


def _steps(example: Example, length: int) -> np.ndarray:
    """The step map over a filled completion: nothing was committed in the fill."""
    assert example.step_map is not None, "trace rows carry a step map"
    steps: np.ndarray = np.full(length, -1, dtype=np.int32)
    steps[: len(example.step_map)] = example.step_map
    return steps


def shares(batch: SFTBatch, world_size: int) -> list[list[int]]:
    """The rows of each rank: dealt out longest first, so that ranks have as much to do."""
    order = sorted(range(len(batch)), key=lambda row: -batch.tokens(row))
    return [order[rank::world_size] for rank in range(world_size)]


def sft_micro_batches(batch: SFTBatch, rows: Sequence[int], token_budget: int) -> list[list[int]]:
    """Split a rank's rows into passes of at most `token_budget` padded tokens (one row at the least); rows of
    like length meet, so little is padded."""
    length = [batch.tokens(row) for row in rows]
    return [[int(rows[i]) for i in part] for part in split_by_tokens(length, token_budget)]


def padding_tokens(batch: SFTBatch, passes: Sequence[Sequence[int]]) -> int:
    """Tokens that some passes hold beyond those of their rows."""
    return sum(len(rows) * max(map(batch.tokens, rows)) - sum(map(batch.tokens, rows)) for rows in passes)


def row_nll(denoiser: Denoiser, batch: SFTBatch, rows: Sequence[int]) -> Tensor:
    """What the objective says of some rows: s times the weighted sum over targets of -log p.

    Where the objective estimates the ELBO, this estimates its negative, in nats.

    Args:
        denoiser: the model; gradients flow where its call allows them.
        batch: from `sft_batch`.
        rows: indices into it.

    Returns:
        `[rows]`, nats, in the denoiser's precision.
    """
    hand = _at_hand(batch, rows)
    shown = sft_states(batch.plan.objective, hand)
    inputs = _inputs(denoiser, batch, rows, hand, shown)
    logp = denoiser.token_logp(
        inputs.input_ids, inputs.attention_mask, inputs.select, inputs.labels, layout=inputs.layout
    )
    target = shown.target.to(logp.device)
    dense = logp.new_zeros(target.shape).masked_scatter(target, logp)  # [rows, completion]
    return -(dense * shown.weight.to(dense)).sum(-1) * shown.scale.to(dense)


def sft_loss(denoiser: Denoiser, batch: SFTBatch, rows: Sequence[int]) -> tuple[Tensor, Metrics]:
    """These rows' share of the loss of one optimizer step, with gradient.

    Returns:
        Scalar, nats per token, and its value as the metric `loss`; shares of all passes add up.
    """
    nll = row_nll(denoiser, batch, rows)
    if batch.plan.average == "row":
        nll = nll / torch.tensor(batch.num_trained[list(rows)]).clamp(min=1).to(nll)
    loss = mean_over_rows(nll, batch.denominator)
    return loss, {"loss": float(loss.detach())}


def _at_hand(batch: SFTBatch, rows: Sequence[int]) -> RowsAtHand:
    """Some rows as rectangles on the CPU."""
    rows = list(rows)
    completions = [batch.completion_ids[row] for row in rows]
    column = np.arange(max(map(len, completions)))
    real = column < np.array([[len(ids)] for ids in completions])
    steps = None
    if batch.step_map is not None:
        steps = np.full(real.shape, -1, dtype=np.int64)
        steps[real] = np.concatenate([batch.step_map[row] for row in rows])
    prompts = torch.tensor([len(batch.prompt_ids[row]) for row in rows])
    length = batch.plan.block_length
    offset = torch.zeros_like(prompts) if length is None else prompts % length
    return RowsAtHand(
        seed=torch.tensor(batch.seed[rows]),
        t=torch.tensor(batch.t[rows]),
        real=torch.from_numpy(real),
        trained=torch.from_numpy(column < batch.num_trained[rows][:, None]),
        prompt_lengths=prompts,
        offset=offset,
        block_length=length,
        step_map=None if steps is None else torch.from_numpy(steps),
    )


def _inputs(
    denoiser: Denoiser, batch: SFTBatch, rows: Sequence[int], hand: RowsAtHand, shown: SFTStates
) -> StateInputs:
    """The model call that scores the targets: as everywhere, under the blocks of this step; next-token
    prediction reads the clean row under causal attention."""
    canvas: np.ndarray = np.full(hand.real.shape, denoiser.spec.pad_id, dtype=np.int32)
    canvas[hand.real.numpy()] = np.concatenate([batch.completion_ids[row] for row in rows])
    length = batch.plan.block_length
    attention = "full" if length is None else "block_causal"
    spec = replace(denoiser.spec, attention=attention, block_length=length)
    prompts = [batch.prompt_ids[row] for row in rows]
    inputs = state_inputs(replace(denoiser, spec=spec), prompts, canvas, shown.states(), hand.real)
    if batch.plan.objective.type != "ar":
        return inputs
    real = inputs.attention_mask
    real = torch.ones_like(inputs.input_ids, dtype=torch.bool) if real is None else real
    return replace(inputs, attention_mask=None, layout=sequence_layout(real, 1))
