"""Bad input through the command line: one message that says what, where and how to fix it; exit status 2;
nothing started, nothing written, nothing overwritten."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from rl4dlm import cli
from rl4dlm.models import build_char_tokenizer, create, save
from rl4dlm.recipe import load_recipe
from rl4dlm.recipe.sections import ModelInit
from rl4dlm.run.folder import RunFolder

Refused = Callable[..., str]

BOTH = pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["train", "dry-run"])
DATASET = [
    "data.task=null",
    "warm_start=null",
    "model.init.tokenizer.type=byte_bpe",
    "data.max_prompt_length=16",
    "eval.num_prompts=2",
    "rollout.prompts_per_update=4",
]


@pytest.fixture(scope="session")
def good_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model folder that can be loaded."""
    tokenizer = build_char_tokenizer("0123456789=")
    init = ModelInit(d_model=16, n_layers=1, n_heads=2, mlp_hidden_size=16, max_sequence_length=64)
    return save(create(init, tokenizer, seed=0), tmp_path_factory.mktemp("model") / "tiny", tokenizer)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the user works in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


@pytest.fixture
def model(place: Path, good_model: Path) -> Path:
    """A copy of the tiny model to be damaged; the recipe reaches it as `model`."""
    return Path(shutil.copytree(good_model, place / "model"))


USE_MODEL = ["model.init=null", "warm_start=null", "model.path=model"]


