"""`record` does what a CUDA graph does, on the CPU: it runs the kernels of one run again, at its places
in memory. What Python decided is not decided anew, and no value may be asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Recording(TorchDispatchMode):
    """Keeps every operation with its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert "item" not in str(func) and "scalar_dense" not in str(func), f"{func} asks for a value"
        out = func(*args, **(kwargs or {}))
        taken = {place(tensor) for tensor in tensors((args, kwargs))}
        made = [tensor for tensor in tensors(out) if place(tensor) not in taken]
        # Aliases: what later lies elsewhere under the same name is not seen.
        args, kwargs = tree_map_only(Tensor, Tensor.detach, (args, kwargs or {}))
        self.steps.append((func, args, kwargs, tensors(out) if made else []))
        return out

    def replay(self) -> None:
        for func, args, kwargs, made in self.steps:
            for old, new in zip(made, tensors(func(*args, **kwargs)), strict=bool(made)):
                old.copy_(new)


def record(run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    with Recording() as recording:
        output = run()
    return recording.replay, output
