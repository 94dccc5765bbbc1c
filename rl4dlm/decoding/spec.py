"""The settings of a sampler in one hashable record: what a rollout depends on besides weights and seed."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, get_args

from rl4dlm.decoding.confidence import ConfidenceFrom
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
    """`block_eos`: a finished block that holds a stop id ends the row. `none`: denoise the whole canvas."""
    top_p: float = 1.0
    """Draw among the likeliest ids of this mass; 1 keeps all. Recorded log-probabilities do not see the
    cut."""
    top_k: int = 0
    """Draw among that many likeliest ids; 0 keeps all."""
    threshold: float = 0.9
    """Confidence at which a position is committed at once; read by `dynamic` and `threshold`."""
    factor: float = 1.0
    """Read by `factor`: larger commits more."""
    entropy_budget: float = 0.35
    """Nats; read by the `entropy_...` strategies: larger commits more."""
    order_temperature: float = 0.0
    """Dream's `alg_temp`: positions are drawn from softmax(confidence / it); 0 takes the best."""
    rcr_update: RcrUpdate = "last"
    """Which confidence `rcr` keeps of a position that was written several times."""
    record_predictions: bool = False
    """Record at every step a token for each masked position (`Trace.predictions`); changes no sample."""

    def __post_init__(self) -> None:
        check_layout(self)
        check_choices(self)

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

    def describe(self) -> dict[str, int | float | str]:
        """The settings that samples depend on, under their recipe names: written beside every score.

        Settings that another strategy reads are left out, and so are the ones that are off.
        """
        read = {name: getattr(self, name) for name in self.strategy.settings if name != "order_temperature"}
        off = {name: default for name, default in _OFF.items() if getattr(self, name) != default}
        return {
            "max_completion_length": self.gen_len,
            "block_length": self.block_length,
            "diffusion_steps": self.steps,
            "temperature": float(self.temperature),
            "remasking": self.remasking,
            "confidence_from": self.confidence_from,
            "eos_policy": self.eos_policy,
            **read,
            **{name: getattr(self, name) for name in off},
        }

    def hash(self) -> int:
        """63-bit fingerprint of `describe()`: equal settings give equal hashes on every platform."""
        return derive_seed("sampler", json.dumps(self.describe(), sort_keys=True))


# Settings that not every strategy reads, and those that every strategy reads and that can be off.
_STRATEGY_SETTINGS = ("threshold", "factor", "entropy_budget", "order_temperature", "rcr_update")
_OFF = {"top_p": 1.0, "top_k": 0, "order_temperature": 0.0}
_OPTIONAL = ("top_p", "top_k", *_STRATEGY_SETTINGS)


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


_DEFAULTS = {field.name: field.default for field in fields(SamplerSpec)}
