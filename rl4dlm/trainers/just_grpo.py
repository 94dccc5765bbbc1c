"""JustGRPO (arXiv:2601.15165): train in the order of reading, and keep parallel decoding for inference.

    l_j  = log p(y_j | q, y_1 .. y_{j-1}, the rest hidden) under the rollout temperature
    loss = - sum over completions and tokens of min(rho_j A, clip(rho_j) A) / (completions x canvas length),
    A    = (r - group mean) / (group std + 1e-4)

Rollouts write one token per step from left to right (`rollout.remasking: ar`), so l_j is exactly the law that
drew the token, and old = current in the first step of an update. It is the trajectory likelihood of TraceRL
with no shrinkage: a full-attention model reads one canvas per token, a block-causal one as many doubled
sequences as its blocks have tokens.
"""

from __future__ import annotations

from rl4dlm.recipe.algorithms import JustGRPOConfig, TokenLevel
from rl4dlm.trainers.credit import compared_in_group
from rl4dlm.trainers.method import Method, Setting
from rl4dlm.trainers.tokens import ClippedTokens, aggregated, recorder
from rl4dlm.trainers.trajectories import replayed, trajectory_likelihood


def just_grpo(config: JustGRPOConfig, setting: Setting) -> Method[TokenLevel]:
    """l_j in the states that the sampler visited one token after the other; rho and loss by `tokens.py`."""
    return Method(
        config,
        setting,
        trajectory_likelihood(setting),
        ClippedTokens(config, aggregated(config.aggregation)),
        compared_in_group(config),
        record=recorder(setting),
        replay=replayed(config, setting),
    )
