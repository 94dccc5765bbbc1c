"""Learned samplers: a policy network decides which masked positions to commit.

The policy is a plug-in: any callable that maps `PolicyFeatures` to a logit per position, registered under a
name. What it saw and did is recorded (`Trace.actions`), so it can be trained by the group's rewards.
Source: arXiv:2512.09106.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from rl4dlm.decoding.confidence import top_probability
from rl4dlm.decoding.proposal import Law, draw
from rl4dlm.decoding.selection import top_k
from rl4dlm.decoding.spec import SamplerSpec
from rl4dlm.decoding.step import ORDER_STREAM, Actions, Decision, StepInput, Strategy
from rl4dlm.errors import RecipeError
from rl4dlm.types import FORCED, SAMPLED


@dataclass(frozen=True)
class PolicyFeatures:
    """What a policy may look at; nothing of it depends on the model's size or vocabulary."""

    confidence: Tensor
    """float32 `[rows, completion]`: probability of the likeliest token where eligible, 0 elsewhere."""
    eligible: Tensor
    """bool `[rows, completion]`: masked positions of the active block, which the policy decides on."""
    time: Tensor
    """float32 `[rows]`: steps taken, divided by the canvas length."""


class UnmaskPolicy(Protocol):
    """Decides which positions to commit."""

    def __call__(self, features: PolicyFeatures) -> Tensor:
        """Logits `[rows, completion]` of committing each position; read where eligible. A row's logits must
        not depend on other rows."""
        ...


POLICIES: dict[str, UnmaskPolicy] = {}
"""Policies by the name that `SamplerSpec.policy` gives; fill it with `register_policy`."""


def register_policy(name: str, policy: UnmaskPolicy) -> None:
    """Make a policy known in this process, replacing one of the same name (new weights)."""
    POLICIES[name] = policy


def find_policy(name: str) -> UnmaskPolicy:
    """The policy of a name.

    Raises:
        RecipeError: none was registered in this process.
    """
    if name not in POLICIES:
        known = ", ".join(sorted(POLICIES)) or "none"
        raise RecipeError(
            f"rollout.policy = {name!r} is not registered (known: {known}).\n"
            "Fix: call rl4dlm.decoding.register_policy(name, policy) where the engine runs, or\n"
            "rl4dlm.models.open_policy(name) for a folder."
        )
    return POLICIES[name]


def action_logp(logits: Tensor, action: Tensor, eligible: Tensor) -> Tensor:
    """Log-probability of independent decisions, nats: `log prod s^u (1 - s)^(1 - u)` over eligible positions.

    The empty action has its own probability: what the sampler does then is a rule of the environment, so the
    probabilities of all actions sum to 1.

    Args:
        logits: `[rows, width]`, of committing.
        action: bool `[rows, width]`, as drawn.
        eligible: bool `[rows, width]`.

    Returns:
        float32 `[rows]`, differentiable in `logits`.
    """
    exact = logits.double()
    each = torch.where(action, F.logsigmoid(exact), F.logsigmoid(-exact))
    return torch.where(eligible, each, 0.0).sum(dim=1).float()


def learned(spec: SamplerSpec, step: StepInput) -> Decision:
    """Commit each eligible position with the policy's probability, at least the likeliest one."""
    sure = top_probability(step.logits, Law())
    confidence = torch.where(step.eligible, step.dense(sure), 0.0)
    time = step.step.float() / spec.gen_len
    features = PolicyFeatures(confidence, step.eligible, time)
    logits = spec.policy_sharpness * find_policy(spec.policy)(features)
    number = step.dense(step.uniform(step.stream(ORDER_STREAM)))
    chance = torch.sigmoid(logits.double())
    action = step.eligible & (number < chance)
    nothing = ~action.any(dim=1)
    likeliest, _ = top_k(logits, step.eligible, nothing.long())
    chosen = action | likeliest
    picked = step.at_seen(chosen).nonzero().squeeze(1)
    flat = step.index[picked]
    rank = top_k(logits, chosen, chosen.sum(dim=1))[1].flatten()[flat]
    uniform = step.uniform()[picked]
    drawn = draw(step.logits[picked], uniform, spec.temperature, top_p=spec.top_p, top_k=spec.top_k)
    forced = nothing[flat // chosen.shape[1]]
    decided = step.index[step.at_seen(step.eligible)]
    return Decision(
        picked=picked,
        rank=rank,
        token=drawn.token,
        logp=drawn.prob.log(),
        score=chance.float().flatten()[flat],
        kind=torch.where(forced, FORCED, SAMPLED).to(torch.uint8),
        confidence=step.at_seen(chance.float()),
        actions=Actions(
            decided,
            confidence.flatten()[decided],
            action.flatten()[decided],
            action_logp(logits, action, step.eligible),
        ),
    )


LEARNED = Strategy(learned)
