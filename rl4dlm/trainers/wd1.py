"""Weighted log-likelihood without ratios (wd1, arXiv:2507.08838).

    w+- = softmax(+-psi A) within a group,   A = r - group mean
    loss = mean over groups of sum over their completions g of (w-_g - w+_g) log pi(y_g)

with d1's one-step estimate of log pi, summed over the actions and not divided by their number. Neither old
nor reference policy is evaluated. Departs from the released code: the softmax runs over a group, whatever the
devices hold, and so do both sums of weights. Not covered: rollouts from a mixture with the reference (its
`beta` > 0).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from rl4dlm.advantage.weights import softmax_weights
from rl4dlm.loss.reduce import mean_over_rows
from rl4dlm.recipe.algorithms import Softmaxed, WD1Config
from rl4dlm.trainers.credit import group_advantages
from rl4dlm.trainers.estimates import SUM_OVER_STATES, TokenLogp
from rl4dlm.trainers.method import BatchRows, Credit, Likelihood, Loss, Method, Setting, StepSize
from rl4dlm.trainers.one_step import hidden_canvas


def wd1(config: WD1Config, setting: Setting) -> Method[WD1Config]:
    """log pi from the hidden canvas; the loss of a group is the sum over its completions."""
    likelihood = Likelihood(hidden_canvas(config.p_mask_prompt), SUM_OVER_STATES, TokenLogp(setting.spec))
    return Method(config, setting, likelihood, weighted_likelihood, Credit(weights(config, sums_group=True)))


def weights(config: Softmaxed, *, sums_group: bool) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """A_g = w+_g - w-_g from rewards and groups, float32 `[batch]`.

    Args:
        sums_group: times the size of the group, so that the mean over rows is one of groups' sums.
    """
    advantages = group_advantages(config)

    def difference(reward: np.ndarray, group: np.ndarray) -> np.ndarray:
        raised, lowered = softmax_weights(advantages(reward, group), group, psi=config.psi)
        _, index, size = np.unique(group, return_inverse=True, return_counts=True)
        scale = size[index] if sums_group else 1.0
        return (scale * (raised - lowered)).astype(np.float32)

    return difference


def weighted_likelihood(
    value: Tensor, rows: BatchRows, old: Tensor | None, ref: Tensor | None, step: StepSize
) -> Loss:
    """- mean over rows of A_g log pi(y_g); `value` is log pi, `[rows]` nats."""
    loss = -mean_over_rows(rows.advantage * value, step.num_rows)
    per_token = mean_over_rows(value.detach() / rows.num_tokens, step.num_counted)
    return loss, {"loss/policy": loss, "logp/mean": per_token}
