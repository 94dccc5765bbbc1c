"""A whole run that trains adapters on a model folder under ZeRO-3, with a KL to the frozen base."""

from __future__ import annotations

from pathlib import Path

import launch
import pytest

from rl4dlm.commands.export import export
from rl4dlm.loops.train import train
from rl4dlm.models import build_char_tokenizer, create, save
from rl4dlm.recipe import load_recipe
from rl4dlm.recipe.sections import ModelInit
from rl4dlm.run.folder import RunFolder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder as a user would bring one."""
    folder = tmp_path_factory.mktemp("base") / "model"
    model = create(ModelInit(**launch.TINY["model"]["init"]), build_char_tokenizer("0123456789="), seed=3)
    return save(model, folder, model.tokenizer)


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    output = tmp_path_factory.mktemp("lora")
    recipe = load_recipe(
        launch.write_recipe(output),
        [
            f"run.output_dir={output}",
            "model.init=null",
            f"model.path={base}",
            "warm_start=null",
            "trainer.zero_stage=3",
            "trainer.lora={r: 4, lora_alpha: 8}",
            "trainer.learning_rate=1e-2",
            "trainer.max_steps=2",
            "trainer.save_steps=1",
            "algorithm.beta=0.1",
            "algorithm.num_iterations=2",
            "trainer.gradient_checkpointing=true",
        ],
    )
    return train(recipe)


def test_only_adapters_travel_and_rollouts_match_the_trainer(run: RunFolder, base: Path) -> None:
    whole = sum(path.stat().st_size for path in base.glob("*.safetensors"))
    metrics = launch.rows(run.root / "metrics.jsonl")
    assert len(metrics) == 2
    for row in metrics:
        assert row["sync/mbytes"] * 2**20 < whole / 2
        assert row["replay/logprob_abs_diff"] < 1e-5
    assert metrics[1]["kl"] > 0  # the policy has left the base by its second update


def test_the_base_folder_is_untouched_and_the_export_is_not_the_base(run: RunFolder, base: Path) -> None:
    again = create(ModelInit(**launch.TINY["model"]["init"]), build_char_tokenizer("0123456789="), seed=3)
    fresh = save(again, base.parent / "fresh", again.tokenizer)
    assert launch.weights_digest(base) == launch.weights_digest(fresh)
    assert launch.weights_digest(run.model) != launch.weights_digest(base)


def test_a_checkpoint_holds_adapters_and_exports_merged(run: RunFolder, tmp_path: Path) -> None:
    newest = run.find()
    assert newest is not None and newest.parts.adapter.is_dir() and not newest.parts.model.exists()
    exported = export(run.root, tmp_path / "merged")
    assert launch.weights_digest(exported) == launch.weights_digest(run.model)
