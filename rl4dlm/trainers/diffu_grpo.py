"""diffu-GRPO (d1, arXiv:2504.12216): one-step mean-field log-probabilities with a randomly masked prompt.

    l_i  = log p(y_i | prompt with a share p_q hidden, completion hidden)          one forward for all i
    loss = mean over actions of -min(rho_i A, clip(rho_i) A) + beta k3_i(theta, ref),   A = r - group mean

A new prompt mask in every inner pass regularises reuse of the rollouts. Departures from the released code:
masks come from row seeds, so old and current policy see the same; old values are taken in evaluation mode.
"""

from __future__ import annotations

from rl4dlm.recipe.algorithms import DiffuGRPOConfig, TokenLevel
from rl4dlm.trainers.method import Method, Setting
from rl4dlm.trainers.one_step import hidden_canvas
from rl4dlm.trainers.tokens import token_method


def diffu_grpo(config: DiffuGRPOConfig, setting: Setting) -> Method[TokenLevel]:
    """l_i from the hidden canvas (`likelihood/one_step.py`), rho and loss by `tokens.py`."""
    return token_method(config, setting, hidden_canvas(config.p_mask_prompt))
