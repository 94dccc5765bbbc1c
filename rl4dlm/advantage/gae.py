"""Returns and generalised advantages along the trace of a diffusion rollout.

Source: TraceRL, arXiv:2509.06949, section on the diffusion value model; generalised
advantage estimation, arXiv:1506.02438. A denoising step commits several tokens at once, so time is counted in
steps: step-level quantities are means over the tokens of a step, token-level ones follow from them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TraceAdvantage:
    """Per token, 0 where not trainable; float32 `[completion]`."""

    returns: np.ndarray
    """R_j, what the value model is trained towards."""
    advantage: np.ndarray
    """A_j."""


def trace_gae(
    reward: np.ndarray,
    value: np.ndarray,
    step: np.ndarray,
    trainable: np.ndarray,
    *,
    gamma: float,
    lam: float,
) -> TraceAdvantage:
    """R and A of every token of one rollout.

        R*_t = r*_t + gamma R*_{t+1}              delta*_t = r*_t - V*_t + gamma V*_{t+1}
        A*_t = delta*_t + gamma lam A*_{t+1}      starred: means over the tokens of step t, 0 after the last
        R_j  = r_j + gamma R*_{t+1}               A_j = r_j - V_j + gamma V*_{t+1} + gamma lam A*_{t+1}

    With gamma = lam = 1 and the reward on the last step, A_j = R - V_j.

    Args:
        reward: float `[completion]`, of each token.
        value: float `[completion]`, V_j of the state in which token j was drawn.
        step: int `[completion]`, (shrunk) step ids in the order of time.
        trainable: bool `[completion]`: only these tokens make steps.
        gamma: discount per step.
        lam: weight of longer returns, 0 to 1.
    """
    steps, index = np.unique(step[trainable], return_inverse=True)
    returns, advantage = np.zeros(len(step), np.float32), np.zeros(len(step), np.float32)
    if not len(steps):
        return TraceAdvantage(returns, advantage)
    own_reward, own_value = reward[trainable].astype(np.float64), value[trainable].astype(np.float64)
    size = np.bincount(index)
    mean_reward = np.bincount(index, weights=own_reward) / size
    mean_value = np.append(np.bincount(index, weights=own_value) / size, 0.0)
    later_return, later_advantage = np.zeros(len(steps) + 1), np.zeros(len(steps) + 1)
    for t in range(len(steps) - 1, -1, -1):
        later_return[t] = mean_reward[t] + gamma * later_return[t + 1]
        delta = mean_reward[t] - mean_value[t] + gamma * mean_value[t + 1]
        later_advantage[t] = delta + gamma * lam * later_advantage[t + 1]
    after = index + 1
    returns[trainable] = own_reward + gamma * later_return[after]
    advantage[trainable] = (
        own_reward - own_value + gamma * mean_value[after] + gamma * lam * later_advantage[after]
    )
    return TraceAdvantage(returns, advantage)


def place_on_last_step(reward: float, step: np.ndarray, trainable: np.ndarray) -> np.ndarray:
    """A reward on all tokens of the last step, float32 `[completion]`.

    Args:
        reward: of the rollout, or of the part of it that `trainable` marks.
        step: int `[completion]`, (shrunk) step ids.
        trainable: bool `[completion]`; where none is marked the reward has no place and is dropped.
    """
    if not trainable.any():
        return np.zeros(len(step), np.float32)
    return np.where(trainable & (step == step[trainable].max()), reward, 0.0).astype(np.float32)
