"""The fully hidden canvas as the one state of every row: diffu-GRPO's and wd1's."""

from __future__ import annotations

from rl4dlm.likelihood.one_step import one_step_states
from rl4dlm.likelihood.states import States
from rl4dlm.trainers.elbo_states import same_number
from rl4dlm.trainers.method import StatePlan
from rl4dlm.types import TrainBatch


def hidden_canvas(p_mask_prompt: float) -> StatePlan:
    """The whole canvas hidden and a random part of the prompt; actions are scored."""

    def make(batch: TrainBatch, rows: list[int], inner: int) -> States:
        lengths = [len(batch.prompt_ids[row]) for row in rows]
        return one_step_states(batch.seed[rows], batch.loss_mask[rows], lengths, inner, p_mask_prompt)

    return StatePlan(same_number(1), make)
