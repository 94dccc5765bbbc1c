"""The estimator lab: bias and spread of likelihood estimates of fixed completions, for a stated number of
forwards.

What is measured are the plans that trainers use, drawn many times with different seeds. Where every subset of
a block's actions can be listed (`Enumeration`) the model is asked once per subset: the reference is then
exact and drawing more estimates costs no forward. Elsewhere every state is evaluated, and the reference is a
long stratified estimate with a standard error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rl4dlm.diffusion.seeds import derive_seed
from rl4dlm.likelihood.coupled import Strata, plan_coupled
from rl4dlm.likelihood.elbo import ElboSettings, plan_corruptions
from rl4dlm.likelihood.one_step import one_step_states
from rl4dlm.likelihood.orders import blockwise_plan, random_order_plan
from rl4dlm.likelihood.packing import split_by_tokens
from rl4dlm.likelihood.states import (
    States,
    block_of_positions,
    rectangle,
    sequence_tokens,
    state_logp,
    unseen_by_sampler,
)
from rl4dlm.types import Denoiser, DenoiserSpec

P_MASK_PROMPT = 0.15
"""Share of prompt tokens that d1's one-step estimate hides."""
REFERENCE_PARTS = 16
"""Independent parts of a sampled reference; its standard error is that of their mean."""
_CHUNK_POSITIONS = 1 << 22
"""Positions of the states that are planned together, each counted once for every block of the model."""

Advance = Callable[[int], None]
"""Told how many states the model has read."""


def _silent(num_states: int) -> None:
    pass


