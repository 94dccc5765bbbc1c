"""What a user may ask for: one frozen pydantic class per recipe section.

Names follow TRL where TRL has the concept and the d1 lineage for diffusion. Every field says its unit, its
special values and what it must agree with; `rules/` checks what ties sections together.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from rl4dlm.recipe.plain_values import PathText
from rl4dlm.recipe.rollout_section import RolloutConfig as RolloutConfig
from rl4dlm.recipe.schema import Config as Config


class TokenizerInit(Config):
    """A tokenizer that the package builds, for models made from scratch."""

    type: Literal["char", "byte_bpe"] = "char"
    """`char`: one id per character of the task. `byte_bpe`: byte-level BPE trained on the training texts."""

    vocab_size: int = Field(512, ge=260)
    """Size that BPE training aims at, special tokens included. Not used by `char`."""


class ModelInit(Config):
    """A small model made from scratch, of the architecture that `model.family` names; fields have LLaDA's
    published names."""

    d_model: int = Field(128, gt=0)
    """Width of the residual stream."""

    n_layers: int = Field(2, gt=0)
    """Transformer blocks."""

    n_heads: int = Field(4, gt=0)
    """Must divide `d_model`."""

    n_kv_heads: int | None = Field(None, gt=0)
    """Heads of keys and values, a divisor of `n_heads`; None: as many as `n_heads`."""

    mlp_hidden_size: int = Field(384, gt=0)
    """Width of the gated MLP."""

    max_sequence_length: int = Field(512, gt=0)
    """Longest prompt and completion together, tokens."""

    rope_theta: float = Field(500000.0, gt=0)
    """Base of the rotary position angles."""

    num_experts: int = Field(4, gt=0)
    """Experts of a sparse layer, each as wide as `mlp_hidden_size`; `llada_moe` and `llada2` (even) alone."""

    num_experts_per_tok: int = Field(2, gt=0)
    """Experts that a token uses; at most `num_experts`, half of them in `llada2`."""

    tokenizer: TokenizerInit = TokenizerInit()
    """The tokenizer made with it."""


class ModelConfig(Config):
    """Which model is trained: a folder, a hub name, or one made from scratch."""

    family: Literal["auto", "llada", "llada_moe", "llada2", "dream", "sdar", "a2d", "mdlm", "bd3lm"] = "auto"
    """Architecture; `auto` reads it from the folder's config.json, and is `llada` with `init`. `a2d`: a
    Qwen2, Qwen3 or Llama checkpoint as a diffusion model (to be trained as one first)."""

    block_length: int | None = Field(None, gt=0)
    """Tokens of a block, for families that attend in blocks: with `init`, where an autoregressive checkpoint
    is converted (`a2d`; None: full attention), and where a folder's config.json does not say it."""

    logit_shift: Literal[0, 1] | None = None
    """Which row of a converted model (`a2d`) predicts a token: 1, the row before it, as the autoregressive
    model was trained; 0, its own. None: as the folder says; where a checkpoint is converted, 1 with blocks
    (a model with blocks of one token is then its parent) and 0 with full attention. Other families fix it."""

    mask_token: str | None = None
    """The token that stands for a hidden position, or its id in digits, for a folder where neither
    config.json nor the tokenizer says it."""

    path: PathText | None = None
    """Local folder in Hugging Face layout (safetensors), or a hub name. Exactly one of `path` and `init`."""

    init: ModelInit | None = None
    """Make a model from scratch. Exactly one of `path` and `init`."""

    max_length: int | None = Field(None, gt=0)
    """Longest prompt and completion together, tokens, where it is beyond what the model was made for: the
    rotary angles are NTK-scaled (LongLLaDA), without training good to about six times. None: as published."""

    quantization: Literal["none", "8bit", "4bit"] = "none"
    """Projections in 8 bits (LLM.int8) or 4 (NF4, double quantisation) on trainers and rollout workers, by
    bitsandbytes; needs GPUs, `trainer.lora` and `trainer.zero_stage` below 3."""

    trust_remote_code: bool = False
    """Let the tokenizer run code that comes with the model folder. The model itself never does."""

    chat_template: Literal["auto", "none"] = "auto"
    """`auto`: apply the tokenizer's chat template where it has one. `none`: prompts are used as they are."""

    chat_template_kwargs: dict[str, str | int | float | bool | None] = {}
    """What the chat template reads besides the messages, such as `enable_thinking: false`; for rollouts,
    fine-tuning, preferences, evaluation and `rl4dlm sample` alike. A row's column of this name goes first."""


class SortTask(Config):
    """Sort digits: prompt `872744=`, answer `244778`."""

    name: Literal["sort"] = "sort"
    num_digits: int = Field(6, ge=2, le=32)
    """Digits per instance."""


