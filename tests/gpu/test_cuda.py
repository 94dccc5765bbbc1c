"""On a CUDA device: rollout and trainer agree, and the loss does not depend on how the work is split."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "loop"))

import launch  # noqa: E402
import zero_rank  # noqa: E402

from rl4dlm.models import build_char_tokenizer, create, denoiser  # noqa: E402
from rl4dlm.trainers import make_method  # noqa: E402
from rl4dlm.trainers.method import MicroBatch  # noqa: E402
from rl4dlm.trainers.passes import estimate_rows  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize(("bf16", "tolerance"), [(False, 1e-4), (True, 5e-2)])
def test_rollout_and_trainer_agree_on_log_probabilities(bf16: bool, tolerance: float, tmp_path: Path) -> None:
    driver = launch.start_driver(
        launch.write_recipe(tmp_path),
        tmp_path,
        "run.name=cuda",
        f"trainer.bf16={str(bf16).lower()}",
        "cluster.num_trainers=1",
        "cluster.num_rollout_workers=1",
        "cluster.gpus_per_trainer=0.5",
        "cluster.gpus_per_rollout_worker=0.5",
    )
    launch.finish(driver, tmp_path)
    for row in launch.rows(tmp_path / "cuda" / "metrics.jsonl"):
        assert row["replay/logprob_abs_diff"] < tolerance


def test_an_estimate_does_not_depend_on_how_rows_share_a_pass() -> None:
    loaded = create(zero_rank.INIT, build_char_tokenizer("0123456789=+"), seed=1)
    model = denoiser(loaded, model=loaded.module.to("cuda"), device="cuda")
    trainer, batch = make_method(zero_rank.METHOD), zero_rank.fixed_batch(0)
    rows = tuple(range(zero_rank.ROWS))
    with torch.no_grad():
        together = estimate_rows(trainer.likelihood, model, batch, MicroBatch(rows, (0, 1), whole=True), 0)
        alone = [
            estimate_rows(trainer.likelihood, model, batch, MicroBatch((row,), (0, 1), whole=True), 0)
            for row in rows
        ]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=1e-4)
