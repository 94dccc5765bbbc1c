"""The settings of a sampler in one hashable record: what a rollout depends on besides weights and seed."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields

from rl4dlm.decoding.proposal import Law
from rl4dlm.decoding.schedules import block_schedule
from rl4dlm.diffusion.seeds import derive_seed
from rl4dlm.recipe.rollout_section import RolloutConfig
from rl4dlm.recipe.samplers import (
    CACHES,
    SAMPLERS,
    ConfidenceFrom,
    EarlyCommit,
    EosPolicy,
    RcrConfidence,
    RcrSchedule,
    RcrUpdate,
    SamplerFacts,
    own_settings,
)


@dataclass(frozen=True)
class SamplerSpec:
    """How a canvas is denoised.

    What a user may not ask for is refused by `rl4dlm.recipe.rules.sampling`; here only our own mistakes are
    caught. Ids that may never be proposed belong to the model (`DenoiserSpec.forbidden_ids`).

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
    """Name of the sampler: a key of `rl4dlm.recipe.samplers.SAMPLERS`."""
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
    rcr_confidence: RcrConfidence = "probability"
    """What `rcr` judges a written token by."""
    rcr_schedule: RcrSchedule = "even"
    """How `rcr` shares out the tokens of a block over its steps."""
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
    """Name of a cache plan: a key of `rl4dlm.recipe.samplers.CACHES`."""
    cache_refresh: int = 0
    """Steps of a block after which an approximate cache is computed anew; 0: at block starts only."""
    record_predictions: bool = False
    """Record at every step a token for each masked position (`Trace.predictions`); changes no sample."""

    def __post_init__(self) -> None:
        assert self.gen_len > 0 and self.block_length > 0 and self.gen_len % self.block_length == 0, self
        assert 0 < self.steps <= self.gen_len and self.steps % self.num_blocks == 0, self
        assert self.remasking in SAMPLERS and self.cache in ("none", *CACHES), self
        assert self.temperature >= 0 and 0 < self.top_p <= 1 and self.top_k >= 0, self
        assert self.policy or "policy" not in self.facts.settings, self
        assert (self.early_commit == "prophet") == (self.answer_region is not None), self
        assert self.draft_steps == 0 or self.is_static, self
        assert self.cache == "none" or not self.facts.revises, self

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
            **{name: getattr(config, name) for name in (*_EXTRAS, *own_settings(), "draft_steps")},
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
    def facts(self) -> SamplerFacts:
        """What is known of the sampler that `remasking` names."""
        return SAMPLERS[self.remasking]

    @property
    def is_static(self) -> bool:
        """Whether each step commits a number of positions that is known beforehand, by the logits alone."""
        return self.facts.is_static and self.early_commit == "none"

    @property
    def confidence_law(self) -> Law:
        """The distribution that confidences are read from."""
        source = self.facts.confidence_from or self.confidence_from
        if source == "raw":
            return Law()
        law = Law(float(self.temperature) or 1.0)
        return law._replace(top_p=self.top_p, top_k=self.top_k) if source == "filtered" else law

    def schedule(self) -> tuple[int, ...]:
        """Positions that the steps of a whole block commit, where the sampler goes by a schedule."""
        kind = self.facts.schedule if self.rcr_schedule == "even" else self.rcr_schedule
        return block_schedule(kind, self.block_length, self.steps_per_block)

    def describe(self) -> dict[str, object]:
        """The settings that samples depend on, under their recipe names: written beside every score.

        Settings that another sampler reads are left out, and so are the ones that are off.
        """
        read = [name for name in self.facts.settings if name not in _EXTRAS]
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


# Settings that are described where they are not at their defaults. A draft changes no sample, so it is not
# among them.
_EXTRAS = (
    *("top_p", "top_k", "order_temperature", "rcr_confidence", "rcr_schedule", "cfg_scale", "early_commit"),
    *("answer_region", "early_commit_high", "early_commit_low", "cache", "cache_refresh"),
)

_DEFAULTS = {field.name: field.default for field in fields(SamplerSpec)}
