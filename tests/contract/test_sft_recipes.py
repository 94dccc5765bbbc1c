"""Promises of the shipped recipes of fine-tuning: headers, published settings, dry runs on stand-ins."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from rl4dlm.recipe import SFTRecipe, dump_resolved, list_recipes, load_recipe
from rl4dlm.recipe.objectives import BlockObjective, RandomMaskObjective
from rl4dlm.recipe.sections import ModelInit

RECIPES = {name: path for name, path in list_recipes().items() if name.startswith("sft/")}
TINY = ["sft/tiny_blocks", "sft/tiny_sort"]
# Recipes for published models: the family of a stand-in, its block length, a row of the data.
LARGE = {
    "sft/dream_code": ("dream", None, {"prompt": "Add {}.", "response": "x + {}"}),
    "sft/llada_pairs": ("llada", None, {"prompt": "What is {}?", "completion": "It is {}."}),
    "sft/llada_s1k": ("llada", None, {"question": "What is {}?", "completion": "Think. {}"}),
    "sft/qwen3_to_blocks": ("a2d", 64, {"text": "A text about {} and more."}),
    "sft/sdar_math": ("sdar", 4, {"messages": [("user", "What is {}?"), ("assistant", "It is {}.")]}),
}


def header(name: str) -> str:
    """The comment that a recipe opens with, as one line of words."""
    lines = RECIPES[name].read_text(encoding="utf-8").splitlines()
    length = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return " ".join(word for line in lines[:length] for word in line.lstrip("# ").split())


def test_every_recipe_is_tested_here() -> None:
    assert sorted([*TINY, *LARGE]) == sorted(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_it_opens_with_what_a_reader_needs_and_reads_back_as_itself(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert isinstance(recipe, SFTRecipe) and recipe.run.name == name.replace("/", "_")
    assert all(word in header(name) for word in ("Purpose", "Hardware", "Cost", "Score"))
    if name in LARGE:
        assert "not run here" in header(name) and "NOT VERIFIED" in header(name)
        assert "YOU SET data.train" in header(name)
    dump_resolved(recipe, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


def test_published_settings() -> None:
    s1k, pairs, dream = (load_recipe(f"sft/{name}") for name in ("llada_s1k", "llada_pairs", "dream_code"))
    assert s1k.sft.objective == RandomMaskObjective(min_rate=1e-3) and s1k.trainer.learning_rate == 1e-5
    assert (s1k.trainer.lora.r, s1k.trainer.lora.lora_alpha) == (128, 256)
    assert s1k.trainer.max_steps * s1k.sft.batch_size == 20 * 1000
    assert (pairs.sft.batch_size, pairs.trainer.learning_rate, pairs.trainer.warmup_steps) == (
        256,
        2.5e-5,
        50,
    )
    assert pairs.trainer.weight_decay == 0.1 and pairs.sft.fill == "batch"
    assert dream.sft.objective == RandomMaskObjective(cart=0.3, weight="none")
    assert (dream.sft.batch_size, dream.trainer.learning_rate) == (576, 5e-6)
    convert = load_recipe("sft/qwen3_to_blocks")
    assert (convert.model.family, convert.model.block_length) == ("a2d", 64)
    assert convert.sft.objective == BlockObjective(mask_rule="count", half_life=0.1, rate_per="row")
    assert load_recipe("sft/sdar_math").sft.loss_average == "token"


def dry_run_output(recipe: SFTRecipe, folder: Path) -> str:
    """What `--dry-run` prints, as one line of words."""
    from rl4dlm.commands.dry_run import dry_run_sft

    with open(folder / "printed.txt", "w+", encoding="utf-8") as printed:
        dry_run_sft(recipe, Console(file=printed, width=160))
        printed.seek(0)
        return " ".join(printed.read().split())


@pytest.mark.parametrize("name", TINY)
def test_a_tiny_recipe_passes_a_dry_run_that_starts_nothing(name: str, tmp_path: Path) -> None:
    printed = dry_run_output(load_recipe(name, [f"run.output_dir={tmp_path}"]), tmp_path)
    assert "made from scratch" in printed and "completions: reference answers" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["printed.txt"]


@pytest.mark.parametrize("name", LARGE)
def test_a_large_recipe_passes_a_dry_run_on_a_stand_in_of_its_family(name: str, tmp_path: Path) -> None:
    from rl4dlm.models import build_bpe_tokenizer, create, save

    family, block_length, row = LARGE[name]
    tokenizer = build_bpe_tokenizer(["What is 1? It is 2. Think."], 300, chat_template=True)
    sizes = ModelInit(d_model=16, n_layers=1, n_heads=2, mlp_hidden_size=16, max_sequence_length=20000)
    model = create(sizes, tokenizer, seed=0, family=family, block_length=block_length)
    folder = save(model, tmp_path / "model", tokenizer)
    recipe = load_recipe(name)
    data = tmp_path / Path(recipe.data.train or "").name
    write_rows(data, row)
    overrides = [f"model.path={folder}", f"data.train={data}", f"run.output_dir={tmp_path}"]
    overrides += ["trainer.bf16=false", "cluster.gpus_per_trainer=0", "eval.num_prompts=4"]
    overrides += ["sft.batch_size=8", "cluster.num_trainers=1"]
    printed = dry_run_output(load_recipe(name, overrides), tmp_path)
    kind = "block" if block_length else "random_mask"
    assert f"sft, {kind}" in printed and f"{family}, " in printed
    if family != "a2d":
        assert "prompt from" in printed or "conversations in" in printed
    if name == "sft/llada_s1k":
        assert "warning" in printed and "lora_dropout = 0.05" in printed


def write_rows(file: Path, row: dict[str, object]) -> None:
    """Twenty rows like this one, with a number in each."""
    rows: list[dict[str, object]] = []
    for number in range(20):
        filled: dict[str, object] = {}
        for key, value in row.items():
            if isinstance(value, list):
                filled[key] = [{"role": role, "content": text.format(number)} for role, text in value]
            else:
                filled[key] = str(value).format(number)
        rows.append(filled)
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    else:
        file.write_text("".join(json.dumps(line) + "\n" for line in rows))
