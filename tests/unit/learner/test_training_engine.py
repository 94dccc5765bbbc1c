"""The engine of one process: what it keeps, what it decays, and masters of short floats."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from rl4dlm.learner.engine import PlainEngine, adamw, trainable
from rl4dlm.recipe.sections import TrainerConfig

TRAINER = TrainerConfig(learning_rate=0.05, weight_decay=0.5, max_grad_norm=1e9)


class Net(nn.Module):
    """A matrix, a vector, a frozen matrix and a buffer."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.matrix = nn.Parameter(torch.randn(3, 2, dtype=dtype))
            self.vector = nn.Parameter(torch.randn(2, dtype=dtype))
            self.frozen = nn.Parameter(torch.randn(2, 2, dtype=dtype), requires_grad=False)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.matrix + self.vector) @ self.frozen


def step(engine: PlainEngine, seed: int) -> None:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
    engine.backward(engine(x.to(next(engine.module.parameters()).dtype)).float().square().mean())
    engine.step()


def test_matrices_are_decayed_and_vectors_are_not() -> None:
    groups = adamw(trainable(Net()), TRAINER, None).param_groups
    decay = {tuple(p.shape): group["weight_decay"] for group in groups for p in group["params"]}
    assert decay == {(3, 2): 0.5, (2,): 0.0}
    own = adamw(trainable(Net()), TRAINER, 0.25).param_groups
    assert [group["weight_decay"] for group in own] == [0.25, 0.0]


def test_the_norm_is_that_before_clipping_and_the_step_is_clipped() -> None:
    free, clipped = Net(), Net()
    loose = PlainEngine(free, TRAINER)
    tight = PlainEngine(clipped, TRAINER.model_copy(update={"max_grad_norm": 1e-4}))
    for engine in (loose, tight):
        step(engine, 0)
    assert tight.get_global_grad_norm() == pytest.approx(loose.get_global_grad_norm())
    moment = tight.optimizer.state[clipped.matrix]["exp_avg"].norm()
    assert moment < 1e-4 < loose.optimizer.state[free.matrix]["exp_avg"].norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_restored_engine_goes_the_same_way_to_the_last_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    engine = PlainEngine(Net(dtype), TRAINER)
    for seed in range(3):
        step(engine, seed)
    engine.module.count.fill_(7)  # type: ignore[operator, union-attr]
    engine.save(tmp_path / "engine")
    assert {file.name for file in (tmp_path / "engine").iterdir()} == {
        "weights.safetensors",
        "optimizer.safetensors",
    }
    other = PlainEngine(Net(dtype), TRAINER)
    step(other, 99)
    other.restore(tmp_path / "engine")
    for seed in (3, 4):
        for either in (engine, other):
            step(either, seed)
    for name, tensor in engine.module.state_dict().items():
        assert torch.equal(tensor, other.module.state_dict()[name]), name


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.safetensors"])
def test_what_is_missing_or_damaged_is_an_error(file: str, tmp_path: Path) -> None:
    engine = PlainEngine(Net(), TRAINER)
    step(engine, 0)
    engine.save(tmp_path / "engine")
    path = tmp_path / "engine" / file
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError):
        PlainEngine(Net(), TRAINER).restore(tmp_path / "engine")
    path.unlink()
    with pytest.raises(FileNotFoundError):
        PlainEngine(Net(), TRAINER).restore(tmp_path / "engine")


def test_steps_too_small_for_bfloat16_add_up_in_the_masters() -> None:
    tiny = TRAINER.model_copy(update={"learning_rate": 1e-5, "weight_decay": 0.0})
    net = Net(torch.bfloat16)
    before = net.matrix.detach().clone()
    engine = PlainEngine(net, tiny)
    step(engine, 0)
    assert torch.equal(net.matrix, before)  # 1e-5 is below half a unit in the last place
    for _ in range(2000):
        step(engine, 0)
    assert not torch.equal(net.matrix, before) and net.matrix.dtype == torch.bfloat16


def test_gradients_of_short_floats_are_added_in_float32() -> None:
    net = Net(torch.bfloat16)
    engine = PlainEngine(net, TRAINER)
    for _ in range(257):  # bfloat16 stops counting at 256
        engine.backward(net.vector[0] * 1.0)
    engine.step()
    assert engine.get_global_grad_norm() == pytest.approx(257, rel=1e-6) and net.vector.grad is None
