"""What a rank trains a network with: the interface of an engine, torch's own engine, and the parameter
groups and the reference's step that every engine shares."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rl4dlm.recipe.sections import TrainerConfig

WEIGHTS_FILE, OPTIMIZER_FILE = "weights.safetensors", "optimizer.safetensors"

Assemble = Callable[..., nn.Module]
"""Puts stored tensors into a network; see the argument of that name of `rl4dlm.models.load`."""


class TrainingEngine(Protocol):
    """A network with an optimizer on one rank; gradients accumulate until `step`."""

    @property
    def module(self) -> nn.Module:
        """The network itself."""
        ...

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """The network's forward pass."""
        ...

    def train(self) -> None: ...

    def eval(self) -> None: ...

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss; the engine averages them over ranks."""
        ...

    def step(self) -> None:
        """Clip, move the weights, forget the gradients."""
        ...

    def get_global_grad_norm(self) -> float | None:
        """Norm of the last step's gradients over all ranks, before clipping."""
        ...

    def set_learning_rate(self, rate: float) -> None:
        """Rate of the next steps. It is a pure function of the update, so no schedule is saved."""
        ...

    def whole(self) -> AbstractContextManager[dict[str, Tensor]]:
        """The whole parameters by name; a collective where they are sharded, so every rank must enter."""
        ...

    def save(self, folder: Path) -> None:
        """Write what this rank needs to continue: trained weights and optimizer."""
        ...

    def restore(self, folder: Path) -> None:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is nothing of the kind.
            OSError, RuntimeError, ValueError, KeyError, EOFError, UnpicklingError: it is damaged.
        """
        ...

    def close(self) -> None:
        """Release memory; the engine is not used afterwards."""
        ...


class Frozen(Protocol):
    """A network that is only read: the reference policy."""

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor: ...

    def whole(self) -> AbstractContextManager[nn.Module]:
        """The network with whole parameters; what rank 0 writes into them is everybody's afterwards."""
        ...

    def close(self) -> None: ...


class Networks(Protocol):
    """How one rank holds its networks, and where it stands among the ranks."""

    rank: int
    world_size: int
    device: str

    def assemble(self) -> Assemble | None:
        """How stored tensors get into a network here; None: whole."""
        ...

    def train(
        self, module: nn.Module, trainer: TrainerConfig, weight_decay: float | None = None
    ) -> TrainingEngine:
        """An engine around a network. `weight_decay` None: the trainer's."""
        ...

    def freeze(self, module: nn.Module, trainer: TrainerConfig) -> Frozen: ...

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """The sum of equally shaped tensors of all ranks: a collective."""
        ...


def whole_shape(parameter: nn.Parameter) -> torch.Size:
    """The shape of a parameter, also where this rank holds a partition of it."""
    return getattr(parameter, "ds_shape", parameter.shape)


def num_trainable(module: nn.Module) -> int:
    """Trainable scalars over all ranks."""
    return sum(whole_shape(p).numel() for p in module.parameters() if p.requires_grad)


def adamw(
    parameters: dict[str, nn.Parameter], trainer: TrainerConfig, weight_decay: float | None
) -> torch.optim.AdamW:
    """The optimizer of every engine. Norms, biases and other vectors are not decayed."""
    decay = trainer.weight_decay if weight_decay is None else weight_decay
    matrices = [p for p in parameters.values() if len(whole_shape(p)) > 1]
    vectors = [p for p in parameters.values() if len(whole_shape(p)) <= 1]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=trainer.learning_rate,
        betas=trainer.adam_betas,
        eps=trainer.adam_epsilon,
    )


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that learn, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


