"""The nouns that cross a stage: Prompt, Rollout with its Trace, RolloutGroup, Scores, TrainBatch, Denoiser.

All are frozen; arrays inside are numpy on the CPU (they travel through Ray's object store) except where a
`Denoiser` takes and returns torch tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

# The numbers below stand in the parquet files of runs: none is ever given to anything else.

# How a canvas position got its token: `Trace.kind`.
SAMPLED, FORCED, EARLY_COMMIT, EOS_FILLER = range(4)

# What an event did to a canvas position: `Events.op`.
REVEAL, REMASK, FILL = 0, 1, 3

# Why a rollout ended: `Rollout.stop_reason`.
STOP_EOS, STOP_LENGTH, STOP_EARLY_COMMIT = range(3)


@dataclass(frozen=True)
class Prompt:
    """One row of the data, ready for the model.

    Example: `Prompt(uid=7, prompt="872744=", text="872744=", token_ids=(9, 8, ...),
    columns={"answer": "244778"})`.
    """

    uid: int
    """Stable identity of the row within its split: seeds derive from it, rewards are logged under it."""
    prompt: str | list[dict[str, str]]
    """As the dataset gives it, text or chat messages: what a reward function receives as `prompts`."""
    text: str
    """What the model reads, chat template applied."""
    token_ids: tuple[int, ...]
    """`text` as ids, without padding."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """The row's other columns, handed to reward functions as keyword arguments."""


@dataclass(frozen=True)
class Predictions:
    """What the sampler would have written everywhere: at each step one token per masked canvas position.

    Packed by step: step s has the entries `ptr[s]:ptr[s + 1]`, one per position that was masked before it, on
    the whole canvas (also beyond the active block), in ascending order of positions.
    """

    ptr: np.ndarray
    """int32 `[num_steps + 1]`."""
    token: np.ndarray
    """int32 `[entries]`."""
    logp: np.ndarray
    """float32 `[entries]`, nats: as `Trace.rollout_logp`."""
    confidence: np.ndarray
    """float32 `[entries]`: the sampler's confidence in the position."""


@dataclass(frozen=True)
class Events:
    """What each step did to the canvas, for samplers that remask tokens; packed by step.

    Step s has the entries `ptr[s]:ptr[s + 1]`; the fillers written after the last step follow as one more.
    """

    ptr: np.ndarray
    """int32 `[num_steps + 2]`."""
    pos: np.ndarray
    """int32 `[events]`: canvas position."""
    op: np.ndarray
    """uint8 `[events]`: REVEAL, REMASK or FILL."""
    token: np.ndarray
    """int32 `[events]`: what stands there afterwards (REMASK: the mask token)."""
    logp: np.ndarray
    """float32 `[events]`, nats: as `Trace.rollout_logp`; 0 for REMASK and FILL."""


@dataclass(frozen=True)
class PolicyActions:
    """What an unmasking policy saw and did at each step, for its own training; packed by step.

    Step s has the entries `ptr[s]:ptr[s + 1]`, one per position that it decided on, in ascending order.
    """

    ptr: np.ndarray
    """int32 `[num_steps + 1]`."""
    pos: np.ndarray
    """int32 `[entries]`: canvas position."""
    confidence: np.ndarray
    """float32 `[entries]`: probability of the likeliest token."""
    action: np.ndarray
    """uint8 `[entries]`: 1 = commit, as drawn. In a step without any the likeliest position was committed."""
    logp: np.ndarray
    """float32 `[num_steps]`, nats: of all drawn actions of a step together."""


@dataclass(frozen=True)
class Trace:
    """The order in which a canvas was filled, enough to replay every state.

    Arrays of length `completion` (the canvas) unless said otherwise; positions count from the canvas's start.
    """

    step_map: np.ndarray
    """int32: the global step (from 0) that finally committed the position; fillers carry the step of the
    fill."""
    rank: np.ndarray
    """int16: order among the positions committed in the same step, 0 = picked first."""
    kind: np.ndarray
    """uint8: SAMPLED, FORCED, EARLY_COMMIT or EOS_FILLER."""
    rollout_logp: np.ndarray
    """float32, nats: log-probability of the token at commit time under `softmax(logits / T)` with forbidden
    ids removed, before any top-k or top-p (T = 1 for greedy decoding). 0 for fillers."""
    score: np.ndarray
    """float32: the confidence that the selection used. 0 for fillers."""
    step_block: np.ndarray
    """int16 `[num_steps]`: the active block of each step."""
    step_masked: np.ndarray
    """int32 `[num_steps]`: masked positions on the canvas before each step."""
    predictions: Predictions | None = None
    """Only where the sampler was asked to record them."""
    events: Events | None = None
    """Only where the sampler may remask tokens: without them every step only reveals."""
    actions: PolicyActions | None = None
    """Only where an unmasking policy decided."""


