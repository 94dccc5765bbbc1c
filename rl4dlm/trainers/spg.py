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

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from rl4dlm.likelihood.block_random import block_random_masks
from rl4dlm.likelihood.bounds import elbo_per_token, eubo_per_token
from rl4dlm.likelihood.elbo import ElboSettings, plan_corruptions
from rl4dlm.likelihood.one_step import prompt_masks
from rl4dlm.likelihood.states import States, is_block_causal, rectangle
from rl4dlm.loss.reduce import mean_over_rows
from rl4dlm.loss.sandwich import sandwiched
from rl4dlm.trainers.base import Metrics, StepSize
from rl4dlm.trainers.state_trainer import Rows, StateTrainer, place_states, stack_metrics
from rl4dlm.types import TrainBatch


class SPG(StateTrainer):
    """The method as a `Trainer`; its estimate is every log-probability, `[rows, states, completion]`."""

    needs_old = False

    def num_states(self, batch: TrainBatch) -> np.ndarray:
        """n_t for every row."""
        return np.full(len(batch), self.config.num_masks)

    def states(self, batch: TrainBatch, rows: Sequence[int], inner: int) -> States:
        """Random states, their weights those of an ELBO; prompt tokens are hidden now and then."""
        rows, count = list(rows), self.config.num_masks
        hidden, target, weight = self._masks(batch, rows, inner)
        if self.config.after_eos == "mask":
            hidden = hidden | torch.from_numpy(_after_the_end(batch.loss_mask[rows]))[:, None]
        lengths = [len(batch.prompt_ids[row]) for row in rows]
        masks = prompt_masks(batch.seed[rows], lengths, count, inner, self.config.p_mask_prompt)
        return replace(rectangle(hidden, weight * target, target=target), prompt_masked=masks)

    def _masks(self, batch: TrainBatch, rows: list[int], inner: int) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden, scored, and the weight of scored positions, `[rows, states, completion]` each."""
        config, action = self.config, batch.loss_mask[rows]
        if config.mask_scheme == "random":
            settings = ElboSettings("double_mc", config.num_masks, 1, "round_half")
            blocks = self.blocks(batch, rows)
            plan = plan_corruptions(batch.seed[rows], action, inner, settings, blocks)
            weight = plan.weight if plan.weight.ndim == 3 else plan.weight[..., None]
            return plan.is_masked, plan.is_masked, weight
        hidden, inside = block_random_masks(
            batch.seed[rows],
            action,
            self._sampled_blocks(batch, rows),
            inner,
            num_states=config.num_masks,
            p_mask_context=config.p_mask_prompt,
        )
        target = hidden & inside if config.restrict_to_block else hidden
        length = torch.from_numpy(action).sum(1).double()[:, None, None]
        share = target.sum(-1, keepdim=True).clamp(min=1) / length.clamp(min=1)
        return hidden, target, 1.0 / (config.num_masks * share)

    def _sampled_blocks(self, batch: TrainBatch, rows: list[int]) -> Tensor:
        """The blocks that the sampler filled one after the other, int64 `[rows, completion]`."""
        if is_block_causal(self.setting.spec):
            return self.blocks(batch, rows)
        position = torch.arange(batch.completion_ids.shape[1]).expand(len(rows), -1)
        return position // (self.setting.block_length or position.shape[1])

    def combine(self, logp: Tensor, states: States, num_rows: int) -> Tensor:
        """Each log-probability at its place: the bounds are not linear in them."""
        return place_states(logp, states, num_rows, self.config.num_masks)

    def objective(
        self, value: Tensor, rows: Rows, old: Tensor | None, ref: Tensor | None, step: StepSize
    ) -> tuple[Tensor, Metrics]:
        """See `StateTrainer.objective`."""
        length = rows.num_tokens
        weight = place_states(rows.states.weight.to(value), rows.states, *value.shape[:2])
        lower = elbo_per_token(value, weight, length)
        upper = eubo_per_token(value, weight, exponent=self.config.eubo_beta)
        bound = sandwiched(lower, upper, rows.advantage, omega=self.config.omega)
        loss = -(length * rows.advantage * bound).sum() / step.num_tokens
        metrics = {
            "loss/policy": loss,
            "elbo/mean": mean_over_rows(lower, step.num_counted),
            "elbo/mean_square": mean_over_rows(lower.square(), step.num_counted),
            "eubo/mean": mean_over_rows(upper, step.num_counted),
        }
        return loss, stack_metrics(metrics)


def _after_the_end(action: np.ndarray) -> np.ndarray:
    """bool `[rows, completion]`: positions beyond the last action."""
    return ~np.logical_or.accumulate(action[:, ::-1], axis=1)[:, ::-1]
