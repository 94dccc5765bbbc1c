"""TraceRL (arXiv:2509.06949): clipped token ratios along the trajectory that the sampler took.

    J     = sum over (shrunk) steps t, tokens j in tau(t) of min(rho_j A_j, clip(rho_j) A_j) - trust k3_j
    rho_j = p_theta(y_j | q, tau(1 .. t - 1)) / p_old(same)

The advantage is the completion's, z-scored in its group, or, with a diffusion value model, each token's own
(`trace_value.py`). Departures from the released code: means over global counts, the sampler's block grid,
terminal blocks kept whole, trajectories as token ids, the rollout's temperature in all log-probabilities
(specs/rl-algorithms 4.11).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from rl4dlm.advantage.gae import place_on_last_step
from rl4dlm.advantage.group import group_means
from rl4dlm.advantage.process import chunk_ends, compare_chunks, place_chunks
from rl4dlm.errors import RecipeError
from rl4dlm.likelihood.states import States, is_block_causal
from rl4dlm.likelihood.trajectory import count_steps, shrink_steps
from rl4dlm.recipe.algorithms import TraceRLConfig
from rl4dlm.trainers.base import Metrics, MicroBatch, Setting, StepSize
from rl4dlm.trainers.state_trainer import Rows, sum_states
from rl4dlm.trainers.trajectory_trainer import TrajectoryTrainer
from rl4dlm.types import Denoiser, DenoiserSpec, Rollout, RolloutGroup, TrainBatch, flatten

TOKEN_REWARD = "token_reward"
"""Name in `TrainBatch.extra` of the reward of each token, `[batch, completion]`, for the value model."""


class TraceRL(TrajectoryTrainer):
    """The method as a `Trainer`; holds settings only.

    Example: `TraceRL(TraceRLConfig(shrink=2), Setting(temperature=0.8, spec=denoiser.spec))`.
    """

    def __init__(self, config: TraceRLConfig, setting: Setting | None = None) -> None:
        super().__init__(config, enlarged(config, setting or Setting()), shrink=config.shrink)
        self.scores_steps = config.process_chunk is not None
        if not config.tempered:
            self.temperature = 1.0

    def score(self, denoiser: Denoiser, batch: TrainBatch, micro: MicroBatch, states: States) -> Tensor:
        """See `StateTrainer.score`; under enlargement with the longer blocks."""
        return super().score(with_blocks(denoiser, self.setting.spec), batch, micro, states)

    def keep(self, reward: np.ndarray, group: np.ndarray) -> np.ndarray:
        """Groups that are neither too hard nor too easy: mean reward within `accuracy_range`."""
        if self.config.accuracy_range is None:
            return super().keep(reward, group)
        low, high = self.config.accuracy_range
        mean = group_means(reward, group)
        return (mean >= low) & (mean <= high)

    def adjust(self, rollouts: Sequence[Rollout], reward: np.ndarray) -> np.ndarray:
        """Completions that end within `overlong_margin` tokens of the canvas's end count as wrong: 0."""
        margin = self.config.overlong_margin
        if margin is None:
            return reward
        late = [row.completion_len > len(row.completion_ids) - margin for row in rollouts]
        return np.where(late, np.minimum(reward, 0.0), reward)

    def partial_decodes(self, groups: Sequence[RolloutGroup]) -> list[list[np.ndarray]]:
        """With process rewards: the text up to the end of each chunk."""
        if not self.scores_steps:
            return super().partial_decodes(groups)
        return [[row.completion_ids[:end] for end in self._ends(row)] for row in flatten(groups)]

    def extra(
        self,
        rollouts: Sequence[Rollout],
        reward: np.ndarray,
        group: np.ndarray,
        step_rewards: Sequence[np.ndarray] | None,
    ) -> tuple[dict[str, np.ndarray], Metrics]:
        """The trajectories, and under a value model the reward of each token."""
        arrays, metrics = super().extra(rollouts, reward, group, step_rewards)
        if self.config.value is None:
            return arrays, metrics
        placed = self._token_rewards(rollouts, reward, group, step_rewards, arrays)
        return {**arrays, TOKEN_REWARD: placed}, metrics

    def has_loss(self, batch: TrainBatch) -> np.ndarray:
        """With a value model every token has an advantage of its own."""
        return super().has_loss(batch) | (self.config.value is not None)

    def step_size(self, batch: TrainBatch, rows: Sequence[int] | np.ndarray) -> StepSize:
        """The paper's mean is over decoding steps of blocks, which one state may hold several of."""
        size = super().step_size(batch, rows)
        if self.config.aggregation != "step_mean":
            return size
        counts = count_steps(self.trajectories(batch, [int(row) for row in rows]), self.shrink)
        return replace(size, num_units=max(1, int(counts.sum())))

    def weights(self, rows: Rows, step: StepSize) -> Tensor:
        """Besides the shared aggregations `step_mean` (paper) and `state_mean` (released code)."""
        states = rows.states
        if self.config.aggregation == "step_mean":
            share = states.target / self._targets_of_block(rows).clamp(min=1)
            return sum_states(share, states, len(rows.live)).to(rows.advantage) / step.num_units
        if self.config.aggregation == "state_mean":
            return rows.live.to(rows.advantage) / (rows.live.shape[1] * step.num_units)
        return super().weights(rows, step)

    def _targets_of_block(self, rows: Rows) -> Tensor:
        """Targets in the same block and state, at each position: `[states, completion]`."""
        block = rows.extra["block"].cpu()[rows.states.row]  # [states, completion]
        counts = torch.zeros(len(block), int(block.max()) + 1, dtype=torch.float64)
        counts = counts.scatter_add(1, block, rows.states.target.double())
        return counts.gather(1, block)

    def _ends(self, rollout: Rollout) -> list[int]:
        return chunk_ends(rollout.completion_len, self.config.process_chunk)

    def _token_rewards(
        self,
        rollouts: Sequence[Rollout],
        reward: np.ndarray,
        group: np.ndarray,
        step_rewards: Sequence[np.ndarray] | None,
        arrays: dict[str, np.ndarray],
    ) -> np.ndarray:
        """The compared reward on the tokens of the last step, or of every chunk's last step."""
        actions = self.action_mask(rollouts)
        compared = self.advantages(reward, group)
        chunks = None
        if step_rewards is not None:
            chunks = compare_chunks(step_rewards, group, scale_rewards=self.config.scale_rewards)
        placed: np.ndarray = np.zeros(actions.shape, dtype=np.float32)
        for row, rollout in enumerate(rollouts):
            steps = shrink_steps(
                arrays["step_map"][row], arrays["drawn"][row], arrays["block"][row], self.shrink
            )
            if chunks is None:
                placed[row] = place_on_last_step(compared[row], steps, actions[row])
            else:
                placed[row] = place_chunks(chunks[row], self._ends(rollout), steps, actions[row])
        return placed


def enlarged(config: TraceRLConfig, setting: Setting) -> Setting:
    """The setting with the longer blocks that `enlarge` trains with.

    Raises:
        RecipeError: the model has no blocks, or longer ones already.
    """
    if config.enlarge is None:
        return setting
    spec, longer = setting.spec, config.enlarge.block_length
    if not is_block_causal(spec) or longer % (spec.block_length or 1):
        own = f"blocks of {spec.block_length}" if is_block_causal(spec) else "no blocks (full attention)"
        raise RecipeError(
            f"algorithm.enlarge.block_length = {longer}: the model has {own}.\n"
            "Fix: use a multiple of a block-causal model's block length, or leave algorithm.enlarge out."
        )
    return replace(setting, spec=replace(spec, block_length=longer))


def with_blocks(denoiser: Denoiser, spec: DenoiserSpec) -> Denoiser:
    """The model read with the block length of `spec`: states say who attends to whom."""
    if denoiser.spec.block_length == spec.block_length:
        return denoiser
    return replace(denoiser, spec=replace(denoiser.spec, block_length=spec.block_length))
