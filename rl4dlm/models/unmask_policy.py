"""The network that decides which masked positions a step commits, and its folders.

It sees how sure the language model is of each position, nothing of the model itself, so one network serves
any model and vocabulary.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rl4dlm.decoding import PolicyFeatures, UnmaskPolicy, register_policy
from rl4dlm.decoding.learned import POLICIES, find_policy
from rl4dlm.errors import ModelError
from rl4dlm.models.folders import new_folder
from rl4dlm.recipe.bounded import parse_json

NEW = "new"
"""As `rollout.policy`: a network that has not been trained."""

_KIND = "rl4dlm_unmask_policy"
_WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class UnmaskNetConfig:
    """Sizes as published: about 300 thousand parameters."""

    hidden: int = 128
    num_heads: int = 2
    mlp: int = 512
    time_dim: int = 128
    tau: float = 1.0
    """Divides the logits."""
    initial_bias: float = -2.0
    """Of every logit before training."""


class UnmaskNet(nn.Module):
    """One transformer block over the canvas; a logit of committing each position.

    Source: arXiv:2512.09106: adaptive layer norm on the time.
        Departs from it: what tells positions apart is not published, and is rotary here, so that a canvas may
        have any length.
    """

    def __init__(self, config: UnmaskNetConfig = UnmaskNetConfig()) -> None:  # noqa: B008 - frozen
        super().__init__()
        self.config = config
        hidden = config.hidden
        self.inputs = nn.Linear(2, hidden)
        self.time = nn.Sequential(nn.Linear(config.time_dim, config.time_dim), nn.SiLU())
        self.modulation = nn.Linear(config.time_dim, 6 * hidden)
        self.norms = nn.ModuleList([nn.LayerNorm(hidden, elementwise_affine=False) for _ in range(2)])
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.mix = nn.Linear(hidden, hidden)
        self.mlp = nn.Sequential(nn.Linear(hidden, config.mlp), nn.GELU(), nn.Linear(config.mlp, hidden))
        self.norm = nn.LayerNorm(hidden)
        self.head = nn.Linear(hidden, 1)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.constant_(self.head.bias, config.initial_bias)

    def forward(self, features: PolicyFeatures) -> Tensor:
        """Logits `[rows, completion]`, float32; see `UnmaskPolicy`."""
        seen = torch.stack([features.confidence, features.eligible.float()], dim=-1)
        x = self.inputs(seen)  # [rows, completion, hidden]
        time = self.time(sinusoids(features.time, self.config.time_dim))
        parts = self.modulation(time)[:, None].chunk(6, dim=-1)
        x = x + parts[2] * self._attend(self.norms[0](x) * (1 + parts[0]) + parts[1])
        x = x + parts[5] * self.mlp(self.norms[1](x) * (1 + parts[3]) + parts[4])
        return self.head(self.norm(x)).squeeze(-1) / self.config.tau

    def _attend(self, x: Tensor) -> Tensor:
        rows, length, _ = x.shape
        qkv = self.qkv(x).view(rows, length, 3, self.config.num_heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(rotated(qkv[0]), rotated(qkv[1]), qkv[2])
        return self.mix(mixed.transpose(1, 2).reshape(rows, length, -1))


def sinusoids(time: Tensor, size: int) -> Tensor:
    """Sines and cosines of times in 0..1 at frequencies from 1 to 1000 radians, `[rows, size]`."""
    frequency = torch.exp(torch.linspace(0, math.log(1000.0), size // 2, device=time.device))
    angle = time[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def rotated(x: Tensor) -> Tensor:
    """Rotary position embedding over the canvas.

    Args:
        x: `[rows, heads, completion, size]`, queries or keys.
    """
    half = x.shape[-1] // 2
    rate = 10000.0 ** (-torch.arange(half, device=x.device) / half)
    angle = torch.arange(x.shape[2], device=x.device)[:, None] * rate
    left, right = x.chunk(2, dim=-1)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)


def new_policy(config: UnmaskNetConfig, seed: int) -> UnmaskNet:
    """An untrained network, a function of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UnmaskNet(config)


def save_policy(net: UnmaskNet, folder: str | Path) -> Path:
    """Write config.json and weights; `rollout.policy` names the folder afterwards.

    Args:
        folder: must not exist, or be empty.

    Raises:
        ModelError: the folder is not empty.
        StorageError: the disk refuses.
    """
    target = Path(folder).expanduser()
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    with new_folder(target) as partial:
        save_file(tensors, partial / _WEIGHTS, metadata={"format": "pt"})
        text = json.dumps({"model_type": _KIND, **asdict(net.config)}, indent=2, sort_keys=True)
        (partial / "config.json").write_text(text + "\n", encoding="utf-8")
    return target


def load_policy(folder: str | Path) -> UnmaskNet:
    """The network of a folder that `save_policy` wrote.

    Raises:
        ModelError: it is no such folder, or damaged.
    """
    place = Path(folder).expanduser()
    remedy = "Fix: give rollout.policy the folder policy/ of an unmasking_policy run."
    try:
        values = parse_json((place / "config.json").read_bytes(), finite=True)
        if not isinstance(values, dict) or values.pop("model_type", None) != _KIND:
            raise ModelError(f"{folder} holds no unmasking policy.\n{remedy}")
        if set(values) != {field.name for field in fields(UnmaskNetConfig)}:
            raise ModelError(f"{folder}/config.json has other settings than an unmasking policy.\n{remedy}")
        net = UnmaskNet(UnmaskNetConfig(**values))
        net.load_state_dict(load_file(place / _WEIGHTS))
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelError(f"{folder} cannot be read as an unmasking policy: {reason}.\n{remedy}") from error
    return net


def policy_net(name: str, start: UnmaskNetConfig | None = None, seed: int = 0) -> UnmaskNet:
    """The network that `rollout.policy` names.

    Args:
        name: a folder that `save_policy` wrote, or `new`.
        start: of a network that is `new`; None: the published sizes.
        seed: likewise.

    Raises:
        ModelError: as `load_policy`.
    """
    return new_policy(start or UnmaskNetConfig(), seed) if name == NEW else load_policy(name)


def open_policy(
    name: str, *, device: str = "cpu", start: UnmaskNetConfig | None = None, seed: int = 0
) -> UnmaskPolicy:
    """Make the policy that `rollout.policy` names known to the samplers of this process.

    Args:
        name: one that `register_policy` made known, or as `policy_net`.
        device: where the samplers' features lie.
        start, seed: as `policy_net`.

    Raises:
        ModelError: as `load_policy`.
    """
    if name not in POLICIES or name == NEW:
        register_policy(name, policy_net(name, start, seed).to(device).eval())
    return find_policy(name)
