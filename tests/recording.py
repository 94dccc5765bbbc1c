"""`record` does what a CUDA graph does, on the CPU: it runs the kernels of one run again, at its places
in memory. What Python decided is not decided anew, no value may be asked for, and what the run read must
still be where it was, kept alive by somebody else."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@dataclass(frozen=True)
class Inner:
    """A tensor that an operation of the recording makes."""

    number: int


class Outer:
    """A tensor from outside, which the recording knows by its place alone."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.place = weakref.ref(tensor), tensor.data_ptr()

    def found(self) -> Tensor:
        tensor = self.tensor()
        assert tensor is not None, "a recording reads memory that was freed"
        assert tensor.data_ptr() == self.place, "a recording reads memory that its owner has left"
        return tensor


@dataclass(frozen=True)
class Step:
    func: Any
    args: Any
    kwargs: Any
    made: list[tuple[Inner, Tensor | None]]
    """What comes out, and the memory that it is written to; None for a view of other tensors."""


class Recording(TorchDispatchMode):
    """Keeps every operation, and the memory of what it makes."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self._known: dict[int, Inner] = {}
        self._alive: list[Tensor] = []  # until the recording ends, so that an id means one tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert "item" not in str(func) and "scalar_dense" not in str(func), f"{func} asks for a value"
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        taken = {place(tensor) for tensor in tensors((args, kwargs))}
        named = tree_map_only(Tensor, lambda t: self._known.get(id(t)) or Outer(t), (args, kwargs))
        made = [(self._name(t), None if place(t) in taken else t) for t in tensors(out)]
        self.steps.append(Step(func, *named, made))
        return out

    def _name(self, tensor: Tensor) -> Inner:
        self._alive.append(tensor)
        return self._known.setdefault(id(tensor), Inner(len(self._known)))

    def end(self) -> None:
        self._known, self._alive = {}, []

    def replay(self) -> None:
        values: dict[Inner, Tensor] = {}

        def value(name: Any) -> Any:
            return name.found() if isinstance(name, Outer) else values[name]

        for step in self.steps:
            args, kwargs = tree_map_only((Inner, Outer), value, (step.args, step.kwargs))
            for (name, memory), new in zip(step.made, tensors(step.func(*args, **kwargs)), strict=True):
                values[name] = new if memory is None else memory.copy_(new)


def record(run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    with Recording() as recording:
        output = run()
    recording.end()
    return recording.replay, output
