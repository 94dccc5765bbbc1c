"""Promises of every shipped recipe: it parses without torch, opens with a comment, passes a dry run, and its
resolved form reads back as itself."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from rl4dlm.recipe import Recipe, dump_resolved, list_recipes, load_recipe
from rl4dlm.recipe.sections import ModelInit

RECIPES = {name: path for name, path in list_recipes().items() if not name.startswith("sft/")}
TINY = [name for name in RECIPES if load_recipe(name).model.init is not None]
LARGE = [name for name in RECIPES if name not in TINY]
LARGE_GDPO = [name for name in LARGE if name.startswith("gdpo/llada")]

ON_CPU = ["cluster.gpus_per_trainer=0", "cluster.gpus_per_rollout_worker=0", "eval.num_prompts=4"]
ROWS = {
    "gsm8k": {"question": "Ann has 2 apples and buys {}. How many?", "answer": "2 + {0} = 2+{0}\n#### 7"},
    "countdown": {"input": "3,{},3", "output": "{}"},
    "math": {"problem": "Ann has 2 apples and buys {}. How many?", "answer": "7"},
    "pairs": {
        "prompt": "Ann has 2 apples and buys {}. How many?",
        "chosen": "<answer>7</answer>",
        "rejected": "<answer>8</answer>",
        "answer": "7",
    },
    "sudoku": {"Puzzle": "3102200002100320", "Solution": "3142243142131324"},
}


def of(name: str, *overrides: str) -> Recipe:
    return load_recipe(name, overrides)


def header(name: str) -> str:
    """The comment that a recipe opens with, as one line of words."""
    lines = RECIPES[name].read_text(encoding="utf-8").splitlines()
    length = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return " ".join(word for line in lines[:length] for word in line.lstrip("# ").split())


def test_the_promised_recipes_are_there():
    promised = {f"gdpo/{kind}" for kind in ("tiny_sort", "tiny_countdown", "tiny_sudoku")}
    promised |= {f"gdpo/llada_{task}" for task in ("gsm8k", "countdown", "sudoku")} | {"quickstart"}
    promised |= {f"gdpo/{model}_gsm8k" for model in ("dream", "sdar", "trado")}
    promised |= {f"mdpo/{kind}" for kind in ("tiny_sort", "tiny_sort_rcr", "tiny_countdown")}
    promised |= {f"mdpo/llada_{task}" for task in ("math", "countdown")}
    assert promised <= RECIPES.keys()


def test_every_recipe_parses_without_torch():
    # What `load_recipe` imports is the same for all, so one process reads them all.
    code = (
        "import sys; from rl4dlm.recipe import list_recipes, load_recipe; "
        "[load_recipe(name) for name in list_recipes()]; "
        "print([m for m in ('torch', 'transformers', 'ray', 'deepspeed', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.parametrize("name", RECIPES)
def test_it_opens_with_purpose_hardware_cost_and_score(name):
    title = RECIPES[name].read_text(encoding="utf-8").splitlines()[0]
    assert title.startswith("# ") and 30 <= len(title) <= 120
    assert "Purpose" in header(name)
    if "/" in name:
        assert all(word in header(name) for word in ("Hardware", "Cost", "Score"))


@pytest.mark.parametrize("name", LARGE)
def test_a_recipe_that_was_not_run_says_so_and_one_whose_data_the_user_brings_says_that(name):
    assert "not run here" in header(name) and "NOT VERIFIED" in header(name)
    train = of(name).data.train or ""
    if Path(train).suffix:
        assert "YOU SET data.train" in header(name)


def test_runs_are_called_like_their_recipes_and_no_two_alike():
    names = {name: of(name).run.name for name in RECIPES}
    assert len(set(names.values())) == len(names)
    for recipe, run in names.items():
        assert run in (Path(recipe).name, recipe.replace("/", "_"))


@pytest.mark.parametrize("name", RECIPES)
def test_the_resolved_recipe_reads_back_as_itself(name, tmp_path):
    dump_resolved(of(name), tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == of(name)


@pytest.mark.parametrize("name", LARGE_GDPO)
def test_the_published_settings_of_gdpo_are_those_of_the_paper(name):
    recipe = of(name)
    algorithm, rollout, trainer = recipe.algorithm, recipe.rollout, recipe.trainer
    assert (algorithm.estimator, algorithm.num_nodes, algorithm.num_masks) == ("sdmc", 3, 1)
    assert (algorithm.num_iterations, algorithm.epsilon, algorithm.beta) == (12, 0.5, 0.0)
    assert rollout.prompts_per_update * rollout.num_generations == 96 and rollout.num_generations == 6
    assert (rollout.max_completion_length, rollout.block_length, rollout.diffusion_steps) == (256, 32, 128)
    assert (rollout.temperature, rollout.remasking) == (0.9, "low_confidence")
    assert (trainer.learning_rate, trainer.weight_decay, trainer.max_grad_norm) == (3e-7, 0.1, 0.2)
    assert trainer.adam_betas == (0.9, 0.99)
    assert trainer.lora is not None and (trainer.lora.r, trainer.lora.lora_alpha) == (128, 64)
    assert recipe.cluster.num_trainers == 8


@pytest.mark.parametrize("name", [name for name in LARGE if name.startswith("mdpo/llada")])
def test_the_published_settings_of_mdpo_are_those_of_its_code(name):
    recipe = of(name)
    algorithm, rollout, trainer = recipe.algorithm, recipe.rollout, recipe.trainer
    assert (algorithm.adv_kind, algorithm.sample_train_steps) == ("diff_plus_future", 8)
    assert (algorithm.num_iterations, algorithm.epsilon, algorithm.beta) == (1, 0.2, 0.02)
    assert (rollout.prompts_per_update, rollout.num_generations) == (16, 8)
    assert (rollout.max_completion_length, rollout.diffusion_steps) == (512, 128)
    assert rollout.block_lengths == [128, 512] and recipe.data.max_prompt_length == 320
    assert (rollout.temperature, rollout.remasking) == (0.4, "low_confidence")
    assert (trainer.learning_rate, trainer.lr_scheduler_type, trainer.zero_stage) == (7e-7, "constant", 2)
    assert trainer.lora is None and recipe.cluster.num_trainers == 8


@pytest.mark.parametrize("name", [name for name in LARGE if name.startswith("diffu_grpo/")])
def test_the_published_settings_of_diffu_grpo_are_those_of_the_paper(name):
    recipe = of(name)
    algorithm, rollout, trainer = recipe.algorithm, recipe.rollout, recipe.trainer
    assert algorithm.num_iterations == (8 if name.endswith("countdown") else 12)
    assert (algorithm.p_mask_prompt, algorithm.epsilon, algorithm.beta) == (0.15, 0.5, 0.04)
    assert (algorithm.kl_estimator, algorithm.scale_rewards) == ("k3", "none")
    assert rollout.prompts_per_update * rollout.num_generations == 96 and rollout.num_generations == 6
    assert (rollout.max_completion_length, rollout.block_length, rollout.diffusion_steps) == (256, 32, 128)
    assert (rollout.temperature, rollout.remasking) == (0.9, "low_confidence")
    assert (trainer.learning_rate, trainer.weight_decay, trainer.max_grad_norm) == (3e-6, 0.1, 0.2)
    assert trainer.lora is not None and (trainer.lora.r, trainer.lora.lora_alpha) == (128, 64)


# Sequence forwards of an update to sample, for old values, and to learn.
FORWARDS = {
    # 96 completions x 128 steps; 96 x 3 nodes x 12 passes, once for old values and once to learn.
    **dict.fromkeys((f"gdpo/llada_{task}" for task in ROWS), ("12,288", "3,456", "3,456")),
    "gdpo/dream_gsm8k": ("12,288", "3,456", "3,456"),
    # 96 completions x 64 blocks x 4 steps.
    **dict.fromkeys(("gdpo/sdar_gsm8k", "gdpo/trado_gsm8k"), ("24,576", "3,456", "3,456")),
    # 96 x 1 state x 12 passes, 8 for Countdown.
    **dict.fromkeys((f"diffu_grpo/llada_{task}" for task in ROWS), ("12,288", "1,152", "1,152")),
    "diffu_grpo/llada_countdown": ("12,288", "768", "768"),
    # 96 completions x 2 states x 4 passes, 96 x 1 x 8, and 64 x 8 steps; no ratios, so no old values.
    "spg/llada_gsm8k": ("12,288", "0", "768"),
    "wd1/llada_gsm8k": ("12,288", "0", "768"),
    "wd1pp/llada_gsm8k": ("8,192", "0", "512"),
    # 1,024 completions of 500 blocks x 4 steps, of which 4 are learnt; 256 x 512 or 1,024 steps, an eighth
    # of them learnt.
    **dict.fromkeys(("tracerl/sdar_math", "tracerl/trado_math"), ("2,048,000", "4,096", "4,096")),
    **dict.fromkeys(("tracerl/llada_math",), ("131,072", "16,384", "16,384")),
    "tracerl/dream_math": ("262,144", "32,768", "32,768"),
    # 64 recorded pairs x 2 x 8 states: nothing is sampled.
    "vrpo/llada_pairs": ("0", "0", "1,024"),
    # 96 x 4 states x 8 passes.
    "espo/llada_gsm8k": ("24,576", "3,072", "3,072"),
    # 160 completions x 256 steps; 160 x 3 views x 2 passes.
    "coupled_grpo/llada_gsm8k": ("40,960", "960", "960"),
    # 128 x 128 steps; 128 x 1 x 4 passes.
    "unigrpo/llada_gsm8k": ("16,384", "512", "512"),
    # 128 x 128 steps; 24 of them are learnt from, against what the sampler recorded.
    "agrpo/llada_gsm8k": ("16,384", "0", "3,072"),
    # 64 x 256 tokens, each learnt from once.
    "just_grpo/llada_gsm8k": ("16,384", "0", "16,384"),
    # At most 128 x 256 steps; the model learns nothing, and the policy's network is not counted.
    "unmasking_policy/llada_gsm8k": ("32,768", "0", "0"),
    # 128 x 128 steps; 128 x 8 chosen steps, with a reference and without old values.
    **dict.fromkeys(
        (f"mdpo/{name}" for name in ("llada_math", "dream_math", "llada_countdown")),
        ("16,384", "0", "1,024"),
    ),
    # 128 x 512 steps.
    **dict.fromkeys(("mdpo/sdar_math", "mdpo/trado_math"), ("65,536", "0", "1,024")),
}


def dry_run_output(recipe: Recipe) -> str:
    """What `--dry-run` prints."""
    from rl4dlm.commands.dry_run import dry_run

    with open(Path(recipe.run.output_dir) / "printed.txt", "w+", encoding="utf-8") as printed:
        dry_run(recipe, Console(file=printed, width=160))
        printed.seek(0)
        return printed.read()


@pytest.mark.parametrize("name", TINY)
def test_a_tiny_recipe_passes_a_dry_run_that_starts_nothing(name, tmp_path):
    printed = dry_run_output(of(name, f"run.output_dir={tmp_path}"))
    assert "made from scratch" in printed and "loaded and tried on two samples" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["printed.txt"]


def test_a_dry_run_names_a_schedule_that_overlaps(tmp_path):
    for schedule, told in (("sync", False), ("one_step_off", True)):
        recipe = of("quickstart", f"run.output_dir={tmp_path}", f"cluster.schedule={schedule}")
        assert ("drawn while an update runs" in dry_run_output(recipe)) is told


FAMILIES = {"llada": "llada", "dream": "dream", "sdar": "sdar", "trado": "sdar"}
"""First word of a large recipe's name -> architecture."""


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By architecture a folder in the published layout, with a chat template, in place of weights that are
    not here."""
    from rl4dlm.models import build_bpe_tokenizer, create, save

    texts = ["Ann has 2 apples and buys 5. How many?", "Use every one of the numbers 3,5,7 exactly once."]
    tokenizer = build_bpe_tokenizer(texts, 300, chat_template=True)
    sizes = ModelInit(d_model=16, n_layers=1, n_heads=2, mlp_hidden_size=16, max_sequence_length=4096)
    place = tmp_path_factory.mktemp("model")
    blocks = {"sdar": 4}
    return {
        family: save(
            create(sizes, tokenizer, seed=0, family=family, block_length=blocks.get(family)),
            place / family,
            tokenizer,
        )
        for family in set(FAMILIES.values())
    }


def data_overrides(name: str, folder: Path) -> Iterator[str]:
    """A small local file with the columns that a recipe expects, for training and evaluation."""
    row = ROWS[Path(name).name.rpartition("_")[2]]
    path = folder / "rows.jsonl"
    rows = [{key: value.replace("{}", str(i)) for key, value in row.items()} for i in range(100)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    yield f"data.train={path}"
    yield "data.subset=null"
    # A hub dataset has a split for evaluation; of the user's own file the last rows are held out.
    yield f"data.eval={path if of(name).data.eval else 'null'}"


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_a_large_recipe_passes_a_dry_run_on_a_tiny_model_and_a_few_rows(name, tmp_path, stand_ins):
    data = tmp_path / "data"
    data.mkdir()
    # The stand-in's tokenizer needs a token or more per byte pair, so prompts are longer than LLaDA's.
    model = stand_ins[FAMILIES[Path(name).name.partition("_")[0]]]
    settings = [f"model.path={model}", "data.max_prompt_length=2000", "trainer.bf16=false", *ON_CPU]
    recipe = of(name, *data_overrides(name, data), f"run.output_dir={tmp_path}", *settings)
    printed = " ".join(dry_run_output(recipe).split())
    assert "chat template is applied" in printed and "loaded and tried on two samples" in printed
    sample, old, learn = FORWARDS[name]
    stages = {"rollout": sample, "old": old, "update (forward and backward)": learn}
    for stage, count in stages.items():  # 0 is not printed
        assert (re.search(rf"\b{re.escape(stage)} {count}\b", printed) is not None) == (count != "0")


@pytest.mark.parametrize("name", LARGE)
def test_what_the_model_reads_holds_the_task_and_asks_for_the_tags_that_the_reward_reads(name, tmp_path):
    from rl4dlm.data.template import PromptTemplate

    recipe = of(name)
    row = ROWS[Path(name).name.rpartition("_")[2]]
    template = PromptTemplate.parse(recipe.data.prompt_template or "{prompt}")
    prompt = row[recipe.data.prompt_column or ("prompt" if "prompt" in row else "question")]
    text = template.fill({**row, "prompt": prompt}, "row 0")
    assert prompt in text and "{prompt}" not in text
    assert ("<answer>" in text and "</answer>" in text) or text.endswith(r"\boxed{}.")
    if name.endswith("/llada_countdown"):
        assert row["output"] in text