@dataclass(frozen=True)
class Rollout:
    """One sampled completion: token ids (never re-tokenised text), its trace, and what drew it."""

    prompt_uid: int
    sample: int
    """Index within its group, from 0."""
    seed: int
    """Root of the rollout's randomness: `derive_seed(run seed, update, prompt uid, sample, purpose)`."""
    prompt_ids: np.ndarray
    """int32 `[prompt]`, no padding."""
    completion_ids: np.ndarray
    """int32 `[completion]`: the whole canvas."""
    completion_len: int
    """Tokens up to and including the first stop id, else the canvas length."""
    stop_reason: int
    num_steps: int
    """State-changing steps."""
    num_forwards: int
    """Network evaluations in which this row took part."""
    token_forwards: int
    """Query tokens over those forwards, padding excluded."""
    policy_version: int
    """The update whose weights drew it."""
    spec_hash: int
    """Hash of the sampler's settings."""
    trace: Trace
    text: str = ""
    """Decoded completion before the first stop id, special tokens removed."""


@dataclass(frozen=True)
class RolloutGroup:
    """All rollouts of one prompt, ordered by `sample`."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]


@dataclass(frozen=True)
class Scores:
    """Rewards of a batch of rollouts, in the order of the flattened groups.

    A sample whose reward failed has NaN in `reward` and must leave the update.
    """

    reward: np.ndarray
    """float32 `[batch]`: weighted sum over functions; NaN = excluded."""
    components: Mapping[str, np.ndarray]
    """Per function, float32 `[batch]`: the raw values; NaN = None (not applicable) or failed."""
    errors: Mapping[str, int]
    """Failures by kind: `raised`, `timeout`, `wrong_length`, `not_finite`, `died`."""
    failed: np.ndarray
    """bool `[batch]`: some function failed on this sample."""
    messages: tuple[str, ...] = ()
    """The first distinct failure messages, for the log."""
    warnings: Mapping[str, str] = field(default_factory=dict)
    """What the user should be told once in a run though no sample was lost, by a name of the matter."""
    logged: Mapping[str, float] = field(default_factory=dict)
    """Scalars that reward functions logged through TRL's `log_metric`, averaged."""
    extra: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """By column what they logged of each sample through TRL's `log_extra`; None where they logged nothing."""
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """By function the lowest and highest value that it can return, of those that declare them."""
    kinds: Mapping[int, str] = field(default_factory=dict)
    """By index in the batch the kind of failure, of the first function that failed there."""


@dataclass(frozen=True)
class Pair:
    """Two completions of one prompt of which the first is preferred, as a dataset recorded them.

    Example: `Pair(uid=3, prompt_ids=..., chosen_ids=[5, 7, 1, 1], rejected_ids=[5, 1, 1, 1], chosen_len=3,
    rejected_len=2)` where 1 ends the text.
    """

    uid: int
    """The prompt's."""
    prompt_ids: np.ndarray
    """int32 `[prompt]`, no padding."""
    chosen_ids: np.ndarray
    """int32 `[completion]`: the whole canvas, filled with end-of-text."""
    rejected_ids: np.ndarray
    """int32 `[completion]`, likewise."""
    chosen_len: int
    """Tokens up to and including the first end-of-text, else the canvas length."""
    rejected_len: int
    """Likewise."""


@dataclass(frozen=True)
class Record:
    """What a method keeps of each row of a batch: arrays whose first dimension counts the rows."""

    def take(self, rows: Sequence[int] | np.ndarray) -> Self:
        """Some of the rows, in the order given."""
        index = np.asarray(rows, dtype=np.int64)
        chosen = {item.name: getattr(self, item.name)[index] for item in fields(self)}
        return replace(self, **chosen)


Kept = TypeVar("Kept", bound=Record)


@dataclass(frozen=True)
class TrainBatch:
    """What an update needs: sequences, which positions train, advantages, seeds, and the method's own record.

    Rows are in the global order of the flattened groups; ranks take shards of it.
    """

    prompt_ids: tuple[np.ndarray, ...]
    """Per row int32 `[prompt]`, no padding."""
    completion_ids: np.ndarray
    """int32 `[batch, completion]`."""
    loss_mask: np.ndarray
    """bool `[batch, completion]`: positions whose tokens are the policy's actions."""
    advantage: np.ndarray
    """float32 `[batch]`, centred in its group."""
    seed: np.ndarray
    """int64 `[batch]`: root of the row's corruption masks."""
    group: np.ndarray
    """int32 `[batch]`: index of the row's group."""
    policy_version: int
    """Weights that drew the rollouts."""
    record: Record | None = None
    """What the method's states and objective need besides."""
    token_advantage: np.ndarray | None = None
    """float32 `[batch, ...]`: advantages that are finer than a row's, of the estimate's shape; they take the
    place of `advantage` in the objective."""
    importance: np.ndarray | None = None
    """float32 `[batch, ...]`: importance weights, of the estimate's shape; None: 1."""

    def __len__(self) -> int:
        return len(self.prompt_ids)

    def recorded(self, kind: type[Kept]) -> Kept:
        """The method's record, known to be of a kind."""
        assert isinstance(self.record, kind), f"the batch has no {kind.__name__}"
        return self.record


