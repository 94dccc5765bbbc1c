"""The settings of a sampler in one hashable record: what a rollout depends on besides weights and seed."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, get_args

from rl4dlm.decoding.confidence import ConfidenceFrom
from rl4dlm.decoding.early import EarlyCommit
from rl4dlm.decoding.proposal import Law
from rl4dlm.decoding.revision import RcrUpdate
from rl4dlm.decoding.schedules import block_schedule
from rl4dlm.decoding.stopping import EosPolicy
from rl4dlm.decoding.strategies import STRATEGIES, Strategy
from rl4dlm.diffusion.seeds import derive_seed
from rl4dlm.errors import RecipeError

if TYPE_CHECKING:
    from rl4dlm.recipe.sections import RolloutConfig


@dataclass(frozen=True)
class SamplerSpec:
    """How a canvas is denoised.

    Ids that may never be proposed belong to the model (`DenoiserSpec.forbidden_ids`).

    Example: `SamplerSpec(gen_len=256, block_length=32, steps=128, temperature=1.0)`.
    """

    gen_len: int
    """Canvas length in tokens, prompt excluded."""
    block_length: int
    """Tokens denoised together, blocks from left to right; divides `gen_len`."""
    steps: int
    """Denoising steps over the whole canvas; a multiple of the number of blocks, at most `gen_len`."""
    temperature: float = 1.0
    """Divides the logits before a token is drawn; 0 takes the most likely token."""
    remasking: str = "low_confidence"
    """Name of the strategy: a key of `STRATEGIES`."""
    confidence_from: ConfidenceFrom = "raw"
    """Distribution that confidences are read from: `raw` (temperature 1), `tempered` (the sampling
    temperature; greedy decoding has none, so there it is `raw` too) or `filtered` (tempered and cut by
    `top_p` and `top_k`: what tokens are drawn from)."""
    eos_policy: EosPolicy = "block_eos"
    """What ends a row early, see `ends_row`: a finished block that holds a stop id (`block_eos`) or nothing
    else (`block_all_eos`), a stop id before which no mask is left (`accepted_eos`), or nothing (`none`)."""
    top_p: float = 1.0
    """Draw among the likeliest ids of this mass; 1 keeps all. Recorded log-probabilities do not see the
    cut."""
    top_k: int = 0
    """Draw among that many likeliest ids; 0 keeps all."""
    threshold: float = 0.9
    """Confidence at which a position is committed at once; read by `dynamic`, `threshold` and
    their `top_` forms."""
    factor: float = 1.0
    """Read by `factor`: larger commits more."""
    entropy_budget: float = 0.35
    """Nats; read by the `entropy_...` strategies: larger commits more."""
    order_temperature: float = 0.0
    """Dream's `alg_temp`: positions are drawn from softmax(confidence / it); 0 takes the best."""
    rcr_update: RcrUpdate = "last"
    """Which confidence `rcr` keeps of a position that was written several times."""
    cfg_scale: float = 0.0
    """Classifier-free guidance: logits are moved away from those without the prompt; 0 is off. Doubles the
    forwards."""
    early_commit: EarlyCommit = "none"
    """Write everything at once as soon as the model has made up its mind: `prophet`, `sched_...`."""
    early_commit_high: float = 7.5
    """Logit gap that ends the row at its first step."""
    early_commit_low: float = 2.5
    """Logit gap that ends it at its last steps."""
    answer_region: tuple[int, int] | None = None
    """Canvas positions from the first up to, not including, the second that `prophet` looks at."""
    draft_steps: int = 0
    """FreeDave: steps that are guessed and verified in one forward; 0 is off. Changes no sample."""
    policy: str = ""
    """Name of the policy that `learned` asks, see `register_policy`."""
    policy_sharpness: float = 1.0
    """Multiplies its logits: above 1 decisions are surer."""
    cache: str = "none"
    """Name of a cache plan: a key of `CACHES` in `rl4dlm.rollout.caches`."""
    cache_refresh: int = 0
    """Steps of a block after which an approximate cache is computed anew; 0: at block starts only."""
    record_predictions: bool = False
    """Record at every step a token for each masked position (`Trace.predictions`); changes no sample."""

    def __post_init__(self) -> None:
        check_layout(self)
        check_choices(self)
        check_combinations(self)

    @classmethod
    def from_config(cls, config: RolloutConfig, *, temperature: float | None = None) -> SamplerSpec:
        """The sampler that a recipe's `rollout` section asks for.

        Args:
            config: the section.
            temperature: replaces the section's temperature (evaluation has its own); None keeps it.
        """
        return cls(
            gen_len=config.max_completion_length,
            block_length=config.block_length,
            steps=config.diffusion_steps,
            temperature=config.temperature if temperature is None else temperature,
            remasking=config.remasking,
            confidence_from=config.confidence_from,
            eos_policy=config.eos_policy,
            **{name: getattr(config, name) for name in _OPTIONAL},
        )

    @property
    def num_blocks(self) -> int:
        """Blocks of the canvas."""
        return self.gen_len // self.block_length

    @property
    def steps_per_block(self) -> int:
        """Denoising steps that each block gets."""
        return self.steps // self.num_blocks

    @property
    def strategy(self) -> Strategy:
        """What `remasking` names."""
        return STRATEGIES[self.remasking]

    @property
    def is_static(self) -> bool:
        """Whether each step commits a number of positions that is known beforehand, by the logits alone."""
        return self.remasking in STATIC and self.early_commit == "none"

    @property
    def confidence_law(self) -> Law:
        """The distribution that confidences are read from."""
        source = self.strategy.confidence_from or self.confidence_from
        if source == "raw":
            return Law()
        law = Law(float(self.temperature) or 1.0)
        return law._replace(top_p=self.top_p, top_k=self.top_k) if source == "filtered" else law

    def schedule(self) -> tuple[int, ...]:
        """Positions that the steps of a whole block commit, where the strategy goes by a schedule."""
        return block_schedule(self.strategy.schedule, self.block_length, self.steps_per_block)

    def describe(self) -> dict[str, Any]:
        """The settings that samples depend on, under their recipe names: written beside every score.

        Settings that another strategy reads are left out, and so are the ones that are off.
        """
        read = [name for name in self.strategy.settings if name not in _EXTRAS]
        extra = [name for name in _EXTRAS if getattr(self, name) != _DEFAULTS[name]]
        return {
            "max_completion_length": self.gen_len,
            "block_length": self.block_length,
            "diffusion_steps": self.steps,
            "temperature": float(self.temperature),
            "remasking": self.remasking,
            "confidence_from": self.confidence_from,
            "eos_policy": self.eos_policy,
            **{name: getattr(self, name) for name in (*read, *extra)},
        }

    def hash(self) -> int:
        """63-bit fingerprint of `describe()`: equal settings give equal hashes on every platform."""
        return derive_seed("sampler", json.dumps(self.describe(), sort_keys=True))


