"""Methods that score every token given what the sampler saw when it drew it: TraceRL and its relatives.

The recorded step map says which tokens were hidden at each step; `shrink` consecutive steps are merged
(TraceRL, arXiv:2509.06949). Full-attention models read one masked canvas per (shrunk) step, block-causal
ones a doubled sequence per round of steps, one of every block.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rl4dlm.likelihood.states import States, block_of_positions
from rl4dlm.likelihood.trajectory import Trajectories, count_states, trajectory_arrays, trajectory_states
from rl4dlm.trainers.base import Metrics, Setting
from rl4dlm.trainers.token_trainer import TokenTrainer
from rl4dlm.types import Rollout, TrainBatch


class TrajectoryTrainer(TokenTrainer):
    """A `TokenTrainer` over the states of recorded trajectories; each action is scored once."""

    separable = True

    def __init__(self, config: object, setting: Setting | None = None, *, shrink: int = 1) -> None:
        super().__init__(config, setting)
        self.shrink = shrink
        # Greedy rollouts are recorded at temperature 1.
        self.temperature = self.setting.temperature or 1.0

    def extra(
        self,
        rollouts: Sequence[Rollout],
        reward: np.ndarray,
        group: np.ndarray,
        step_rewards: Sequence[np.ndarray] | None,
    ) -> tuple[dict[str, np.ndarray], Metrics]:
        """Step maps, drawn positions, the sampler's log-probabilities and the model's blocks."""
        lengths = [len(rollout.prompt_ids) for rollout in rollouts]
        completion = len(rollouts[0].completion_ids)
        block = block_of_positions(lengths, completion, self.setting.spec).numpy()
        return {**trajectory_arrays(rollouts), "block": block}, {}

    def trajectories(self, batch: TrainBatch, rows: Sequence[int]) -> Trajectories:
        """What is known of some rows' trajectories."""
        index = list(rows)
        return Trajectories(
            step_map=batch.extra["step_map"][index],
            drawn=batch.extra["drawn"][index],
            trainable=batch.loss_mask[index],
            block=self.blocks(batch, index).numpy(),
        )

    def num_states(self, batch: TrainBatch) -> np.ndarray:
        """The most shrunk steps of any block of each row."""
        return count_states(self.trajectories(batch, range(len(batch))), self.shrink)

    def states(self, batch: TrainBatch, rows: Sequence[int], inner: int) -> States:
        """The visited states, the same in every pass."""
        return trajectory_states(self.trajectories(batch, rows), self.shrink)
