"""A method from one function: the loss of each token, given log-probabilities, the advantage and the mask.

    loss = sum over actions i of a_i f(l_i, l_i_old, l_i_ref, A)

with a_i the weight that `aggregation` gives a token. The package estimates the log-probabilities on the
states that `states` names; what the function asks for by name (`old_logp`, `ref_logp`) is evaluated.
"""

from __future__ import annotations

import inspect

import torch
from torch import Tensor

from rl4dlm.errors import PluginError
from rl4dlm.recipe.algorithms import LossConfig
from rl4dlm.trainers.credit import compared_in_group
from rl4dlm.trainers.estimates import PER_TOKEN, TokenLogp
from rl4dlm.trainers.method import BatchRows, Likelihood, Loss, Method, Objective, Setting, StepSize
from rl4dlm.trainers.one_step import hidden_canvas
from rl4dlm.trainers.tokens import aggregated, recorder
from rl4dlm.trainers.trajectories import trajectory_likelihood


def from_loss(config: LossConfig, setting: Setting) -> Method[LossConfig]:
    """The method of a loss function."""
    objective, credit = each_token(config), compared_in_group(config)
    if config.scores_trajectories:
        likelihood, record = trajectory_likelihood(setting), recorder(setting)
        return Method(config, setting, likelihood, objective, credit, record)
    states = hidden_canvas(config.p_mask_prompt)
    return Method(config, setting, Likelihood(states, PER_TOKEN, TokenLogp(setting.spec)), objective, credit)


def each_token(config: LossConfig) -> Objective:
    """The objective of an estimate `[rows, completion]`, nats per token."""
    asked = inspect.signature(type(config).loss).parameters
    share = aggregated(config.aggregation)
    settings = {name: getattr(config, name) for name in asked if name in type(config).model_fields}

    def objective(
        value: Tensor, rows: BatchRows, old: Tensor | None, ref: Tensor | None, step: StepSize
    ) -> Loss:
        given = {
            "logp": value,
            "old_logp": value.detach() if old is None else old,
            "ref_logp": ref,
            "advantage": rows.advantage[:, None],
            "mask": rows.live,
        }
        named = {name: tensor for name, tensor in given.items() if name in asked}
        found = type(config).loss(**named, **settings)
        if not (isinstance(found, Tensor) and found.shape == value.shape):
            what = f"a tensor {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise PluginError(
                f"the loss function {type(config).__name__} returned {what}, not the loss of each token, "
                f"[rows, completion] = {list(value.shape)}.\nFix: return it neither summed nor averaged."
            )
        # Positions that are not scored may hold anything; masking after the product would keep their NaN.
        loss = (share(rows, step) * torch.where(rows.live, found, torch.zeros_like(found))).sum()
        scored = value.detach().masked_select(rows.live).sum()
        return loss, {"loss/policy": loss, "logp/mean": scored / step.num_counted_tokens}

    return objective