@dataclass(frozen=True)
class DenoiserSpec:
    """The facts about a model that samplers, losses and ratios must agree on, in one place."""

    mask_id: int
    pad_id: int
    eos_id: int
    """Fills the canvas after the end of text."""
    stop_ids: tuple[int, ...]
    """Ids that end the text; contains `eos_id`."""
    vocab_size: int
    """Rows of the embedding matrix."""
    forbidden_ids: tuple[int, ...]
    """Ids that may never be proposed (the mask, rows beyond the tokenizer): logit -inf in sampler and
    trainer."""
    attention: str = "full"
    """`full` or `block_causal`."""
    block_length: int | None = None
    """Block length that a block-causal model was trained with; None for full attention."""
    max_length: int = 1 << 30
    """Longest sequence (prompt and completion) that the positions allow."""
    logit_shift: int = 0
    """1: the network's row before a token predicts it. The model aligns its logits itself; a window of a
    sequence beside a cache must hold the token before the first one that is selected."""


class AttentionLayout(Protocol):
    """Where tokens stand and whom they attend to; see `rl4dlm.diffusion.blocks`."""

    @property
    def position(self) -> Tensor:
        """int64 `[rows, queries]`."""
        ...

    def visible(self) -> Tensor:
        """bool `[rows, queries, keys]`."""
        ...


class KeyValueStore(Protocol):
    """Keys and values of attention that a model writes and reads; see `rl4dlm.rollout.caches`."""

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keep the queries' own keys and values, and return all that they attend to.

        Args:
            key_states: `[rows, kv heads, queries, head size]`, after the rotary embedding.
            value_states: the same shape.
            layer_idx: from 0.

        Returns:
            Keys and values `[rows, kv heads, keys, head size]`.
        """
        ...


class Run(Protocol):
    """Runs a model's layers in another way than kernel by kernel; see `rl4dlm.rollout.graphs`."""

    def __call__(
        self,
        states: Callable[..., Tensor],
        input_ids: Tensor,
        mask: Tensor | None,
        positions: Tensor,
        cache: Any,
    ) -> Tensor:
        """`states(input_ids, mask, positions, cache)`: `[rows, length, hidden]`, valid until the next call.

        Args:
            states: embedding and layers.
            input_ids: int64 `[rows, length]`.
            mask: bool `[rows or 1, 1, length or 1, keys]`, True = may attend, or None where all may.
            positions: int64 `[rows or 1, length]`.
            cache: a `KeyValueStore`, or None.
        """
        ...


@dataclass(frozen=True)
class Denoiser:
    """A diffusion language model as everything above `models/` sees it: index i scores token i.

    `model` is the module, or a DeepSpeed engine around it, callable as
    `model(input_ids, attention_mask, select=..., labels=None, temperature=1.0, layout=None,
    cache=None, run=None)` with

        input_ids       int64 [rows, length], mask token where a position is hidden
        attention_mask  bool [rows, length], False = padding (neither attended nor counted in positions);
                        None = all real
        select          bool [rows, length], the positions whose logits are wanted; None = all
        labels          int64 [rows, length]: return log-probabilities of these ids instead of logits
        cache           keys and values kept between forwards (see `rl4dlm.rollout.caches`): the inputs are
                        part of the sequence, and layout says where they stand and what they attend to.
                        Only samplers use it
        run             runs the layers, instead of one kernel after the other. Only samplers use it
        layout          positions and attention other than the model's own (doubled, packed); it says
                        which tokens are padding, too, so attention_mask is None beside it. None = as the
                        model samples: all real tokens, or blocks from the first real token on

    It returns float32 logits `[selected, vocab]` in row-major order of `select`, forbidden ids at -inf, or,
    with labels, float32 log-probabilities `[selected]` (nats) under `softmax(logits / temperature)`, computed
    without keeping a `[selected, vocab]` tensor for the backward pass.
    """

    model: Callable[..., Tensor]
    spec: DenoiserSpec
    device: str = "cpu"
    """Where the inputs must lie."""
    run: Run | None = None
    """What runs the layers for `logits`; None: they run kernel by kernel."""

    def logits(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        select: Tensor,
        layout: AttentionLayout | None = None,
        cache: KeyValueStore | None = None,
    ) -> Tensor:
        """Float32 `[selected, vocab]`."""
        return self.model(input_ids, attention_mask, select=select, **_given(layout, cache, self.run))

    def token_logp(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        select: Tensor,
        labels: Tensor,
        temperature: float = 1.0,
        layout: AttentionLayout | None = None,
    ) -> Tensor:
        """Float32 `[selected]`, nats: log-probability of `labels` at the selected positions."""
        return self.model(
            input_ids,
            attention_mask,
            select=select,
            labels=labels,
            temperature=temperature,
            **_given(layout),
        )


def _given(
    layout: AttentionLayout | None, cache: KeyValueStore | None = None, run: Run | None = None
) -> dict[str, Any]:
    """Keywords only where they are used: a model without layouts or caches need not know them."""
    given = {"layout": layout, "cache": cache, "run": run}
    return {name: value for name, value in given.items() if value is not None}


def flatten(groups: Sequence[RolloutGroup]) -> list[Rollout]:
    """The rollouts of all groups in the canonical order: group by group, sample by sample."""
    return [rollout for group in groups for rollout in group.rollouts]
