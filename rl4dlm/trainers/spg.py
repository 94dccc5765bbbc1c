"""Sandwiched Policy Gradient (SPG, arXiv:2510.09541): raise a lower bound of good completions, lower an upper
one of bad ones.

    lower = (1/L) sum over states s of (1/n_t) sum over hidden i of (1/t_s) log p(y_i | s)
    upper = mean over i of (1/b) log (1/n_t) sum over states s of 1[i hidden] (1/t_s) p(y_i | s)^b
    loss  = - sum over completions g of L_g A_g (lower if A_g >= 0 else omega upper + (1 - omega) lower)
              / sum over g of L_g,   A_g = r_g - group mean

with t_s the share of the L tokens that state s scores, so the inner sums of `lower` are means over hidden
tokens. Plain REINFORCE: no ratio, no clip, no KL. The upper bound is a heuristic (see
`likelihood/bounds.py`). A block-causal model sees clean copies of earlier blocks, so perturbed tokens there
are scored, and disturb nothing.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from rl4dlm.likelihood.block_random import block_random_masks
from rl4dlm.likelihood.bounds import elbo_per_token, eubo_per_token
from rl4dlm.likelihood.elbo import ElboSettings, plan_corruptions
from rl4dlm.likelihood.one_step import prompt_masks
from rl4dlm.likelihood.states import States, is_block_causal, rectangle, unseen_by_sampler
from rl4dlm.loss.reduce import mean_over_rows
from rl4dlm.loss.sandwich import sandwiched
from rl4dlm.recipe.algorithms import SPGConfig
from rl4dlm.trainers.credit import compared_in_group
from rl4dlm.trainers.elbo_states import model_blocks, same_number
from rl4dlm.trainers.estimates import TokenLogp, in_places, place_states
from rl4dlm.trainers.method import (
    BatchRows,
    Likelihood,
    Loss,
    Method,
    Objective,
    Setting,
    StatePlan,
    StepSize,
)
from rl4dlm.types import TrainBatch


def spg(config: SPGConfig, setting: Setting) -> Method[SPGConfig]:
    """n_t random states; the estimate is every log-probability, `[rows, states, completion]`: the bounds are
    not linear in them."""
    estimate = in_places(config.num_masks, separable=False)
    likelihood = Likelihood(random_states(config, setting), estimate, TokenLogp(setting.spec))
    return Method(config, setting, likelihood, between_bounds(config), compared_in_group(config))


def between_bounds(config: SPGConfig) -> Objective:
    """The loss from all log-probabilities, weights and advantages."""

    def objective(
        value: Tensor, rows: BatchRows, old: Tensor | None, ref: Tensor | None, step: StepSize
    ) -> Loss:
        length = rows.num_tokens
        weight = place_states(rows.states.weight.to(value), rows.states, *value.shape[:2])
        lower = elbo_per_token(value, weight, length)
        upper = eubo_per_token(value, weight, exponent=config.eubo_beta)
        bound = sandwiched(lower, upper, rows.advantage, omega=config.omega)
        loss = -(length * rows.advantage * bound).sum() / step.num_tokens
        return loss, {
            "loss/policy": loss,
            "elbo/mean": mean_over_rows(lower, step.num_counted),
            "elbo/mean_square": mean_over_rows(lower.square(), step.num_counted),
            "eubo/mean": mean_over_rows(upper, step.num_counted),
        }

    return objective


def random_states(config: SPGConfig, setting: Setting) -> StatePlan:
    """n_t states of every row, their weights those of an ELBO; prompt tokens are hidden now and then."""
    masks_of = _random_masks if config.mask_scheme == "random" else _block_masks

    def make(batch: TrainBatch, rows: list[int], inner: int) -> States:
        hidden, target, weight = masks_of(config, setting, batch, rows, inner)
        if config.after_eos == "mask":
            hidden = hidden | unseen_by_sampler(torch.from_numpy(batch.loss_mask[rows]))[:, None]
        lengths = [len(batch.prompt_ids[row]) for row in rows]
        prompts = prompt_masks(batch.seed[rows], lengths, config.num_masks, inner, config.p_mask_prompt)
        return replace(rectangle(hidden, weight * target, target=target), prompt_masked=prompts)

    return StatePlan(same_number(config.num_masks), make)


Masks = tuple[Tensor, Tensor, Tensor]
"""Hidden, scored, and the weight of scored positions, `[rows, states, completion]` each."""


def _random_masks(
    config: SPGConfig, setting: Setting, batch: TrainBatch, rows: list[int], inner: int
) -> Masks:
    """A random number of tokens of the whole completion, or of each of a block-causal model's blocks."""
    settings = ElboSettings("double_mc", config.num_masks, 1, "round_half")
    blocks = model_blocks(batch, rows, setting.spec)
    plan = plan_corruptions(batch.seed[rows], batch.loss_mask[rows], inner, settings, blocks)
    weight = plan.weight if plan.weight.ndim == 3 else plan.weight[..., None]
    return plan.is_masked, plan.is_masked, weight


def _block_masks(
    config: SPGConfig, setting: Setting, batch: TrainBatch, rows: list[int], inner: int
) -> Masks:
    """A random number of tokens of one random block of the sampler, and all later blocks."""
    action = batch.loss_mask[rows]
    hidden, inside = block_random_masks(
        batch.seed[rows],
        action,
        _sampled_blocks(setting, batch, rows),
        inner,
        num_states=config.num_masks,
        p_mask_context=config.p_mask_prompt,
    )
    target = hidden & inside if config.restrict_to_block else hidden
    length = torch.from_numpy(action).sum(1).double()[:, None, None]
    share = target.sum(-1, keepdim=True).clamp(min=1) / length.clamp(min=1)
    return hidden, target, 1.0 / (config.num_masks * share)


def _sampled_blocks(setting: Setting, batch: TrainBatch, rows: list[int]) -> Tensor:
    """The blocks that the sampler filled one after the other, int64 `[rows, completion]`."""
    if is_block_causal(setting.spec):
        return model_blocks(batch, rows, setting.spec)
    position = torch.arange(batch.completion_ids.shape[1]).expand(len(rows), -1)
    return position // (setting.block_length or position.shape[1])