# Settings that only some strategies read.
_STRATEGY_SETTINGS = (
    *("threshold", "factor", "entropy_budget", "order_temperature", "rcr_update"),
    *("policy", "policy_sharpness"),
)
# Settings that every strategy reads, and that are described where they are not at their defaults. A draft
# changes no sample, so it is not among them.
_EXTRAS = (
    *("top_p", "top_k", "order_temperature", "cfg_scale", "early_commit", "answer_region"),
    *("early_commit_high", "early_commit_low", "cache", "cache_refresh"),
)
_OPTIONAL = tuple(dict.fromkeys((*_EXTRAS, *_STRATEGY_SETTINGS, "draft_steps")))


def check_layout(spec: SamplerSpec) -> None:
    """Refuse a canvas, blocks and steps that do not fit each other.

    Raises:
        RecipeError: naming the setting and the remedy.
    """
    for key, value in (
        ("max_completion_length", spec.gen_len),
        ("block_length", spec.block_length),
        ("diffusion_steps", spec.steps),
    ):
        if value < 1:
            raise RecipeError(f"rollout.{key} = {value} is not positive.\nFix: use 1 or more.")
    if spec.gen_len % spec.block_length:
        raise RecipeError(
            f"rollout.block_length = {spec.block_length} does not divide "
            f"rollout.max_completion_length = {spec.gen_len}.\nFix: use a divisor."
        )
    if spec.steps % spec.num_blocks or spec.steps > spec.gen_len:
        raise RecipeError(
            f"rollout.diffusion_steps = {spec.steps} does not fit {spec.num_blocks} blocks of "
            f"{spec.block_length} tokens.\n"
            f"Fix: use a multiple of {spec.num_blocks} that is at most {spec.gen_len}."
        )