class PlainEngine:
    """An engine of torch alone, for one rank.

    Weights in bfloat16 have float32 masters: gradients are added and steps are taken in float32, and the
    weights are the rounded masters.
    """

    def __init__(self, module: nn.Module, trainer: TrainerConfig, weight_decay: float | None = None) -> None:
        self.module, self._clip, self._norm = module, trainer.max_grad_norm, 0.0
        self._weights = trainable(module)
        self._masters = {name: _master_of(weight) for name, weight in self._weights.items()}
        self.optimizer = adamw(self._masters, trainer, weight_decay)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.module(*args, **kwargs)

    def train(self) -> None:
        self.module.train()

    def eval(self) -> None:
        self.module.eval()

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        self._norm = float(torch.nn.utils.clip_grad_norm_(self._masters.values(), self._clip))
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._round_masters()

    def get_global_grad_norm(self) -> float:
        return self._norm

    def set_learning_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    @contextmanager
    def whole(self) -> Iterator[dict[str, Tensor]]:
        yield dict(self.module.named_parameters())

    def save(self, folder: Path) -> None:
        """Write `weights.safetensors` (float32 masters and buffers by name) and `optimizer.safetensors`
        (AdamW's state as `<parameter>/<quantity>`)."""
        folder.mkdir()
        moments = {
            f"{name}/{quantity}": value
            for name, master in self._masters.items()
            for quantity, value in self.optimizer.state[master].items()
        }
        save_file(_on_cpu(self._stored()), folder / WEIGHTS_FILE)
        save_file(_on_cpu(moments), folder / OPTIMIZER_FILE)

    @torch.no_grad()
    def restore(self, folder: Path) -> None:
        try:
            found, moments = load_file(folder / WEIGHTS_FILE), load_file(folder / OPTIMIZER_FILE)
        except SafetensorError as error:
            raise ValueError(str(error)) from error
        own = self._stored()
        if found.keys() != own.keys():
            raise ValueError(f"{sorted(found.keys() ^ own.keys())[0]} is on one side only")
        for name, tensor in own.items():
            tensor.copy_(found[name])
        self._round_masters()
        for key, value in moments.items():
            name, _, quantity = key.rpartition("/")
            master = self._masters[name]
            # The count of steps stays on the CPU, as AdamW keeps it.
            self.optimizer.state[master][quantity] = value if quantity == "step" else value.to(master.device)

    def close(self) -> None:
        self.optimizer.state.clear()

    def _stored(self) -> dict[str, Tensor]:
        """Masters and persistent buffers: what training changes."""
        kept = self.module.state_dict()
        buffers = {name: b for name, b in self.module.named_buffers() if name in kept}
        return {**{name: master.detach() for name, master in self._masters.items()}, **buffers}

    @torch.no_grad()
    def _round_masters(self) -> None:
        for name, master in self._masters.items():
            if master is not self._weights[name]:
                self._weights[name].copy_(master)


def _master_of(weight: nn.Parameter) -> nn.Parameter:
    """The weight itself, or for a short float a float32 copy that collects its gradients."""
    if weight.dtype not in (torch.bfloat16, torch.float16):
        return weight
    master = nn.Parameter(weight.detach().float())

    def collect(learned: Tensor) -> None:
        assert learned.grad is not None
        gradient = learned.grad.float()
        master.grad = gradient if master.grad is None else master.grad + gradient
        learned.grad = None

    weight.register_post_accumulate_grad_hook(collect)
    return master


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


class FrozenModule:
    """A reference policy that is whole on every rank."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module.requires_grad_(False).eval()

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.module(*args, **kwargs)

    @contextmanager
    def whole(self) -> Iterator[nn.Module]:
        yield self.module

    def close(self) -> None:
        return None


class PlainNetworks:
    """The networks of a single rank, by torch alone."""

    rank, world_size = 0, 1

    def __init__(self, device: str = "cpu") -> None:
        self.device = device

    def assemble(self) -> Assemble | None:
        return None

    def train(
        self, module: nn.Module, trainer: TrainerConfig, weight_decay: float | None = None
    ) -> TrainingEngine:
        return PlainEngine(module, trainer, weight_decay)

    def freeze(self, module: nn.Module, trainer: TrainerConfig) -> Frozen:
        return FrozenModule(module)

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        return values


def mix_reference(engine: TrainingEngine, frozen: Frozen, alpha: float) -> None:
    """Move the reference towards the policy: `alpha` policy + (1 - alpha) reference, in float32.

    Source: TR-DPO (arXiv:2404.09656), as TRL's `sync_ref_model`. A collective where weights are sharded.

    Args:
        engine: the policy's.
        frozen: the reference, of the same network.
        alpha: the policy's share.
    """
    with engine.whole() as policy, frozen.whole() as reference, torch.no_grad():
        for name, weight in reference.named_parameters():
            weight.copy_(torch.lerp(weight.float(), policy[name].float(), alpha))