def snapshot(folder: Path) -> dict[str, str]:
    """Every path below a folder with a hash of what it holds."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "/"
        for path in folder.rglob("*")
    }


@pytest.fixture
def refused(place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Refused:
    """Runs `rl4dlm ARGUMENTS`, checks what every refusal owes the user, and returns its message.

    `told` are parts of the message: what is wrong, where, and the remedy.
    """

    def run(*arguments: str, told: list[str]) -> str:
        before = snapshot(place)
        children = set(psutil.Process().children(recursive=True))
        monkeypatch.setattr(sys, "argv", ["rl4dlm", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        message = capfd.readouterr().err
        assert stop.value.code == 2, message
        assert message.startswith("rl4dlm: ") and message.count("rl4dlm: ") == 1, message
        assert "Traceback" not in message
        assert [part for part in told if part not in message] == [], message
        assert snapshot(place) == before
        assert set(psutil.Process().children(recursive=True)) <= children
        assert "ray" not in sys.modules or not sys.modules["ray"].is_initialized()
        return message

    return run


def write_rows(file: Path, rows: list[dict[str, object]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


# --- The recipe ---


@BOTH
@pytest.mark.parametrize(
    ("override", "told"),
    [
        (
            "rollout.blok_length=8",
            ["override", "unknown key rollout.blok_length", "Fix", "rollout.block_length"],
        ),
        ("trainer.lr=1e-4", ["trainer.lr", "verl", "trainer.learning_rate"]),
        ("trainer.max_steps=many", ["trainer.max_steps = 'many'", "not a valid integer", "Fix: make it"]),
        (
            "reward.functions=[{pth: sort}]",
            ["reward.functions.0.pth", "Fix: did you mean reward.functions.0.path"],
        ),
        (
            "rollout.block_length=3",
            ["rollout.block_length = 3", "= 8", "Fix: use a divisor such as 1 or 2 or 4"],
        ),
        ("rollout.num_generations=1", ["rollout.num_generations = 1", "Fix: use at least 2"]),
        (
            "rollout.threshold=0.8",
            ["rollout.threshold = 0.8 is not read by", "Fix: remove it, or use dynamic"],
        ),
        ("rollout.threshold=1.5", ["rollout.threshold = 1.5", "Fix: "]),
        ("rollout.cache=block", ["rollout.cache = block is for block_causal attention", "Fix: use none or"]),
        ("rollout.cache=paged", ["rollout.cache", "paged", "Fix: "]),
        ("rollout.engine=no.such:thing", ["rollout.engine = 'no.such:thing'", "Fix: use builtin"]),
        ("rollout.diffusion_steps=${rollout.x}", ["rollout.diffusion_steps", "rollout.x", "Fix: "]),
        ("trainer.adam_betas=[0.9", ["trainer.adam_betas=[0.9", "not valid YAML", "Fix: check brackets"]),
        ("model.init.max_sequence_length=14", ["14 positions", "Fix: lower them to 14"]),
        ("step=5", ["step=5", "Fix: add --resume"]),
    ],
)
def test_a_wrong_setting(dry: list[str], override: str, told: list[str], refused: Refused) -> None:
    refused("train", *dry, "quickstart", override, told=told)


@BOTH
@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "trainer: {max_steps: 3\n",
            ["mine.yaml, line 2, column 1: not valid YAML", "Fix: check indentation"],
        ),
        ("rollout:\n  slots: 8\n   temperature: 1\n", ["mine.yaml, line 3", "not valid YAML", "Fix: "]),
        ("- sort\n", ["mine.yaml: holds a list", "Fix: "]),
        (
            "trainer: {max_stepz: 3}\n",
            ["mine.yaml: unknown key trainer.max_stepz", "Fix: did you mean trainer.max_steps"],
        ),
        ("temperature: 1\n", ["mine.yaml: unknown key temperature", "TRL", "rollout.temperature"]),
        ("trainer:\n", ["mine.yaml: trainer is empty", "Fix: "]),
    ],
)
def test_a_recipe_file_that_is_wrong(
    dry: list[str], text: str, told: list[str], place: Path, refused: Refused
) -> None:
    (place / "mine.yaml").write_text(text)
    refused("train", *dry, "quickstart", "mine.yaml", told=told)


def test_a_recipe_file_of_bytes(place: Path, refused: Refused) -> None:
    (place / "mine.yaml").write_bytes(b"\xff\xfe\x00trainer")
    refused("train", "mine.yaml", told=["mine.yaml", "Fix: "])


@BOTH
def test_a_recipe_that_is_not_there(dry: list[str], refused: Refused) -> None:
    refused(
        "train", *dry, "quikstart", told=["quikstart: no such recipe", "quickstart?", "Fix: ", "recipes ls"]
    )
    refused("train", *dry, "my/recipe.yaml", told=["my/recipe.yaml: no such recipe", "Fix: ", "recipes ls"])
    refused("train", *dry, "run.seed=1", told=["no recipe was named", "Fix: "])


@BOTH
def test_a_recipe_that_lacks_sections(dry: list[str], place: Path, refused: Refused) -> None:
    (place / "empty.yaml").write_text("# to be written\n")
    message = refused("train", *dry, "empty.yaml", told=["empty.yaml: model is missing", "Fix: add it"])
    assert message.count(" is missing") == 4


# --- The model ---


def drop_tensor(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    del tensors["model.transformer.ln_f.weight"]
    save_file(tensors, model / "model.safetensors")


def bend_tensor(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["model.transformer.ln_f.weight"] = torch.zeros(17)
    save_file(tensors, model / "model.safetensors")


def pickle_tensors(model: Path) -> None:
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()


def cut_tensors(model: Path) -> None:
    data = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(data[:-10])


def other_family(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))


DAMAGES = [
    (lambda model: (model / "config.json").unlink(), ["model/config.json is missing", "Fix: "]),
    (
        lambda model: (model / "config.json").write_text("{"),
        ["model/config.json cannot be read (not JSON", "Fix: "],
    ),
    (other_family, ["model/config.json", "llama", "Fix: "]),
    (drop_tensor, ["model", "tensor model.transformer.ln_f.weight is missing", "Fix: "]),
    (
        bend_tensor,
        ["model.safetensors: tensor model.transformer.ln_f.weight has shape [17]", "[16]", "Fix: "],
    ),
    (pickle_tensors, ["pickle format (pytorch_model.bin)", "Fix: convert them to safetensors"]),
    (cut_tensors, ["model.safetensors is truncated or damaged", "Fix: "]),
    (lambda model: (model / "model.safetensors").unlink(), ["model has neither model.safetensors", "Fix: "]),
    (lambda model: (model / "tokenizer.json").unlink(), ["model/tokenizer.json is missing", "Fix: "]),
    (
        lambda model: (model / "tokenizer.json").write_text("{}"),
        ["model: the tokenizer cannot be read", "Fix: "],
    ),
]
DAMAGE_NAMES = (
    "no-config broken-config family missing bent pickle cut no-weights no-tokenizer tokenizer".split()
)


@BOTH
@pytest.mark.parametrize(("damage", "told"), DAMAGES, ids=DAMAGE_NAMES)
def test_a_damaged_model_folder(
    dry: list[str], damage: Callable[[Path], object], told: list[str], model: Path, refused: Refused
) -> None:
    damage(model)
    refused("train", *dry, "quickstart", *USE_MODEL, told=told)


@pytest.mark.parametrize(("damage", "told"), DAMAGES, ids=DAMAGE_NAMES)
def test_a_damaged_model_folder_in_other_commands(
    damage: Callable[[Path], object], told: list[str], model: Path, refused: Refused
) -> None:
    damage(model)
    refused("eval", "quickstart", "--model", "model", told=told)
    refused("sample", "--model", "model", "--prompt", "21=", told=told)


@BOTH
def test_a_model_that_is_not_there(dry: list[str], place: Path, refused: Refused) -> None:
    missing = ["nowhere: no such folder", "Fix: "]
    refused(
        "train", *dry, "quickstart", "model.init=null", "warm_start=null", "model.path=nowhere", told=missing
    )
    refused("eval", "quickstart", "--model", "nowhere", told=missing)
    refused("sample", "--model", "nowhere", "--prompt", "21=", told=missing)
    (place / "weights.safetensors").write_text("")
    refused(
        "eval", "quickstart", "--model", "weights.safetensors", told=["is a file", "Fix: give the folder"]
    )


# --- The data ---


@BOTH
@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("nowhere.jsonl", None, ["data.train = nowhere.jsonl: no such file", "Fix: correct the path"]),
        ("rows.jsonl", "", ["data.train = rows.jsonl: the file is empty", "Fix: "]),
        ("rows.csv", "prompt,answer\n", ["data.train = rows.csv: holds no rows", "Fix: "]),
        (
            "rows.jsonl",
            '{"prompt": "1"\n',
            ["rows.jsonl, row 0 (line 1): not JSON", "Fix: write one"],
        ),
        (
            "rows.txt",
            "1 2 3\n",
            ["data.train = rows.txt: unknown file type '.txt'", "Fix: use one of .jsonl"],
        ),
        (
            "rows.jsonl",
            '{"q": "1", "a": "2"}\n' * 9,
            ["data.train = rows.jsonl: no column convention fits", "`q`, `a`", "Fix: set data.prompt_column"],
        ),
        (
            "rows.jsonl",
            '{"prompt": "1", "answer": "2"}\n' * 3,
            ["data.train = rows.jsonl", "rollout.prompts_per_update = 4", "Fix: lower"],
        ),
        (
            "rows.jsonl",
            '{"prompt": "1", "answer": "2"}\n' * 9 + '{"prompt": null, "answer": "2"}\n',
            ["data.train = rows.jsonl, row 9", "`prompt` is empty", "Fix: "],
        ),
    ],
)
def test_a_dataset_that_cannot_be_used(
    dry: list[str], name: str, content: str | None, told: list[str], place: Path, refused: Refused
) -> None:
    if content is not None:
        (place / name).write_text(content)
    refused("train", *dry, "quickstart", *DATASET, f"data.train={name}", told=told)


def test_a_dataset_without_the_column_that_the_recipe_names(place: Path, refused: Refused) -> None:
    write_rows(place / "rows.jsonl", [{"prompt": "1", "answer": "2"}] * 9)
    told = ["data.train = rows.jsonl: no column `promt`", "`prompt`, `answer`", "Fix: set data.prompt_column"]
    refused(
        "train",
        "--dry-run",
        "quickstart",
        *DATASET,
        "data.train=rows.jsonl",
        "data.prompt_column=promt",
        told=told,
    )


# --- The rewards ---

PLUGINS = {
    "import.py": "import no_such_module\n\n\ndef reward(prompts, completions, **columns):\n    return []\n",
    "syntax.py": "def reward(:\n",
    "raises.py": "raise OSError('no licence found')\n",
    "exits.py": "import os\n\nos._exit(3)\n",
    "signature.py": "def signature(text):\n    return 1.0\n",
    "none.py": "THRESHOLD = 3\n",
    "fails.py": "def fails(prompts, completions, **columns):\n    return [1 / 0 for _ in prompts]\n",
    "length.py": "def length(prompts, completions, **columns):\n    return [1.0, 2.0, 3.0]\n",
    "good.py": "def good(prompts, completions, **columns):\n    return [1.0 for _ in prompts]\n",
}


@BOTH
@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("srot", ["reward function 'srot'", "rewards ls"]),
        ("./nowhere.py", ["nowhere.py: no such file", "Fix: "]),
        ("nowhere:reward", ["nowhere:reward", "No module named 'nowhere'", "Fix: "]),
        ("import.py", ["import.py", "No module named 'no_such_module'", "import.py:1", "Fix: "]),
        ("syntax.py", ["syntax.py", "SyntaxError", "syntax.py:1", "Fix: "]),
        ("raises.py", ["raises.py", "no licence found", "Fix: "]),
        ("exits.py", ["exits.py", "ended its process"]),
        ("signature.py", ["signature.py", "parameters (text)", "f(prompts, completions, **columns)"]),
        ("none.py", ["none.py", "no function", "Fix: "]),
        ("good.py:god", ["good.py", "no function god", "it has: good", "Fix: "]),
        ("fails.py", ["fails.py", "ZeroDivisionError", "Fix: "]),
        ("length.py", ["length.py", "wrong_length", "for 1 completion.", "Fix: "]),
    ],
)
def test_a_reward_that_cannot_be_used(
    dry: list[str], path: str, told: list[str], place: Path, refused: Refused
) -> None:
    for name, text in PLUGINS.items():
        (place / name).write_text(text)
    refused("train", *dry, "quickstart", f"reward.functions=[{path}]", told=told)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["reward.functions=[sort, sort]"], ["2 functions are called sort", "Fix: "]),
        (["reward.accuracy=exact"], ["reward.accuracy = 'exact'", "sort"]),
        (["reward.reward_weights=[1, 2]"], ["reward.reward_weights has 2 entries for 1", "Fix: "]),
    ],
)
def test_rewards_that_do_not_fit_together(overrides: list[str], told: list[str], refused: Refused) -> None:
    refused("train", "--dry-run", "quickstart", *overrides, told=told)


def test_a_reference_that_no_completion_can_equal(place: Path, refused: Refused) -> None:
    rows: list[dict[str, object]] = [{"prompt": str(i), "answer": f"#### {i}"} for i in range(30)]
    held_out = [*rows, {"prompt": "q", "answer": "\\boxed{"}, {"prompt": "q", "answer": "1"}]
    rows[17]["answer"] = "Some, but it is not told.\n#### many"
    write_rows(place / "rows.jsonl", rows)
    write_rows(place / "held_out.jsonl", held_out)
    run = ["train", "--dry-run", "quickstart", *DATASET, "reward.accuracy=null"]
    for name, where in (("gsm8k", "data.train, row 17"), ("math", "data.train, row 17")):
        if name == "math":
            rows[17]["answer"] = "\\boxed{}"
            write_rows(place / "rows.jsonl", rows)
        arguments = ["data.train=rows.jsonl", f"reward.functions=[{name}]"]
        refused(
            *run, *arguments, told=[f"{where}: reward function {name}: ", "Fix: correct or remove the row"]
        )
    arguments = ["data.train=held_out.jsonl", "reward.functions=[math]"]
    refused(*run, *arguments, told=["evaluation, row 30: reward function math: ", "'\\\\boxed{'"])
    told = ["row 17: reward function math: ", "states no answer", "Fix: "]
    refused("rewards", "test", "math", "--data", "rows.jsonl", told=told)


def test_a_reward_that_cannot_be_tried(place: Path, refused: Refused) -> None:
    (place / "signature.py").write_text(PLUGINS["signature.py"])
    (place / "rows.jsonl").write_text('{"prompt": "1", "completion": "2"}\n{"prompt": "1"}\n')
    (place / "broken.jsonl").write_text("{\n")
    refused("rewards", "test", "srot", told=["'srot'", "rewards ls"])
    refused("rewards", "test", "nowhere.py", told=["nowhere.py: no such file", "Fix: "])
    refused(
        "rewards", "test", "signature.py", told=["parameters (text)", "f(prompts, completions, **columns)"]
    )
    refused(
        "rewards", "test", "sort", "--data", "nowhere.jsonl", told=["nowhere.jsonl: no such file", "Fix: "]
    )
    refused("rewards", "test", "sort", "--set", "exact", told=["'exact' has no value", "Fix: "])
    refused(
        "rewards", "test", "sort", "--data", "rows.jsonl", told=["rows.jsonl, row 1", "completion", "Fix: "]
    )
    refused(
        "rewards",
        "test",
        "sort",
        "--data",
        "broken.jsonl",
        told=["row 0 (line 1): not JSON", "Fix: "],
    )


# --- The machine and the run's folder ---


def test_a_cluster_that_does_not_answer(refused: Refused) -> None:
    refused(
        "train",
        "quickstart",
        "cluster.address=127.0.0.1:1",
        told=["cluster.address", "127.0.0.1:1", "ray start --head"],
    )


@BOTH
def test_more_gpus_than_there_are(dry: list[str], refused: Refused) -> None:
    told = [
        "asks for 64 GPUs",
        "cluster.num_trainers = 64",
        f"machine has {torch.cuda.device_count()}",
        "Fix: ",
    ]
    refused("train", *dry, "quickstart", "cluster.num_trainers=64", "cluster.gpus_per_trainer=1", told=told)


@pytest.fixture
def old_run(place: Path) -> RunFolder:
    """`runs/quickstart`, with a checkpoint of update 40 that lacks an engine."""
    recipe = load_recipe("quickstart")
    run = RunFolder.of(recipe)
    run.create(recipe)
    run.save_checkpoint(40, lambda folder: None, {"model": "model"}, keep=2)
    return run


def test_an_output_folder_that_holds_another_run(old_run: RunFolder, refused: Refused) -> None:
    told = [
        "runs/quickstart already holds another run",
        "nothing was overwritten",
        "Fix: ",
        "run.name",
        "--resume",
    ]
    refused("train", "quickstart", told=told)
    (old_run.root.parent / "notes").write_text("mine")
    refused(
        "train",
        "quickstart",
        "run.name=notes",
        told=["runs/notes already holds something else", "Fix: "],
    )


@BOTH
def test_resuming_what_is_not_the_same_run(dry: list[str], old_run: RunFolder, refused: Refused) -> None:
    resume = ["train", *dry, "quickstart", "--resume"]
    told = [
        "runs/quickstart/recipe.yaml",
        "model.init.d_model = 128",
        "64",
        "Fix: set model.init.d_model=128",
    ]
    refused(*resume, "model.init.d_model=64", told=told)
    told = ["no complete checkpoint of update 50", "it has: 40", "Fix: "]
    refused(*resume, "step=50", "trainer.max_steps=500", told=told)
    refused(*resume, "step=last", told=["'step=last'", "Fix: write step=50"])
    refused(*resume, "run.name=other", told=["runs/other holds no run to resume", "Fix: "])


def test_exporting_what_cannot_be_exported(old_run: RunFolder, place: Path, refused: Refused) -> None:
    (place / "there").mkdir()
    refused("export", "runs/quickstart", "there", told=["there exists", "nothing was overwritten", "Fix: "])
    refused("export", "runs/other", "out", told=["runs/other holds no run", "Fix: "])
    refused("export", "runs/quickstart", "out", "--step", "7", told=["update 7", "it has: 40", "Fix: "])
    shutil.rmtree(old_run.checkpoints)
    refused("export", "runs/quickstart", "out", told=["no complete checkpoint yet", "Fix: "])


# --- Other commands ---


def test_recipes_that_are_not_there_or_would_overwrite(place: Path, refused: Refused) -> None:
    (place / "mine.yaml").write_text("# mine\n")
    refused("recipes", "show", "quikstart", told=["quikstart: no such recipe", "quickstart?", "Fix: "])
    refused("recipes", "cp", "nothing", "new.yaml", told=["nothing: no such recipe", "Fix: "])
    refused(
        "recipes",
        "cp",
        "quickstart",
        "mine.yaml",
        told=["mine.yaml exists", "nothing was overwritten", "Fix: "],
    )
    refused("recipes", "cp", "quickstart", "no/new.yaml", told=["no is no folder", "Fix: "])


def test_evaluations_that_cannot_be_made(place: Path, refused: Refused) -> None:
    (place / "scores.json").write_text("{}")
    told = ["scores.json exists", "nothing was overwritten", "Fix: "]
    refused("eval", "quickstart", "--output", "scores.json", told=told)
    refused("eval", "quickstart", "--output", "no/scores.json", told=["no is no folder", "Fix: "])
    refused("eval", "runs/nothing", told=["runs/nothing: no such recipe", "Fix: "])
    refused(
        "eval",
        "quickstart",
        "eval.num_prompt=3",
        told=["eval.num_prompt", "Fix: did you mean eval.num_prompts"],
    )


def test_samples_that_cannot_be_drawn(model: Path, refused: Refused) -> None:
    sample = ["sample", "--model", "model", "--prompt", "21="]
    refused(*sample, "--recipe", "nothing", told=["nothing: no such recipe", "Fix: "])
    refused(
        *sample, "--set", "temprature=0", told=["rollout.temprature", "Fix: did you mean rollout.temperature"]
    )
    refused(*sample, "--set", "temperature=[0", told=["not valid YAML", "Fix: "])
    refused(*sample, "--set", "block_length=7", told=["rollout.block_length = 7", "Fix: use a divisor"])
    refused(*sample, "--sampler", "greedy", told=["rollout.remasking", "greedy", "Fix: "])
    refused("sample", told=["sampling needs a model and a prompt", "Fix: add --model"])
    refused("inspect", "nowhere", told=["nowhere holds no recorded rollouts", "Fix: give a run's folder"])
    # The default canvas is longer than the tiny model's 64 positions.
    refused(*sample, told=["3 prompt tokens", "canvas of 256", "end at 64", "Fix: "])


@pytest.mark.parametrize(
    "arguments", [("trane",), ("train",), ("train", "--nope", "quickstart"), ("export",)]
)
def test_usage_errors_have_the_same_status(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["rl4dlm", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert "--help" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["rollout.blok_length=8"], "did you mean rollout.block_length?"),
        (["reward.functions=[./nowhere.py]"], "nowhere.py: no such file"),
        (["model.init=null", "warm_start=null", "model.path=nowhere"], "nowhere: no such folder"),
        (["reward.functions=[signature.py]"], "parameters (text)"),
    ],
)
def test_the_answer_comes_at_once_and_leaves_nothing_running(
    arguments: list[str], told: str, place: Path
) -> None:
    (place / "signature.py").write_text(PLUGINS["signature.py"])
    before, used = snapshot(place), resource.getrusage(resource.RUSAGE_CHILDREN)
    driver = subprocess.Popen(
        [sys.executable, "-c", "from rl4dlm.cli import main; main()", "train", "quickstart", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    _, message = driver.communicate(timeout=60)
    assert driver.returncode == 2 and told in message and "Traceback" not in message
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Processor time, because other work on the machine stretches the wall clock.
    assert now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime < 8
    assert snapshot(place) == before
    with pytest.raises(ProcessLookupError):
        os.killpg(driver.pid, 0)


# --- The estimator lab ---


def test_an_estimate_that_cannot_be_made(place: Path, model: Path, refused: Refused) -> None:
    write_rows(place / "rows.jsonl", [{"prompt": "1=", "completion": "2"}])
    write_rows(place / "long.jsonl", [{"prompt": "1=", "completion": "2" * 80}])
    (place / "empty.jsonl").touch()
    (place / "old.svg").write_text("kept")
    rows = ("estimate", "rows.jsonl", "--model")
    refused("estimate", "rows.jsonl", told=["rows.jsonl holds completions and no model", "Fix: add --model"])
    refused(*rows, "nowhere", told=["nowhere: no such folder", "Fix: "])
    refused("estimate", "nowhere.jsonl", "--model", "model", told=["nowhere.jsonl: no such file", "Fix: "])
    refused("estimate", "empty.jsonl", "--model", "model", told=["empty.jsonl: holds no rows", "Fix: "])
    refused(
        "estimate",
        "long.jsonl",
        "--model",
        "model",
        told=["long.jsonl, row 0", "81", "64 positions", "Fix: "],
    )
    refused(*rows, "model", "--estimators", "simpson", told=["'simpson'", "stratified", "Fix: "])
    refused(*rows, "model", "--forwards", "0,2", told=["--forwards '0,2'", "Fix: write 1,2,4"])
    refused(*rows, "model", "--estimators", "coupled", "--forwards", "3", told=["--forwards 3", "Fix: "])
    refused(*rows, "model", "--scope", "all", told=["--scope 'all'", "until_eos or canvas"])
    refused(*rows, "model", "--device", "tpu", told=["--device tpu", "Fix: "])
    refused(*rows, "model", "--plot", "curves.png", told=["curves.png is no .svg file", "curves.svg"])
    refused(*rows, "model", "--plot", "old.svg", told=["old.svg exists", "Fix: "])
    refused(*rows, "model", "--plot", "no/curves.svg", told=["no is no folder", "Fix: "])


def test_two_models_that_cannot_be_compared(place: Path, model: Path, refused: Refused) -> None:
    tokenizer = build_char_tokenizer("0123456789=+")
    init = ModelInit(d_model=16, n_layers=1, n_heads=2, mlp_hidden_size=16, max_sequence_length=64)
    save(create(init, tokenizer, seed=0), place / "other", tokenizer)
    write_rows(place / "rows.jsonl", [{"prompt": "1=", "completion": "2"}])
    refused(
        *("estimate", "rows.jsonl", "--model", "model", "--against", "other"),
        told=["--against other", "another vocabulary", "Fix: "],
    )
