"""Learning Unmasking Policies (arXiv:2512.09106): which positions to commit, learned from the group's rewards
while the language model is frozen.

The states of a completion are its denoising steps as the policy saw them, recorded by the sampler, and the
estimate is the log-probability of each step's drawn decisions, `[rows, completion]` (a canvas has no more
steps than positions). The language model takes no part: the "denoiser" is the policy's network.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rl4dlm.advantage.speed import with_speed
from rl4dlm.decoding import PolicyFeatures, UnmaskPolicy, action_logp
from rl4dlm.likelihood.states import States, rectangle
from rl4dlm.loss.surrogate import clipped_surrogate
from rl4dlm.trainers.base import Metrics, MicroBatch, StepSize
from rl4dlm.trainers.state_trainer import Rows, StateTrainer, place_states, stack_metrics
from rl4dlm.types import Denoiser, Rollout, TrainBatch

NUM_STEPS, DECIDED, CONFIDENCE, ACTION = "num_steps", "decided", "confidence", "action"
"""Names in `TrainBatch.extra`: `[batch]`, and `[batch, steps, completion]` each."""


class UnmaskingPolicy(StateTrainer):
    """One clipped ratio per denoising step; the mean over completions of the mean over each one's steps."""

    separable = True

    def adjust(self, rollouts: Sequence[Rollout], reward: np.ndarray) -> np.ndarray:
        """Correctness times speed."""
        canvas = len(rollouts[0].completion_ids)
        steps = np.array([rollout.num_steps for rollout in rollouts])
        return with_speed(reward, steps, most_steps=canvas, alpha=self.config.alpha)

    def extra(
        self,
        rollouts: Sequence[Rollout],
        reward: np.ndarray,
        group: np.ndarray,
        step_rewards: Sequence[np.ndarray] | None,
    ) -> tuple[dict[str, np.ndarray], Metrics]:
        """What the policy saw and did."""
        return decisions(rollouts), {"reward/with_speed": float(reward.mean(dtype=np.float64))}

    def num_states(self, batch: TrainBatch) -> np.ndarray:
        """The steps of each row."""
        return batch.extra[NUM_STEPS]

    def state_tokens(self, batch: TrainBatch, row: int) -> int:
        """The policy sees the canvas alone."""
        return batch.completion_ids.shape[1]

    def states(self, batch: TrainBatch, rows: Sequence[int], inner: int) -> States:
        """Every step; what it decided on is masked and a target."""
        index = list(rows)
        decided = torch.from_numpy(batch.extra[DECIDED][index])
        every = rectangle(decided, torch.ones(()))
        return every.take(every.number < torch.from_numpy(batch.extra[NUM_STEPS][index])[every.row])

    def score(self, denoiser: Denoiser, batch: TrainBatch, micro: MicroBatch, states: States) -> Tensor:
        """Log-probability of each state's decisions, nats, `[states]`."""
        row, number = np.asarray(micro.rows)[states.row.numpy()], states.number.numpy()
        return decision_logp(
            denoiser.model,
            confidence=torch.from_numpy(batch.extra[CONFIDENCE][row, number]),
            decided=states.is_masked,
            action=torch.from_numpy(batch.extra[ACTION][row, number]),
            step=states.number,
            sharpness=self.setting.policy_sharpness,
            device=denoiser.device,
        )

    def combine(self, logp: Tensor, states: States, num_rows: int) -> Tensor:
        """Each step's log-probability in its place, `[rows, completion]`."""
        return place_states(logp, states, num_rows, states.is_masked.shape[1])

    def objective(
        self, value: Tensor, rows: Rows, old: Tensor | None, ref: Tensor | None, step: StepSize
    ) -> tuple[Tensor, Metrics]:
        """See `StateTrainer.objective`."""
        config, row = self.config, rows.states.row.to(value.device)
        number = rows.states.number.to(value.device)
        before = value.detach() if old is None else old
        surrogate = clipped_surrogate(
            (value - before)[row, number],
            rows.advantage[row],
            clip_low=config.epsilon,
            clip_high=config.epsilon if config.epsilon_high is None else config.epsilon_high,
            log_ratio_clamp=config.log_ratio_clamp,
        )
        share = 1.0 / rows.extra[NUM_STEPS][row].to(value)
        loss = -(share * surrogate.gain).sum() / step.num_rows
        clipped = (surrogate.clipped_low | surrogate.clipped_high).to(value)
        metrics = {
            "loss/policy": loss,
            "clip_ratio/region_mean": (share * clipped).sum() / step.num_rows,
            "ratio/mean": (share * surrogate.ratio).sum() / step.num_counted,
            "ratio/max": surrogate.ratio.max(),
            "ratio/min": surrogate.ratio.min(),
            "logp/mean": (share * value[row, number]).sum() / step.num_counted,
        }
        return loss, stack_metrics(metrics)