class CountdownTask(Config):
    """Reach a target with given numbers, each used once: prompt `3,5,8,2=21:`, answer an expression."""

    name: Literal["countdown"] = "countdown"
    num_numbers: int = Field(4, ge=2, le=6)
    """Numbers per instance."""

    max_number: int = Field(9, ge=2, le=99)
    """They are drawn from 1 to this."""

    max_target: int = Field(36, ge=1, le=999)
    """Targets are drawn from 1 to this."""

    operators: str = Field("+-", pattern=r"^[-+*/]+$")
    """Operators that instances are made from."""


class Sudoku4Task(Config):
    """4x4 Sudoku: prompt of 16 digits row by row, 0 for empty; the answer is the full grid."""

    name: Literal["sudoku4"] = "sudoku4"
    min_empty: int = Field(4, ge=1, le=12)
    """Fewest empty cells."""

    max_empty: int = Field(8, ge=1, le=12)
    """Empty cells per puzzle, drawn uniformly from [min_empty, max_empty]; each puzzle has one solution."""


TaskConfig = Annotated[SortTask | CountdownTask | Sudoku4Task, Field(discriminator="name")]


class OverDenoisingFilter(Config):
    """Train only on prompts whose answer is right at some step of a decode and wrong at its end (MDPO,
    arXiv:2508.13148): found by decoding training prompts before the first update and verifying each step."""

    num_prompts: int = Field(2048, gt=0)
    """Training prompts that are tried, each once."""

    temperature: float = Field(0.0, ge=0)
    """Of these decodes; 0 is greedy (published; for Dream 0.1)."""

    block_lengths: list[Annotated[int, Field(gt=0)]] | None = Field(None, min_length=1)
    """Draw the block length of each decode from these (published: 32 and 512); None:
    `rollout.block_length`."""


class DataConfig(Config):
    """Where prompts come from: a procedural task, or a dataset read by `datasets`."""

    task: TaskConfig | None = None
    """A procedural task. Exactly one of `task` and `train`."""

    train: PathText | None = None
    """Hub name, local folder, or a .jsonl, .json, .csv or .parquet file."""

    train_split: str = "train"
    """Split of `train`, in the slicing notation of `datasets` (`train[:1000]`)."""

    eval: PathText | None = None
    """Dataset for evaluation; None: the last `eval.num_prompts` rows of `train` are held out."""

    eval_split: str = "test"
    """Split of `eval`, where `eval` has splits; a single file has the one split `train`."""

    subset: str | None = None
    """Configuration name of a hub dataset."""

    columns: Literal["auto", "trl", "verl", "open-r1", "gsm8k"] = "auto"
    """Column convention; `auto` detects it and says which."""

    prompt_column: str | None = None
    """Column that holds the prompt; overrides `columns`."""

    answer_column: str | None = None
    """Column that holds the reference answer; overrides `columns`. Reward functions get it as `answer`."""

    prompt_template: str | None = None
    """Text around the question, `{prompt}` where it goes; other columns by their names in braces."""

    system_prompt: str | None = None
    """System message put before the question; needs a chat template."""

    max_prompt_length: int = Field(512, gt=0)
    """Tokens; what happens to longer prompts is `overlong`."""

    overlong: Literal["drop", "truncate", "error"] = "drop"
    """Longer prompts are dropped (counted and logged), cut on the left, or an error naming the row."""

    shuffle: bool = True
    """Draw the rows of each epoch in a seeded random order."""

    over_denoising: OverDenoisingFilter | None = None
    """Train only on prompts that the model solves on the way and then spoils; None: on all."""


class RewardFunction(Config):
    """One reward plug-in with its settings."""

    path: PathText
    """Built-in name (`sort`), file (`my/reward.py` or `my/reward.py:function`), dotted name
    (`package.module:function`), or the name of an entry point in group `rl4dlm.rewards`."""

    name: str | None = None
    """Name in metrics; default: the function's."""

    kwargs: dict[str, str | int | float | bool | None] = {}
    """Keyword arguments handed to every call."""


class RewardConfig(Config):
    """Which functions score completions, and within what limits."""

    functions: list[PathText | RewardFunction] = Field(min_length=1)
    """Plug-ins; a plain string is its `path`."""

    reward_weights: list[float] | None = None
    """Weight of each function in the sum; None: 1 for each."""

    timeout_s: float = Field(5.0, gt=0)
    """Deadline per function and call of up to 16 samples, seconds, then per sample of a call that failed; the
    process is killed when it passes."""

    groups_per_call: int | None = Field(None, gt=0)
    """Groups (a prompt's completions) that a function is called with at once; None: as many as come to 16
    completions, at least one. A function that compares prompts asks for the whole batch (`WHOLE_BATCH`)."""

    num_processes: int = Field(1, gt=0)
    """Killable processes that score, per reward worker. Rewards do not depend on it."""

    max_error_rate: float = Field(0.2, ge=0, le=1)
    """Share of samples of one update whose reward may fail; above it the run stops with the cause."""

    correct_threshold: float = 1.0
    """A sample whose deciding value reaches this is correct, in accuracy and pass@k."""

    accuracy: str | None = None
    """Name of the reward function whose value decides correctness (>= `correct_threshold`); None: the total,
    where the functions declare a `RANGE` by which it lies in [0, 1]. Else the mean reward is reported."""


