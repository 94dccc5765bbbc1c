"""TraceRL (arXiv:2509.06949): clipped token ratios along the trajectory that the sampler took.

    J     = sum over (shrunk) steps t, tokens j in tau(t) of min(rho_j A_j, clip(rho_j) A_j) - trust k3_j
    rho_j = p_theta(y_j | q, tau(1 .. t - 1)) / p_old(same)

The advantage is the completion's, z-scored in its group, or, with a diffusion value model, each token's own
(`trace_value.py`). Departures from the released code: means over global counts, the sampler's block grid,
terminal blocks kept whole, trajectories as token ids, the rollout's temperature in all log-probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rl4dlm.advantage.gae import place_on_last_step
from rl4dlm.advantage.group import group_means
from rl4dlm.advantage.process import chunk_ends, compare_chunks, place_chunks
from rl4dlm.errors import RecipeError
from rl4dlm.likelihood.states import is_block_causal
from rl4dlm.likelihood.trajectory import TrajectoryRecord, count_steps
from rl4dlm.recipe.algorithms import TraceRLConfig
from rl4dlm.trainers.credit import compared_in_group
from rl4dlm.trainers.estimates import ONE_STATE_EACH, TokenLogp, sum_states
from rl4dlm.trainers.method import (
    BatchRows,
    Credit,
    Likelihood,
    Method,
    Recorded,
    Setting,
    StatePlan,
    StepSize,
    UsableRollouts,
)
from rl4dlm.trainers.tokens import ClippedTokens, Share, aggregated
from rl4dlm.trainers.trajectories import record_trajectory, replayed, trajectories_of, visited_states
from rl4dlm.types import Rollout


@dataclass(frozen=True)
class RewardedTrajectories(TrajectoryRecord):
    """Recorded trajectories, and the reward of each token, for the value model."""

    token_reward: np.ndarray
    """float32 `[batch, completion]`."""


def tracerl(config: TraceRLConfig, setting: Setting) -> Method[TraceRLConfig]:
    """The visited states, s steps at a time; rho and loss by `tokens.py`."""
    setting = enlarged(config, setting)
    temperature = setting.law_temperature if config.tempered else 1.0
    score = TokenLogp(setting.spec, temperature, setting.spec.block_length if config.enlarge else None)
    return Method(
        config,
        setting,
        Likelihood(counted_states(config), ONE_STATE_EACH, score),
        ClippedTokens(config, share_of(config.aggregation), config.trust_beta),
        credit_of(config),
        record=lambda usable: Recorded(_recorded(usable, config, setting)),
        replay=replayed(config, setting),
    )


def counted_states(config: TraceRLConfig) -> StatePlan:
    """The visited states. The paper's mean is over decoding steps of blocks, of which one state may hold
    several."""
    visited = visited_states(config.shrink)
    if config.aggregation != "step_mean":
        return visited
    return replace(visited, units=lambda batch: count_steps(trajectories_of(batch), config.shrink))


def share_of(aggregation: str) -> Share:
    """Besides the shared aggregations `step_mean` (paper) and `state_mean` (the released code's form for
    block models, which has the batch's longest completion in place of the canvas)."""
    named = {"step_mean": step_mean, "state_mean": state_mean}
    return named[aggregation] if aggregation in named else aggregated(aggregation)


def step_mean(rows: BatchRows, step: StepSize) -> Tensor:
    """The mean over denoising steps of each one's mean."""
    states = rows.states
    share = states.target / _targets_of_block(rows).clamp(min=1)
    return sum_states(share, states, len(rows.live)).to(rows.advantage) / step.num_units


def state_mean(rows: BatchRows, step: StepSize) -> Tensor:
    """The sum divided by states times canvas length."""
    return rows.live.to(rows.advantage) / (rows.live.shape[1] * step.num_units)


def _targets_of_block(rows: BatchRows) -> Tensor:
    """Targets in the same block and state, at each position: `[states, completion]`."""
    block = torch.from_numpy(rows.recorded(TrajectoryRecord).block)[rows.states.row]  # [states, completion]
    counts = torch.zeros(len(block), int(block.max()) + 1, dtype=torch.float64)
    counts = counts.scatter_add(1, block, rows.states.target.double())
    return counts.gather(1, block)


def credit_of(config: TraceRLConfig) -> Credit:
    """z-scores within the group; groups that are too hard or too easy may be left out, overlong completions
    may count as wrong, and with process rewards the text up to the end of each chunk is scored, too."""
    span, margin = config.accuracy_range, config.overlong_margin

    def neither_too_hard_nor_too_easy(reward: np.ndarray, group: np.ndarray) -> np.ndarray:
        assert span is not None
        mean = group_means(reward, group)
        return (mean >= span[0]) & (mean <= span[1])

    def overlong_is_wrong(rollouts: Sequence[Rollout], reward: np.ndarray) -> np.ndarray:
        assert margin is not None
        late = [row.completion_len > len(row.completion_ids) - margin for row in rollouts]
        return np.where(late, np.minimum(reward, 0.0), reward)

    def texts(rollout: Rollout) -> list[np.ndarray]:
        assert config.process_chunk is not None
        return [
            rollout.completion_ids[:end] for end in chunk_ends(rollout.completion_len, config.process_chunk)
        ]

    return compared_in_group(
        config,
        keep=None if span is None else neither_too_hard_nor_too_easy,
        adjust=None if margin is None else overlong_is_wrong,
        decodes=texts if config.scores_steps else None,
    )


def _recorded(usable: UsableRollouts, config: TraceRLConfig, setting: Setting) -> TrajectoryRecord:
    """The trajectories, and under a value model the compared reward on the tokens of the last step, or of
    every chunk's last step."""
    record = record_trajectory(usable, setting)
    if config.value is None:
        return record
    trajectories = record.trajectories(usable.actions)
    chunks = None
    if usable.step_rewards is not None:
        chunks = compare_chunks(usable.step_rewards, usable.group, scale_rewards=config.scale_rewards)
    placed: np.ndarray = np.zeros(usable.actions.shape, dtype=np.float32)
    for row, rollout in enumerate(usable.rollouts):
        steps, actions = trajectories.row_steps(row, config.shrink), usable.actions[row]
        if chunks is None:
            placed[row] = place_on_last_step(usable.advantage[row], steps, actions)
        else:
            assert config.process_chunk is not None, "rewards of chunks"
            ends = chunk_ends(rollout.completion_len, config.process_chunk)
            placed[row] = place_chunks(chunks[row], ends, steps, actions)
    return RewardedTrajectories(record.rollout_logp, record.step_map, record.drawn, record.block, placed)


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