def check_choices(spec: SamplerSpec) -> None:
    """Refuse numbers out of range, names that nothing answers to, and settings that the strategy ignores.

    Raises:
        RecipeError: naming the setting and the remedy.
    """
    for key, value, known in (
        ("remasking", spec.remasking, tuple(STRATEGIES)),
        ("confidence_from", spec.confidence_from, get_args(ConfidenceFrom)),
        ("eos_policy", spec.eos_policy, get_args(EosPolicy)),
        ("rcr_update", spec.rcr_update, get_args(RcrUpdate)),
        ("early_commit", spec.early_commit, get_args(EarlyCommit)),
    ):
        if value not in known:
            raise RecipeError(f"rollout.{key} = {value!r} is not known.\nFix: use {' or '.join(known)}.")
    for key, low, high, remedy in (
        ("temperature", 0, math.inf, "0 for greedy decoding, 0.6 to 1.0 for sampling"),
        ("top_p", 0, 1, "1 to keep all ids, 0.9 to 0.95 to cut the tail"),
        ("top_k", 0, math.inf, "0 to keep all ids"),
        ("threshold", 0, 1, "0.9"),
        ("factor", 0, math.inf, "1"),
        ("entropy_budget", 0, math.inf, "0.35"),
        ("order_temperature", 0, math.inf, "0 to take the best positions"),
        ("cfg_scale", 0, math.inf, "0 for none"),
        ("policy_sharpness", 0, math.inf, "1 to decide as in training, more to be surer"),
        ("draft_steps", 0, math.inf, "0 for none, 4 to 8 for drafts"),
        ("cache_refresh", 0, math.inf, "0 for none"),
    ):
        value = getattr(spec, key)
        if not (low <= value <= high and value < math.inf) or (key == "top_p" and value == 0):
            above = "0 up" if high == math.inf else f"0 to {high}"
            raise RecipeError(
                f"rollout.{key} = {value} is not a finite number from {above}.\nFix: use {remedy}."
            )
    for key in _STRATEGY_SETTINGS:
        if key not in spec.strategy.settings and getattr(spec, key) != _DEFAULTS[key]:
            readers = [name for name, strategy in STRATEGIES.items() if key in strategy.settings]
            raise RecipeError(
                f"rollout.{key} = {getattr(spec, key)} is not read by rollout.remasking = {spec.remasking}.\n"
                f"Fix: remove it, or use {' or '.join(readers)}."
            )


def check_combinations(spec: SamplerSpec) -> None:
    """Refuse parts that do not go together.

    Raises:
        RecipeError: naming the settings and the remedy.
    """
    region, first_last = spec.answer_region, (0, spec.gen_len)
    fits = region is not None and first_last[0] <= region[0] < region[1] <= first_last[1]
    for wrong, what, remedy in (
        (
            spec.early_commit == "prophet" and not fits,
            f"rollout.answer_region = {region}: prophet looks at the place of the answer on the canvas",
            f"give two positions within 0 and {spec.gen_len}, or use sched_cosine",
        ),
        (
            spec.early_commit != "prophet" and region is not None,
            f"rollout.answer_region = {list(region or ())} is read by rollout.early_commit = prophet only",
            "remove it",
        ),
        (
            spec.early_commit == "none" and _is_set(spec, "early_commit_high", "early_commit_low"),
            "rollout.early_commit_high and early_commit_low are not read without rollout.early_commit",
            "remove them, or set rollout.early_commit",
        ),
        (
            spec.eos_policy == "accepted_eos" and spec.strategy.revises,
            f"rollout.eos_policy = accepted_eos acts on tokens that rollout.remasking = {spec.remasking} may "
            "take back",
            "use block_eos",
        ),
        (
            spec.remasking == "learned" and not spec.policy,
            "rollout.remasking = learned asks a policy, and rollout.policy is not set",
            "name a folder that holds one, or a registered policy",
        ),
        (
            spec.draft_steps > 0 and not spec.is_static,
            f"rollout.draft_steps = {spec.draft_steps} drafts steps that are known beforehand, and "
            f"rollout.remasking = {spec.remasking} with these settings is not of that kind",
            f"set it to 0, or use {' or '.join(STATIC)} without early commit",
        ),
        (
            spec.draft_steps > 0 and (spec.cfg_scale > 0 or spec.record_predictions),
            f"rollout.draft_steps = {spec.draft_steps} does not go with guidance or recorded predictions",
            "set it to 0",
        ),
        (
            spec.cache == "none" and spec.cache_refresh > 0,
            f"rollout.cache_refresh = {spec.cache_refresh} is not read by rollout.cache = none",
            "remove it",
        ),
        (
            spec.cache != "none" and (spec.cfg_scale > 0 or spec.draft_steps > 0 or spec.record_predictions),
            f"rollout.cache = {spec.cache} does not go with guidance, drafts or recorded predictions, which "
            "need forwards of their own or logits everywhere",
            "set rollout.cache to none",
        ),
        (
            spec.cache != "none" and spec.strategy.region == "decoded",
            f"rollout.cache = {spec.cache} holds finished blocks, and rollout.remasking = {spec.remasking} "
            "takes their tokens back",
            "set rollout.cache to none",
        ),
    ):
        if wrong:
            raise RecipeError(f"{what}.\nFix: {remedy}.")


def _is_set(spec: SamplerSpec, *names: str) -> bool:
    return any(getattr(spec, name) != _DEFAULTS[name] for name in names)


# Strategies whose next state follows from logits, counters and schedule alone, without state of their own.
STATIC = (
    *("low_confidence", "top_probability", "random", "ar", "margin", "neg_entropy"),
    *("dream_maskgit_plus", "dream_topk_margin", "dream_entropy"),
)

_DEFAULTS = {field.name: field.default for field in fields(SamplerSpec)}