class LoraSettings(Config):
    """LoRA by peft: only adapters are trained and synced."""

    r: int = Field(128, gt=0)
    """Rank of the adapters."""

    lora_alpha: float = Field(64, gt=0)
    """Adapters are scaled by lora_alpha / r."""

    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """0 by default: dropout acts on current log-probabilities and not on those that they are compared with,
    so that ratios differ from 1 where no weight has moved."""

    target_modules: str | None = None
    """Regular expression on module paths; None: attention and MLP projections of the family."""


class TrainerConfig(Config):
    """The update: optimizer, precision, sharding, checkpoints."""

    max_steps: int = Field(100, gt=0)
    """Updates of the policy (rollout, score, update, sync)."""

    learning_rate: float = Field(1e-6, gt=0)
    """Peak rate of AdamW."""

    adam_betas: tuple[float, float] = (0.9, 0.99)
    """Decay of the first and second moments."""

    adam_epsilon: float = Field(1e-8, gt=0)
    """Added to the root of the second moment."""

    weight_decay: float = Field(0.0, ge=0)
    """Decoupled decay of matrices; norms and other vectors are not decayed."""

    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this global norm."""

    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "constant"
    """Shape after the warm-up; `linear` and `cosine` fall to 0 at `max_steps`."""

    warmup_steps: int = Field(0, ge=0)
    """Updates over which the learning rate rises linearly from 0."""

    num_minibatches: int = Field(1, gt=0)
    """Optimizer steps per pass over a batch of rollouts; whole groups are split over them."""

    micro_batch_tokens: int = Field(16384, gt=0)
    """Padded tokens per forward and backward on one rank."""

    bf16: bool = False
    """Train in bfloat16 with float32 master weights; needs a device that supports it."""

    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage: what is sharded over ranks (nothing, optimizer, + gradients, + parameters)."""

    offload_optimizer: bool = False
    """Keep optimizer states in host memory; needs zero_stage >= 1."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass."""

    lora: LoraSettings | None = None
    """Train adapters instead of all weights."""

    save_steps: int = Field(50, gt=0)
    """Updates between checkpoints; the last update is always saved."""

    save_total_limit: int = Field(2, ge=1)
    """Complete checkpoints kept. With `sentinel.enabled` the newest one whose weights are known to be good
    stays besides, so that at least two are there."""


class ClusterConfig(Config):
    """Who runs where."""

    backend: Literal["ray", "local"] = "ray"
    """`ray`: trainer ranks (DeepSpeed), samplers and reward workers are Ray actors. `local`: everything in
    this process on the CPU or one GPU, without Ray and DeepSpeed, for a debugger, a notebook, a single GPU;
    it takes one worker of each kind and trainer.zero_stage = 0."""

    address: str | None = None
    """Ray cluster to join (`auto`, `ray://host:10001`, `host:6379`); None: start a local one that ends with
    the run."""

    num_trainers: int = Field(1, gt=0)
    """DeepSpeed ranks."""

    num_rollout_workers: int = Field(1, gt=0)
    """Actors that sample, each with a copy of the policy."""

    num_reward_workers: int = Field(1, gt=0)
    """Ray actors that hold the reward processes."""

    gpus_per_trainer: float = Field(0.0, ge=0)
    """0: CPU. A rank wants exactly 1, or a fraction when it shares a device with a rollout worker."""

    gpus_per_rollout_worker: float = Field(0.0, ge=0)
    """0: CPU."""

    cpus_per_worker: float = Field(1.0, gt=0)
    """CPUs reserved for each trainer and rollout worker. Colocated workers share one reservation."""

    threads_per_worker: int = Field(1, gt=0)
    """torch threads in each worker; more threads than free cores are many times slower."""

    placement: Literal["colocated", "separate"] = "colocated"
    """`colocated`: rollout worker i shares the resources of trainer i. `separate`: resources of their own."""

    schedule: Literal["sync", "one_step_off"] = "sync"
    """`sync`: sampling and updating alternate, every rollout is of the very weights that learn from it.
    `one_step_off`: the rollouts of the next update are drawn while an update runs, so by weights one update
    older; worth it where samplers and trainers have devices of their own."""

    trainer_resource: str | None = None
    """Custom Ray resource that nodes for trainers carry, e.g. `trainer`; None: any node."""

    rollout_resource: str | None = None
    """Custom Ray resource that nodes for rollout workers carry; needs `placement: separate`."""

    start_timeout_s: float = Field(180.0, gt=0)
    """Bound on waiting for placement and worker start, seconds."""

    rollout_timeout_s: float = Field(1800.0, gt=0)
    """A rollout worker that has not answered a request for this long is replaced, seconds."""

    update_timeout_s: float = Field(3600.0, gt=0)
    """Bound on one update, seconds; afterwards the trainer group counts as dead."""

    max_rollout_restarts: int = Field(8, ge=0)
    """Restarts of rollout workers over a run; one more stops it."""


