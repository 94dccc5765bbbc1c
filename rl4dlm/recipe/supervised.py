"""The sections that only a recipe of `rl4dlm sft` has."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rl4dlm.recipe.objectives import ObjectiveConfig
from rl4dlm.recipe.sections import Config, DataConfig


class SFTConfig(Config):
    """Supervised fine-tuning: what is learned of a completion, and how a step's rows are averaged."""

    objective: ObjectiveConfig | None = None
    """The objective; None: `random_mask` for models with full attention, `block` for block-causal ones."""

    batch_size: int = Field(64, gt=0)
    """Rows per optimizer step over all ranks; `trainer.micro_batch_tokens` bounds what one pass holds."""

    fill: Literal["auto", "canvas", "batch", "block", "none"] = "auto"
    """What follows the first end-of-text. `canvas`: end-of-text up to `rollout.max_completion_length`,
    trained like any token, so that the model learns to end within a canvas. `batch`: up to the longest
    completion of the step (LLaDA's published code). `block`: up to the end of the block. `none`: nothing.
    `auto`: `canvas` for full attention, `block` for block-causal models; texts without a prompt are never
    filled."""

    loss_average: Literal["row", "token"] = "row"
    """`row`: the mean over rows of each row's loss per token (LLaDA). `token`: the loss per token of the
    whole step, so long rows weigh more (SDAR, Dream). Counts are global either way."""

    elbo_states: int = Field(8, ge=1)
    """Masked states per held-out row in the evaluation's ELBO; mask rates are stratified over them."""


class SFTDataConfig(DataConfig):
    """Where examples come from: a procedural task, or rows with a prompt and a completion."""

    completion_column: str | None = None
    """Column that holds the completion, text or the assistant's messages; None: `completion`, the last of
    `messages`, the answer column of `columns`, or, for texts without a prompt, `text`."""

    min_reward: float | None = None
    """Keep only rows whose column `reward` reaches this: fine-tuning on a run's own good rollouts."""

    task_answers: Literal["demonstrations", "gold"] = "demonstrations"
    """Completions of a procedural task: its `demonstrations`, often wrong, or its `gold` answers."""
