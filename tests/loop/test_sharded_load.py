"""Two ranks load a model straight into ZeRO-3 partitions and train it as if each had loaded it whole."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest
import sharded_rank

from rl4dlm.models import LoadedModel, build_char_tokenizer, create, save
from rl4dlm.recipe.sections import ModelInit

pytestmark = pytest.mark.slow

SIZES = ModelInit(d_model=32, n_layers=2, n_heads=4, mlp_hidden_size=48, max_sequence_length=64)


CASES = {"full": ("a2d", 4), "bf16": ("llada2", 4), "lora": ("llada", None)}
"""Case of `sharded_rank.CASES` -> family and block length."""


@pytest.fixture(scope="module")
def models() -> dict[str, LoadedModel]:
    tokenizer = build_char_tokenizer("0123456789=")
    return {
        case: create(SIZES, tokenizer, 0, family=family, block_length=block_length)
        for case, (family, block_length) in CASES.items()
    }


@pytest.fixture(scope="module")
def reports(models: dict[str, LoadedModel], tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What both ranks said about every case."""
    place = tmp_path_factory.mktemp("sharded")
    folders = [f"{case}={save(m, place / case, m.tokenizer)}" for case, m in models.items()]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {**os.environ, "WORLD_SIZE": "2", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, sharded_rank.__file__, str(place / "out"), *folders],
            env={**environment, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=300)[0] for rank in ranks]
    for rank, output in zip(ranks, outputs, strict=True):
        assert rank.returncode == 0, output[-4000:]
    return [json.loads((place / f"out.{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_a_rank_holds_its_partition_and_only_the_first_reads(case, models, reports):
    module = models[case].module
    total, parameters = sum(p.numel() for p in module.parameters()), len(list(module.parameters()))
    stored = len(list(module.named_buffers())) - 1  # but for the head's forbidden ids
    for report in reports:
        assert report[case]["total"] == total and report[case]["whole"] == 0
        assert total / 2 <= report[case]["held"] <= total / 2 + parameters  # a partition is padded
    assert [report[case]["read"] for report in reports] == [parameters + stored, stored]


@pytest.mark.parametrize("case", CASES)
def test_the_model_and_its_first_step_are_those_of_a_model_loaded_whole(case, reports):
    for report in reports:
        assert report[case]["names"] and report[case]["moved"] > 1e-3
        # Sums of bfloat16 gradients over ranks may round otherwise; in float32 nothing differs.
        assert report[case]["score_gap"] <= (0.02 if case == "bf16" else 1e-6)
        assert report[case]["weight_gap"] <= (0.02 if case == "bf16" else 1e-6)
