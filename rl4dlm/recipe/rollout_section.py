"""The `rollout` section of a recipe: how completions are sampled."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from rl4dlm.recipe.plain_values import PathText
from rl4dlm.recipe.samplers import (
    CACHES,
    SAMPLERS,
    ConfidenceFrom,
    EarlyCommit,
    EosPolicy,
    RcrConfidence,
    RcrSchedule,
    RcrUpdate,
)
from rl4dlm.recipe.schema import Config, OneOf


class RolloutConfig(Config):
    """How completions are sampled."""

    prompts_per_update: int = Field(16, gt=0)
    """Prompts drawn for one update."""

    num_generations: int = Field(8, gt=0)
    """Completions per prompt: the group G. Group advantages need at least 2."""

    max_completion_length: int = Field(256, gt=0)
    """Canvas length: tokens denoised per completion, prompt excluded."""

    block_length: int = Field(32, gt=0)
    """Tokens denoised together, blocks from left to right; must divide `max_completion_length`."""

    block_lengths: list[Annotated[int, Field(gt=0)]] | None = Field(None, min_length=1)
    """Draw the block length of each prompt's completions from these, anew in every update (MDPO: 128 and
    512); each must fit as `block_length` must. None: always `block_length`, which evaluation uses anyhow."""

    diffusion_steps: int = Field(128, gt=0)
    """Denoising steps per completion; the number of blocks must divide it. At most one step per token."""

    temperature: float = Field(1.0, ge=0)
    """Sampling temperature; 0 is greedy."""

    remasking: Annotated[str, OneOf(SAMPLERS)] = "low_confidence"
    """Which positions a step commits. `low_confidence` (LLaDA: the highest probability of the drawn token),
    `top_probability` (the highest top probability, chosen before drawing: the exact law), `random`, `ar`
    (left to right), `margin`, `neg_entropy`; Dream's four; as many as the model is sure of: `dynamic` (SDAR,
    TraDo), `threshold` and `factor` (Fast-dLLM), the same by top probability (`top_...`: the exact law),
    `entropy_bound` (EB-Sampler), `entropy_bound_cumsum` (SDAR), `entropy_threshold` (dParallel); `rcr` (MDPO)
    and `saber`: take tokens back; `ccd`, `ccd_ds`: what several steps agree on; `learned`: a policy network
    decides. docs/sampling.md compares them."""

    confidence_from: ConfidenceFrom = "raw"
    """Distribution whose probability is the confidence: temperature 1 (LLaDA, d1), the sampling temperature,
    or `filtered`: tempered and cut by `top_p` and `top_k` (MDPO). Dream's four always use `filtered`."""

    top_p: float = Field(1.0, gt=0, le=1)
    """Draw among the likeliest tokens of this mass; 1 keeps all. Training ratios know nothing of the cut:
    leave it at 1 for RL."""

    top_k: int = Field(0, ge=0)
    """Draw among that many likeliest tokens; 0 keeps all. As `top_p`."""

    threshold: float = Field(0.9, ge=0, le=1)
    """Confidence at which `dynamic` and `threshold` commit a position at once; lower is faster."""

    factor: float = Field(1.0, ge=0)
    """`factor` commits the n best positions while (n + 1) (1 - n-th confidence) is below it; higher is
    faster."""

    entropy_budget: float = Field(0.35, ge=0)
    """Nats that `entropy_bound` and its relatives may spend per step; higher is faster."""

    order_temperature: float = Field(0.0, ge=0)
    """Dream's `alg_temp`: draw positions from softmax(confidence / it) instead of taking the best; 0 is off.
    For samplers that go by a schedule."""

    rcr_update: RcrUpdate = "last"
    """Which confidence `rcr` keeps of a position that it wrote several times: the newest (released code), the
    largest or the smallest."""

    rcr_confidence: RcrConfidence = "probability"
    """What `rcr` judges a written token by: its probability, or minus the entropy or the margin of the
    distribution that it was drawn from (released code: `entropy`, `topk_margin`)."""

    rcr_schedule: RcrSchedule = "even"
    """How `rcr` shares out the tokens of a block over its steps: `even`, or by the share of masks that
    MaskGIT leaves at progress r, rounded down as in the released code: 1 - r (`linear`), cos(pi r / 2)
    (`cosine`), 1 - r^2 (`pow2`), 1 - r^3 (`pow3`), `log`, `exp`. Steps that would write nothing are left
    out."""

    policy: PathText = ""
    """The policy of `remasking: learned`: the folder `policy/` of a run of `unmasking_policy`, or a name
    under which one is registered. `new`: an untrained network, for `unmasking_policy` alone."""

    policy_sharpness: float = Field(1.0, gt=0)
    """Multiplies the policy's logits (the paper's beta at test time): above 1 its decisions are surer, 1
    leaves them as they were trained."""

    @field_validator("policy")
    @classmethod
    def _absolute(cls, policy: str) -> str:
        """Folders by their absolute path: workers have working directories of their own."""
        return str(Path(policy).expanduser().resolve()) if "/" in policy else policy

    early_commit: EarlyCommit = "none"
    """Write all remaining tokens at once when the model has made up its mind: the mean gap of its two largest
    logits exceeds a threshold that falls with the steps. `prophet`: over `answer_region`, in three stages;
    `sched_...` (SchED): over all masks, along a line, half a cosine or an exponential. Goes with every
    sampler; for evaluation rather than RL, since these tokens have no log-probability of their own."""

    early_commit_high: float = Field(7.5, gt=0)
    """Gap asked for at the first step, logit units."""

    early_commit_low: float = Field(2.5, ge=0)
    """Gap asked for at the last steps, logit units."""

    answer_region: tuple[int, int] | None = None
    """Canvas positions, from the first up to but not including the second, that hold the answer; only for
    `early_commit: prophet`."""

    cfg_scale: float = Field(0.0, ge=0)
    """Classifier-free guidance away from the logits without the prompt, LLaDA's `cfg_scale`; 0 is off. Twice
    the forwards; training ratios know nothing of it."""

    draft_steps: int = Field(0, ge=0)
    """FreeDave: denoising steps guessed and verified in one forward; 0 is off. The samples are the same, with
    fewer forwards of more rows: for small batches on a GPU. For samplers that go by a schedule."""

    cache: Annotated[str, OneOf(CACHES, "none")] = "none"
    """Keys and values kept between steps. `block`: exact, for block-causal models. Approximate, for full
    attention: `prefix` and `dual` (Fast-dLLM), `dkv_decode`, `dkv_greedy` (dKV-Cache; greedy needs `random`,
    `ar` or `dream_origin`), `free` (FreeCache). Under an approximate cache `replay/logprob_abs_diff` is not
    0."""

    cache_refresh: int = Field(0, ge=0)
    """Steps of a block after which an approximate cache is computed anew; 0: at block starts only."""

    eos_policy: EosPolicy = "block_eos"
    """When the rest of the canvas is filled with end-of-text: once a finished block holds a stop id
    (`block_eos`) or nothing else (`block_all_eos`), once no mask is left before a stop id (`accepted_eos`),
    or never (`none`). None of them changes what stands at or before the first stop id."""

    engine: PathText = "builtin"
    """What samples: our engine, or `package.module:function` that makes an external one; see
    docs/sampling.md."""

    slots: int = Field(64, gt=0)
    """Completions denoised together on one worker."""

    cuda_graphs: bool = False
    """Record the model's layers once per shape and replay them as one launch: for rollouts that are bound by
    launching kernels (a key-value cache, a small model, few rows). Takes memory for each shape. For GPU
    workers and models without experts."""

    record_states: bool = True
    """Keep step maps and log-probabilities of every rollout in the run's parquet files."""

    record_predictions: bool = False
    """Keep there, too, what the sampler would have written at every masked position of every step: 12 bytes
    per masked position and step. Methods that train on it (`mdpo`) get it either way."""