@dataclass(frozen=True)
class Completions:
    """What is estimated, and how positions are cut into blocks.

    Example: `Completions.of([np.array([1, 2])], ids, loss_mask, denoiser.spec, block_length=4)`.
    """

    prompt_ids: tuple[np.ndarray, ...]
    """Per row int `[prompt]`, without padding."""
    completion_ids: np.ndarray
    """int `[rows, completion]`, whole canvases."""
    loss_mask: np.ndarray
    """bool `[rows, completion]`: the positions whose likelihood is estimated; what follows the last of
    them is always hidden."""
    block: Tensor
    """int64 `[rows, completion]`: blocks of a block-causal model; all 0 for full attention."""
    decoded: Tensor
    """int64 `[rows, completion]`: blocks in which the block-wise estimate goes through the completion."""

    @classmethod
    def of(
        cls,
        prompt_ids: Sequence[np.ndarray],
        completion_ids: np.ndarray,
        loss_mask: np.ndarray,
        spec: DenoiserSpec,
        block_length: int,
    ) -> Completions:
        """Completions as a model of this kind sees them; `block_length` is that of the block-wise estimate.

        Raises:
            ValueError: a completion has no position to estimate.
        """
        if not loss_mask.any(1).all():
            raise ValueError(f"completion {int(loss_mask.any(1).argmin())} has no position to estimate.")
        length = completion_ids.shape[1]
        return cls(
            prompt_ids=tuple(prompt_ids),
            completion_ids=completion_ids,
            loss_mask=loss_mask,
            block=block_of_positions([len(prompt) for prompt in prompt_ids], length, spec),
            decoded=(torch.arange(length) // block_length).expand(len(completion_ids), -1),
        )

    def __len__(self) -> int:
        return len(self.prompt_ids)

    @property
    def block_actions(self) -> int:
        """Most positions to estimate in any block of the model: 2 to this power subsets tell everything."""
        inside = torch.arange(int(self.block.max()) + 1)[:, None] == self.block[:, None]
        return int((inside & torch.tensor(self.loss_mask)[:, None]).sum(-1).max())

    @property
    def num_decoded(self) -> int:
        """Blocks of the block-wise estimate that hold anything to estimate."""
        return int(self.decoded[torch.tensor(self.loss_mask)].max()) + 1


@dataclass(frozen=True)
class Draws:
    """Rows that plans are made for: every completion, repeated with seeds of its own."""

    row: np.ndarray
    """int `[draws]`: the completion."""
    seed: np.ndarray
    """int64 `[draws]`."""
    completions: Completions

    @classmethod
    def of(cls, completions: Completions, repeats: range, seed: int) -> Draws:
        """All repeats of the first completion, all of the second, and so on."""
        rows = range(len(completions))
        seeds = [derive_seed(seed, "estimate", row, repeat) for row in rows for repeat in repeats]
        return cls(np.repeat(np.arange(len(rows)), len(repeats)), np.array(seeds), completions)

    @property
    def loss_mask(self) -> np.ndarray:
        """bool `[draws, completion]`."""
        return self.completions.loss_mask[self.row]

    @property
    def block(self) -> Tensor:
        """int64 `[draws, completion]`: the model's blocks."""
        return self.completions.block[self.row]


@dataclass(frozen=True)
class Estimator:
    """A way to estimate a likelihood with a given number of forwards."""

    name: str
    """As in `--estimators`."""
    estimates: str
    """Whose mean it has, up to its bias: `elbo`, `block_elbo` (another bound) or `surrogate` (no bound)."""
    states: Callable[[Draws, int], States]
    """(draws, forwards) -> that many states per draw; the estimate is the weighted sum of their log p. The
    number of forwards is the plan's inner pass too, so that other numbers have masks of their own."""
    fits: Callable[[Completions, int], bool]
    """Whether it can be had with this number of forwards."""
    random: bool = True
    """Whether it depends on the seed."""
    only_actions: bool = True
    """Whether its states hide actions and what no sampler sees, nothing else, so that an enumeration can
    answer them."""


def _always(completions: Completions, forwards: int) -> bool:
    return True


def _once(completions: Completions, forwards: int) -> bool:
    return forwards == 1


def _up_to_a_trajectory(completions: Completions, forwards: int) -> bool:
    return forwards <= completions.block_actions


def _elbo_estimator(name: str, estimator: str, rule: str) -> Estimator:
    def states(draws: Draws, forwards: int) -> States:
        settings = ElboSettings(estimator, forwards, 1, rule)
        return plan_corruptions(draws.seed, draws.loss_mask, forwards, settings, draws.block).states()

    return Estimator(name, "elbo", states, _always)


def _coupled(draws: Draws, forwards: int) -> States:
    # Draws are independent, so each has a stratum of its own; a trainer's batch shares one.
    strata = Strata(draws.seed, np.zeros(len(draws.seed)))
    return plan_coupled(draws.seed, draws.loss_mask, forwards, forwards // 2, strata, draws.block).states()


def _in_pairs(completions: Completions, forwards: int) -> bool:
    return forwards % 2 == 0


def _random_order(draws: Draws, forwards: int) -> States:
    return random_order_plan(draws.seed, draws.loss_mask, forwards, forwards, draws.block).states()


def _blockwise(draws: Draws, forwards: int) -> States:
    settings = ElboSettings("stratified", forwards // draws.completions.num_decoded, 1, "round_half")
    decoded = draws.completions.decoded[draws.row]
    # Blocks without anything to estimate would be states without a target.
    decoded = decoded.clamp(max=draws.completions.num_decoded - 1)
    return blockwise_plan(draws.seed, draws.loss_mask, forwards, settings, decoded).states()


def _fits_blocks(completions: Completions, forwards: int) -> bool:
    """Whole passes through several blocks; a block-causal model's ELBO is block by block already."""
    several = completions.num_decoded > 1 and not bool(completions.block.any())
    return several and forwards % completions.num_decoded == 0


def _one_step(p_mask_prompt: float) -> Callable[[Draws, int], States]:
    def states(draws: Draws, forwards: int) -> States:
        lengths = [len(draws.completions.prompt_ids[row]) for row in draws.row]
        return one_step_states(draws.seed, draws.loss_mask, lengths, forwards, p_mask_prompt)

    return states


ESTIMATORS: tuple[Estimator, ...] = (
    _elbo_estimator("double_mc/bernoulli", "double_mc", "bernoulli"),
    _elbo_estimator("double_mc/round_half", "double_mc", "round_half"),
    _elbo_estimator("stratified", "stratified", "round_half"),
    _elbo_estimator("sdmc/round_half", "sdmc", "round_half"),
    _elbo_estimator("sdmc/round", "sdmc", "round"),
    _elbo_estimator("sdmc/floor_release", "sdmc", "floor_release"),
    _elbo_estimator("sdmc/bernoulli", "sdmc", "bernoulli"),
    Estimator("coupled", "elbo", _coupled, _in_pairs),
    Estimator("random_order", "elbo", _random_order, _up_to_a_trajectory),
    Estimator("block", "block_elbo", _blockwise, _fits_blocks),
    Estimator("one_step", "surrogate", _one_step(0.0), _once, random=False, only_actions=False),
    Estimator("one_step/prompt_masked", "surrogate", _one_step(P_MASK_PROMPT), _once, only_actions=False),
)
"""Every estimator of the toolkit that a plan describes."""


@dataclass(frozen=True)
class Enumeration:
    """log p(y_i | q, y with S hidden) for every subset S of every block's actions."""

    logp: Tensor
    """float64 `[rows, subsets, completion]`, nats; subset c hides the actions whose bits are in c."""
    bit: Tensor
    """int64 `[rows, completion]`: index of an action within its block, from 0; -1 where there is none."""
    block: Tensor
    """int64 `[rows, completion]`."""

    def lookup(self, states: States) -> Tensor:
        """float64 `[states, completion]`, 0 where a position is no target."""
        bit, block = self.bit[states.row], self.block[states.row]
        digit = torch.where(states.is_masked & (bit >= 0), 1 << bit.clamp(min=0), 0)
        codes = torch.zeros(len(states), int(self.block.max()) + 1, dtype=torch.int64)
        code = codes.scatter_add(1, block, digit).gather(1, block)  # [states, completion]
        position = torch.arange(bit.shape[1])
        return torch.where(states.target, self.logp[states.row[:, None], code, position], 0.0)

    def elbo(self) -> Tensor:
        """The exact ELBO, float64 `[rows]`: over blocks and counts k, (1/k) times the mean of l(S), |S| = k.

        Source: LLaDA, arXiv:2502.09992, Eq. (6).
        """
        subsets = self.logp.shape[1]
        hidden = (torch.arange(subsets)[:, None] >> self.bit.clamp(min=0)[:, None]) & 1 == 1
        total = torch.zeros(len(self.bit), dtype=torch.float64)
        for number in range(int(self.block.max()) + 1):
            inside = (self.block == number) & (self.bit >= 0)  # [rows, completion]
            scored = hidden & inside[:, None]  # [rows, subsets, completion]
            joint, count = torch.where(scored, self.logp, 0.0).sum(-1), scored.sum(-1)
            for row, num_actions in enumerate(inside.sum(1).tolist()):
                # A subset that differs outside the block only is the same one again, as often as any other.
                means = [joint[row, count[row] == k].mean() / k for k in range(1, num_actions + 1)]
                total[row] += sum(means)
        return total


def enumerate_subsets(
    denoiser: Denoiser, completions: Completions, max_tokens: int, advance: Advance = _silent
) -> Enumeration:
    """Ask the model about every subset; 2^`completions.block_actions` states per row.

    Args:
        max_tokens: bound on the padded tokens of a forward.
        advance: told after each forward how many states it held.
    """
    action = torch.tensor(completions.loss_mask)
    bit = torch.full_like(completions.block, -1)
    for number in range(int(completions.block.max()) + 1):
        inside = (completions.block == number) & action
        bit = torch.where(inside, inside.cumsum(1) - 1, bit)
    codes = torch.arange(2**completions.block_actions)
    hidden = ((codes[:, None] >> bit.clamp(min=0)[:, None]) & 1 == 1) & action[:, None]
    unseen = unseen_by_sampler(action)[:, None]
    states = rectangle(hidden | unseen, torch.ones(()), target=hidden)
    logp = read_states(denoiser, completions, states, max_tokens, advance)
    return Enumeration(logp.view(len(completions), len(codes), -1), bit, completions.block)


@torch.no_grad()
def read_states(
    denoiser: Denoiser,
    completions: Completions,
    states: States,
    max_tokens: int,
    advance: Advance = _silent,
) -> Tensor:
    """log p at the targets of any number of states, in forwards of bounded size.

    Args:
        max_tokens: bound on the padded tokens of a forward.
        advance: told after each forward how many states it held.

    Returns:
        float64 `[states, completion]` on the CPU, 0 where a position is no target.
    """
    length = completions.completion_ids.shape[1]
    tokens = [sequence_tokens(len(prompt), length, denoiser.spec) for prompt in completions.prompt_ids]
    out = torch.zeros(states.target.shape, dtype=torch.float64)
    for part in split_by_tokens([tokens[row] for row in states.row.tolist()], max_tokens):
        keep = torch.zeros(len(states), dtype=torch.bool)
        keep[part] = True
        logp = state_logp(denoiser, completions.prompt_ids, completions.completion_ids, states.take(keep))
        out[keep] = logp.to("cpu", torch.float64)
        advance(len(part))
    return out


@dataclass(frozen=True)
class Oracle:
    """One model's answers about some completions: looked up where they were enumerated, else computed."""

    denoiser: Denoiser
    completions: Completions
    max_tokens: int
    """Bound on the padded tokens of a forward."""
    enumeration: Enumeration | None = None
    advance: Advance = _silent

    def logp(self, states: States) -> Tensor:
        """float64 `[states, completion]`; rows of `states` are completions."""
        if self.enumeration is not None and self._is_listed(states):
            return self.enumeration.lookup(states)
        return read_states(self.denoiser, self.completions, states, self.max_tokens, self.advance)

    def _is_listed(self, states: States) -> bool:
        """Whether the states hide what no sampler sees, some actions, and nothing else."""
        action = torch.tensor(self.completions.loss_mask)
        unseen, others = unseen_by_sampler(action)[states.row], ~action[states.row]
        prompts = states.prompt_masked or ()
        listed = torch.equal(states.is_masked & others, unseen)
        return listed and not any(mask.any() for mask in prompts)


def estimates(
    oracles: Sequence[Oracle], estimator: Estimator, forwards: int, repeats: int, seed: int
) -> Tensor:
    """Draws of an estimate, of every model on the same states.

    Args:
        oracles: models that answer about the same completions.
        forwards: per draw.
        repeats: draws per completion.
        seed: root of all draws; the same seed gives the same draws for other models and settings.

    Returns:
        float64 `[models, rows, repeats]`, nats.
    """
    completions = oracles[0].completions
    positions = forwards * completions.completion_ids.size * (int(completions.block.max()) + 1)
    size = max(1, _CHUNK_POSITIONS // positions)
    parts = []
    for start in range(0, repeats, size):
        draws = Draws.of(completions, range(start, min(start + size, repeats)), seed)
        states = estimator.states(draws, forwards)
        asked = replace(states, row=torch.from_numpy(draws.row)[states.row])
        values = torch.stack([(asked.weight * oracle.logp(asked)).sum(-1) for oracle in oracles])
        summed = values.new_zeros(len(oracles), len(draws.row)).index_add(1, states.row, values)
        parts.append(summed.view(len(oracles), len(completions), -1))
    return torch.cat(parts, dim=-1)


@dataclass(frozen=True)
class Reference:
    """The true ELBO of each completion, nats, with its standard error (0 where it is exact)."""

    value: Tensor
    """float64 `[rows]`."""
    se: Tensor
    """float64 `[rows]`."""

    @property
    def exact(self) -> bool:
        """Whether it was enumerated."""
        return not bool(self.se.any())


def references(oracles: Sequence[Oracle], forwards: int, seed: int) -> tuple[list[Reference], Tensor]:
    """Each model's ELBO: exact where it was enumerated, else the mean of `REFERENCE_PARTS` stratified
    estimates of together `forwards` states.

    Returns:
        The references, and the standard error `[rows]` of the difference between the first model's and the
        last's, which share their states.
    """
    zero = torch.zeros(len(oracles[0].completions), dtype=torch.float64)
    listed = [oracle.enumeration.elbo() for oracle in oracles if oracle.enumeration is not None]
    if len(listed) == len(oracles):
        return [Reference(value, zero) for value in listed], zero
    stratified = next(estimator for estimator in ESTIMATORS if estimator.name == "stratified")
    part = max(1, forwards // REFERENCE_PARTS)
    values = estimates(oracles, stratified, part, REFERENCE_PARTS, derive_seed(seed, "reference"))
    scale = math.sqrt(REFERENCE_PARTS)
    found = [Reference(value.mean(-1), value.std(-1) / scale) for value in values]
    return found, (values[0] - values[-1]).std(-1) / scale


@dataclass(frozen=True)
class Spread:
    """How estimates lie around a reference, over completions; nats."""

    bias: float
    """Mean over completions of (mean of the estimates - reference)."""
    bias_se: float
    """Standard error of `bias`: of the estimates' mean and of the reference."""
    std: float
    """Root of the mean variance over completions."""
    std_se: float
    """Standard error of `std`."""
    rmse: float
    """Root of the mean squared distance from the reference."""


def spread(values: Tensor, reference: Tensor, reference_se: Tensor) -> Spread:
    """Statistics of draws.

    Args:
        values: float64 `[rows, repeats]`, at least 2 repeats.
        reference: float64 `[rows]`.
        reference_se: float64 `[rows]`, 0 where exact.
    """
    num_rows, repeats = values.shape
    centred = values - values.mean(1, keepdim=True)
    variance = centred.square().sum(1) / (repeats - 1)  # [rows]
    std = variance.mean().sqrt().item()
    # Var(s^2) = (m4 - s^4) / n, without an assumption on the shape of the distribution.
    of_variance = (centred.pow(4).mean(1) - variance.square()).clamp(min=0) / repeats
    variance_se = of_variance.sum().sqrt().item() / num_rows
    return Spread(
        bias=(values.mean(1) - reference).mean().item(),
        bias_se=(variance / repeats + reference_se.square()).sum().sqrt().item() / num_rows,
        std=std,
        std_se=variance_se / (2 * std) if std > 0 else 0.0,
        rmse=(values - reference[:, None]).square().mean().sqrt().item(),
    )


def independent(values: Tensor) -> Tensor:
    """Differences between two models as if their masks had been drawn apart.

    Args:
        values: float64 `[2, rows, repeats]` on shared states.

    Returns:
        float64 `[rows, repeats]`: the first model's draw minus the second's of the next seed.
    """
    return values[0] - values[1].roll(1, dims=-1)
