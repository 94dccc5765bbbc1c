"""The bench scripts: the GPU section on tiny shapes, and what the figures are made of."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytestmark = pytest.mark.slow

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return script("bench_rollout")


@pytest.mark.parametrize(
    ("shape", "caches"), [("llada_tiny", ["none", "prefix", "dual"]), ("sdar_tiny", ["none", "block"])]
)
def test_a_random_model_of_a_shape_is_measured_under_each_cache(
    bench: ModuleType, shape: str, caches: list[str]
) -> None:
    rows = bench.bench_shape(bench.Clock("cpu"), shape, "cpu", slots=2, prompt=8, gen_len=32)
    assert [row["cache"] for row in rows] == caches
    for row in rows:
        # 32 tokens, two per step.
        assert row["tokens_per_forward"] == 2.0
        assert row["tokens_per_s"] == pytest.approx(64 / row["seconds"])
        assert 0 < row["share_of_peak"] < 2


def test_json_is_one_object_with_every_section_that_was_asked_for(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["bench", "--json", "--shape", "sdar_tiny", "--gen-len", "8", "--prompt-tokens", "6"]
    )
    threads = torch.get_num_threads()
    assert bench.main() == 0
    torch.set_num_threads(threads)
    found = json.loads(capsys.readouterr().out)
    assert list(found["sections"]) == ["shape"]
    assert found["about"]["shapes"]["head_heavy"]["vocab"] >= 32_000


def test_the_flops_of_a_token_are_those_of_the_cost_model(bench: ModuleType) -> None:
    # LLaDA-8B: 2 x 32 layers x (4 x 4096^2 + 3 x 4096 x 12288) = 14 GFLOP per token.
    assert bench.flops_per_token(bench.SHAPES["llada8b"]) == pytest.approx(13.96e9, rel=1e-3)


def test_texts_end_where_the_prompt_says(bench: ModuleType) -> None:
    from rl4dlm.decoding import SamplerSpec
    from rl4dlm.rollout import Engine
    from rl4dlm.types import Denoiser

    base = bench.random_model(bench.SHAPES["llada_tiny"])
    model = bench.EndsAt(base.model, base.spec.eos_id, gen_len=40)
    wanted = bench.some_requests(3, 6, ends=(2, 10, 20))
    engine = Engine(Denoiser(model, base.spec), SamplerSpec(40, 8, 20, 0.0), 3)
    lengths = [rollout.completion_len for rollout in engine.generate(wanted, policy_version=0)]
    assert lengths == [4, 20, 40]


@pytest.mark.usefixtures("bench")
def test_recorded_layers_leave_the_engine_to_launch_whatever_the_depth() -> None:
    forwards = script("bench_forwards")
    shallow, deep = (forwards.count_launches("sdar_tiny", layers, "block", slots=2) for layers in (2, 4))
    per_layer = (deep["operations"] - shallow["operations"]) / 2
    assert per_layer > 30
    # Emptying the store, once per batch, has operations for each layer.
    assert deep["left when replayed"] - shallow["left when replayed"] < per_layer / 20
    assert shallow["left when replayed"] < shallow["operations"] - 2 * per_layer + 20


@pytest.mark.usefixtures("bench")
def test_the_engine_pads_little_of_ragged_prompts() -> None:
    found = script("bench_forwards").count_padding(slots=16, num_prompts=32)
    assert found["engine"] < 0.05 < found["batches in order"]