def decisions(rollouts: Sequence[Rollout]) -> dict[str, np.ndarray]:
    """The records of a policy's decisions as arrays, padded to as many steps as positions.

    Returns:
        By name: int64 `[rows]`, then bool, float32 and bool `[rows, completion, completion]`.
    """
    size = len(rollouts[0].completion_ids)
    shape = (len(rollouts), size, size)
    decided: np.ndarray = np.zeros(shape, dtype=bool)
    action: np.ndarray = np.zeros(shape, dtype=bool)
    confidence: np.ndarray = np.zeros(shape, dtype=np.float32)
    for i, rollout in enumerate(rollouts):
        record = rollout.trace.actions
        assert record is not None, "an unmasking policy's rollouts hold its decisions"
        step: np.ndarray = np.repeat(np.arange(rollout.num_steps), np.diff(record.ptr))
        decided[i, step, record.pos] = True
        confidence[i, step, record.pos] = record.confidence
        action[i, step, record.pos] = record.action.astype(bool)
    steps = np.array([rollout.num_steps for rollout in rollouts], dtype=np.int64)
    return {NUM_STEPS: steps, DECIDED: decided, CONFIDENCE: confidence, ACTION: action}


def decision_logp(
    policy: UnmaskPolicy,
    *,
    confidence: Tensor,
    decided: Tensor,
    action: Tensor,
    step: Tensor,
    sharpness: float,
    device: str,
) -> Tensor:
    """Log-probability of what was drawn in some steps, as the sampler drew it.

    Args:
        confidence: float32 `[steps, completion]`.
        decided, action: bool, likewise.
        step: int64 `[steps]`, from 0 within the completion.
        sharpness: of the sampler.
        device: where the policy is.

    Returns:
        float32 `[steps]`, nats, on the device, with gradient.
    """
    eligible = decided.to(device)
    time = (step.float() / decided.shape[1]).to(device)
    logits = sharpness * policy(PolicyFeatures(confidence.to(device), eligible, time))
    return action_logp(logits, action.to(device), eligible)


@torch.no_grad()
def decision_gap(
    policy: UnmaskPolicy, rollouts: Sequence[Rollout], *, sharpness: float, device: str
) -> tuple[float, int]:
    """Sum over recorded steps of |log-probability now - at that step|, and the number of steps."""
    arrays = decisions(rollouts)
    row, step = np.nonzero(np.arange(arrays[ACTION].shape[1]) < arrays[NUM_STEPS][:, None])
    given = {name: torch.from_numpy(arrays[name][row, step]) for name in (CONFIDENCE, DECIDED, ACTION)}
    now = decision_logp(policy, **given, step=torch.from_numpy(step), sharpness=sharpness, device=device)
    records = [rollout.trace.actions for rollout in rollouts]
    recorded = np.concatenate([record.logp for record in records if record is not None])
    return float(np.abs(now.cpu().numpy().astype(np.float64) - recorded).sum()), len(recorded)
