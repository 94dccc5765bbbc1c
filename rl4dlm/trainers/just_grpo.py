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

from rl4dlm.trainers.trajectory_trainer import TrajectoryTrainer


class JustGRPO(TrajectoryTrainer):
    """The method as a `Trainer`; holds settings only."""
