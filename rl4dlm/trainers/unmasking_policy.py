"""Learning Unmasking Policies (arXiv:2512.09106): which positions to commit, learned from the group's rewards
while the language model is frozen.

The states of a completion are its denoising steps as the policy saw them, recorded by the sampler, and the
estimate is the log-probability of each step's drawn decisions, `[rows, completion]` (a canvas has no more
steps than positions). The language model takes no part: the "denoiser" is the policy's network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rl4dlm.advantage.speed import with_speed
from rl4dlm.decoding import PolicyFeatures, UnmaskPolicy, action_logp
from rl4dlm.likelihood.states import States, rectangle
from rl4dlm.loss.surrogate import clipped_surrogate
from rl4dlm.recipe.algorithms import UnmaskingPolicyConfig
from rl4dlm.trainers.credit import compared_in_group
from rl4dlm.trainers.estimates import PER_TOKEN, place_states
from rl4dlm.trainers.method import (
    BatchRows,
    Estimate,
    Likelihood,
    Loss,
    Method,
    Objective,
    Recorded,
    Setting,
    StatePlan,
    StepSize,
    UsableRollouts,
)
from rl4dlm.types import Denoiser, Record, Rollout, TrainBatch


@dataclass(frozen=True)
class Decisions(Record):
    """The records of a policy's decisions, padded to as many steps as positions; arrays `[rows, steps,
    completion]`."""

    num_steps: np.ndarray
    """int64 `[rows]`."""
    decided: np.ndarray
    """bool: positions that were decided on."""
    confidence: np.ndarray
    """float32: the sampler's confidence there."""
    action: np.ndarray
    """bool: commit, as drawn."""


def unmasking_policy(config: UnmaskingPolicyConfig, setting: Setting) -> Method[UnmaskingPolicyConfig]:
    """Every step's decisions; one clipped ratio per step, the mean over completions of each one's mean."""

    def correct_and_fast(rollouts: Sequence[Rollout], reward: np.ndarray) -> np.ndarray:
        """Correctness times speed."""
        steps = np.array([rollout.num_steps for rollout in rollouts])
        return with_speed(reward, steps, most_steps=len(rollouts[0].completion_ids), alpha=config.alpha)

    def record(usable: UsableRollouts) -> Recorded:
        speed = float(usable.reward.mean(dtype=np.float64))
        return Recorded(decisions(usable.rollouts), metrics={"reward/with_speed": speed})

    return Method(
        config,
        setting,
        Likelihood(DECIDED_STEPS, EACH_STEP, DecisionLogp(setting.policy_sharpness)),
        clipped_steps(config),
        compared_in_group(config, adjust=correct_and_fast),
        record,
    )


def _number(batch: TrainBatch) -> np.ndarray:
    return batch.recorded(Decisions).num_steps


def _every_step(batch: TrainBatch, rows: list[int], inner: int) -> States:
    """Every step; what it decided on is masked and a target."""
    record = batch.recorded(Decisions).take(rows)
    every = rectangle(torch.from_numpy(record.decided), torch.ones(()))
    return every.take(every.number < torch.from_numpy(record.num_steps)[every.row])


def _in_its_place(logp: Tensor, states: States, num_rows: int) -> Tensor:
    """Each step's log-probability, `[rows, completion]`: a canvas has no more steps than positions."""
    return place_states(logp, states, num_rows, states.is_masked.shape[1])


DECIDED_STEPS = StatePlan(_number, _every_step)
EACH_STEP = Estimate(_in_its_place, PER_TOKEN.judged, separable=True)


@dataclass(frozen=True)
class DecisionLogp:
    """Log-probability of each state's decisions under the policy's network, nats, `[states]`."""

    sharpness: float

    def __call__(self, denoiser: Denoiser, batch: TrainBatch, rows: list[int], states: States) -> Tensor:
        """See `Score`."""
        record = batch.recorded(Decisions)
        row, number = np.asarray(rows)[states.row.numpy()], states.number.numpy()
        return decision_logp(
            denoiser.model,
            confidence=torch.from_numpy(record.confidence[row, number]),
            decided=states.is_masked,
            action=torch.from_numpy(record.action[row, number]),
            step=states.number,
            sharpness=self.sharpness,
            device=denoiser.device,
        )

    def num_tokens(self, batch: TrainBatch, row: int) -> int:
        """The policy sees the canvas alone."""
        return batch.completion_ids.shape[1]


def clipped_steps(config: UnmaskingPolicyConfig) -> Objective:
    """The loss of log-probabilities of steps, `[rows, completion]`."""

    def objective(
        value: Tensor, rows: BatchRows, old: Tensor | None, ref: Tensor | None, step: StepSize
    ) -> Loss:
        row, number = rows.states.row.to(value.device), rows.states.number.to(value.device)
        before = value.detach() if old is None else old
        surrogate = clipped_surrogate(
            (value - before)[row, number],
            rows.advantage[row],
            clip_low=config.epsilon,
            clip_high=config.clip_high,
            log_ratio_clamp=config.log_ratio_clamp,
        )
        share = 1.0 / rows.tensor(rows.recorded(Decisions).num_steps)[row].to(value)
        loss = -(share * surrogate.gain).sum() / step.num_rows
        clipped = (surrogate.clipped_low | surrogate.clipped_high).to(value)
        return loss, {
            "loss/policy": loss,
            "clip_ratio/region_mean": (share * clipped).sum() / step.num_rows,
            "ratio/mean": (share * surrogate.ratio).sum() / step.num_counted,
            "ratio/max": surrogate.ratio.max(),
            "ratio/min": surrogate.ratio.min(),
            "logp/mean": (share * value[row, number]).sum() / step.num_counted,
        }

    return objective


def decisions(rollouts: Sequence[Rollout]) -> Decisions:
    """What a policy saw and did in some rollouts."""
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
    return Decisions(steps, decided, confidence, action)


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
    found = decisions(rollouts)
    row, step = np.nonzero(np.arange(found.action.shape[1]) < found.num_steps[:, None])
    now = decision_logp(
        policy,
        confidence=torch.from_numpy(found.confidence[row, step]),
        decided=torch.from_numpy(found.decided[row, step]),
        action=torch.from_numpy(found.action[row, step]),
        step=torch.from_numpy(step),
        sharpness=sharpness,
        device=device,
    )
    records = [rollout.trace.actions for rollout in rollouts]
    recorded = np.concatenate([record.logp for record in records if record is not None])
    return float(np.abs(now.cpu().numpy().astype(np.float64) - recorded).sum()), len(recorded)