class EvalConfig(Config):
    """Held-out evaluation in the loop and by `rl4dlm eval`."""

    steps: int = Field(50, ge=0)
    """Updates between evaluations; 0: only before the first and after the last update."""

    num_prompts: int = Field(256, gt=0)
    """Held-out instances."""

    num_samples: int = Field(4, ge=1)
    """Sampled completions per prompt for pass@k, k = num_samples; 1: greedy accuracy only."""

    temperature: float = Field(1.0, gt=0)
    """Temperature of those samples; the greedy pass has 0."""


class SentinelConfig(Config):
    """When a run that falls apart is stopped; the last good checkpoint stays. Thresholds compare the mean of
    the last `window` updates with the run's own beginning, or with its best window for the reward; all but
    `reward_drop` count only while less than four fifths of the best reward are left."""

    enabled: bool = True
    """False: nothing but values that are not finite stops the run."""

    window: int = Field(5, ge=1)
    """Updates that are averaged."""

    reward_drop: float | None = Field(0.5, gt=0, le=1)
    """Largest share of the best reward that may be lost, counted from the lowest reward of any completion.
    The loss must also stand out from the noise of the means by five standard errors. None: not watched."""

    repetition_rise: float | None = Field(0.3, gt=0, le=1)
    """Largest rise of `completions/repetition`; None: not watched."""

    text_left: float | None = Field(0.1, gt=0, lt=1)
    """Smallest share of the initial text (canvas before the first stop id) that must be left; None: not
    watched."""

    entropy_left: float | None = Field(0.02, gt=0, lt=1)
    """Smallest share of the initial `entropy` that must be left; None: not watched."""

    entropy_rise: float | None = Field(1.0, gt=0)
    """Largest rise of `entropy`, nats per token; None: not watched."""


class WarmStartConfig(Config):
    """Masked-diffusion SFT on a procedural task's demonstrations before RL begins."""

    steps: int = Field(300, gt=0)
    """Optimizer steps."""

    batch_size: int = Field(128, gt=0)
    """Demonstrations per step over all ranks."""

    learning_rate: float = Field(1e-3, gt=0)
    """Peak; cosine to 0 after 10 % of linear warm-up."""

    weight_decay: float = Field(0.01, ge=0)
    """Of matrices, during the warm start."""


class TrackingConfig(Config):
    """Where metrics go besides the console and `metrics.jsonl`."""

    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """`auto`: online where an API key is configured, else offline. Nothing ever asks for an account."""

    wandb_project: str = "rl4dlm"
    """Project that runs are logged under."""

    wandb_entity: str | None = None
    """Team or user; None: the account's default."""

    console: Literal["auto", "rich", "plain"] = "auto"
    """`rich`: progress bar and tables; `plain`: a line per update; `auto`: rich on a terminal."""

    num_completions_to_print: int = Field(4, ge=0)
    """Sampled completions shown per evaluation, on the console and in the report."""

    rollouts_every: int = Field(1, ge=0)
    """Updates between parquet files of rollouts; 0: none."""


class RunConfig(Config):
    """Identity of the run."""

    name: str = "run"
    """Letters, digits, dot, underscore, hyphen, at most 100, none of dot and hyphen first; also the name in
    W&B."""

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", name):
            raise PydanticCustomError(
                "run_name",
                "Input should be 1 to 100 letters, digits, dots, underscores and hyphens, the first of them "
                "a letter, a digit or an underscore",
            )
        return name

    output_dir: PathText = "runs"
    """The run's folder is `output_dir/name`."""

    seed: int = Field(0, ge=0, le=2**63 - 1)
    """Root of every random draw."""

    save_on_signal: float = Field(60.0, ge=0)
    """Seconds that the update under way may take after SIGTERM, SIGHUP or Ctrl-C: if it and a checkpoint fit
    in, the run resumes from there, else from the checkpoint before. 0: end at once. Give a scheduler that
    kills later than that the same number (Slurm: `--signal=TERM@90`)."""

    deterministic: bool = True
    """Ask torch for deterministic kernels. On CPU runs are bit-equal either way."""
