"""The command line: quick help, examples, exit statuses."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from rl4dlm import __version__, cli
from rl4dlm.errors import Interrupted, RecipeError, RunError, StorageError
from rl4dlm.run.folder import RunFolder

HEAVY = {
    "torch",
    "ray",
    "transformers",
    "datasets",
    "deepspeed",
    "peft",
    "numpy",
    "wandb",
    "pandas",
    "pyarrow",
}


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Exit status of `rl4dlm ARGUMENTS`, in this process."""
    monkeypatch.setattr(sys, "argv", ["rl4dlm", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert isinstance(stop.value.code, int)
    return stop.value.code


def leaf_commands(command: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    subcommands = getattr(command, "commands", None)
    if subcommands is None:
        yield path
    for name, inner in (subcommands or {}).items():
        yield from leaf_commands(inner, (*path, name))


COMMANDS = list(leaf_commands(typer.main.get_command(cli.app)))


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("train", "--help"), ("recipes", "ls")])
def test_what_answers_at_once_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    code = (
        "import sys\nfrom rl4dlm.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as stop:\n    assert stop.code == 0, stop.code\n"
        f"print(sorted({HEAVY} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.stderr.strip().splitlines()[-1] == "[]", done.stderr
    assert done.stdout


def test_the_commands_are_those_of_the_design() -> None:
    expected = {"train", "eval", "sample", "export", "doctor", "rewards ls", "rewards test"}
    assert expected | {"recipes ls", "recipes show", "recipes cp"} <= {" ".join(c) for c in COMMANDS}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, *command, "--help") == 0
    assert f"Example: rl4dlm {' '.join(command)}" in capsys.readouterr().out


def test_the_version_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(monkeypatch, "--version") == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize(
    ("raised", "status", "message"),
    [
        (None, 0, ""),
        (RecipeError("wrong.\nFix: correct it."), 2, "rl4dlm: wrong.\nFix: correct it.\n"),
        (RunError("worker 3 failed."), 1, "rl4dlm: worker 3 failed.\n"),
        (StorageError("disk full."), 2, "rl4dlm: disk full.\n"),
        (KeyboardInterrupt(), 130, "rl4dlm: interrupted.\n"),
        (Interrupted(signal.SIGTERM, "how to resume"), 143, "rl4dlm: how to resume\n"),
        (SystemExit(3), 3, ""),
        (SystemExit("text"), 1, ""),
        (SystemExit(), 0, ""),
    ],
)
def test_the_exit_status_says_whose_mistake_it_was(
    raised: BaseException | None,
    status: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def act() -> None:
        if raised is not None:
            raise raised

    assert cli._guarded(act) == status
    assert capsys.readouterr().err == message

    monkeypatch.setattr("rl4dlm.recipe.list_recipes", lambda: act() or {})
    assert run_main(monkeypatch, "recipes", "ls") == status  # through typer too
    assert capsys.readouterr().err == message


def test_our_own_bug_shows_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def act() -> None:
        raise KeyError("a bug")

    assert cli._guarded(act) == 1
    told = capsys.readouterr().err
    assert "Traceback" in told and told.endswith("rl4dlm: KeyError: 'a bug'\n")


def test_a_shipped_recipe_is_copied_and_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, "recipes", "show", "quickstart") == 0
    shown = capsys.readouterr().out
    assert run_main(monkeypatch, "recipes", "cp", "quickstart", str(tmp_path)) == 0
    assert (tmp_path / "quickstart.yaml").read_text(encoding="utf-8") == shown
    assert run_main(monkeypatch, "recipes", "cp", "quickstart", str(tmp_path / "mine.yaml")) == 0
    assert (tmp_path / "mine.yaml").is_file()


def test_recipes_files_and_overrides_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "old"
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text("trainer: {max_steps: 20}\n")
    (tmp_path / "lr=small.yaml").write_text("trainer: {learning_rate: 1e-7}\n")

    recipe = cli._recipe(["quickstart", "runs/old", "lr=small.yaml", "run.seed=3"])

    assert (recipe.trainer.max_steps, recipe.trainer.learning_rate, recipe.run.seed) == (20, 1e-7, 3)


def test_a_run_that_was_moved_or_renamed_is_resumed_where_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    old = cli._recipe(["quickstart", "run.name=old"])
    RunFolder.of(old).create(old)
    (tmp_path / "archive").mkdir()
    moved = (tmp_path / "runs" / "old").rename(tmp_path / "archive" / "new-1")

    arguments = [str(moved.relative_to(tmp_path)), "trainer.max_steps=200"]
    recipe = cli._recipe([*arguments, *cli._place_of_run(arguments, True)])

    assert RunFolder.of(recipe).root == moved
    RunFolder.of(recipe).require_same_run(recipe)
    assert cli._place_of_run(arguments, False) == []  # a new run by the old one's recipe goes elsewhere
    assert cli._place_of_run([*arguments, "run.name=x"], True) == [f'run.output_dir="{moved.parent}"']


def test_the_step_to_resume_from_is_not_an_override() -> None:
    assert cli._take_step(["a.yaml", "step=50", "run.seed=1"], True) == (["a.yaml", "run.seed=1"], 50)
    assert cli._take_step(["a.yaml"], True) == (["a.yaml"], None)


def test_sampling_may_be_greedy_and_repeats_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rl4dlm.models import build_char_tokenizer, create, save
    from rl4dlm.recipe.sections import ModelInit

    tokenizer = build_char_tokenizer("0123456789=")
    init = ModelInit(d_model=16, n_layers=1, n_heads=2, mlp_hidden_size=16, max_sequence_length=32)
    save(create(init, tokenizer, seed=0), tmp_path / "model", tokenizer)
    settings = ["temperature=0", "max_completion_length=8", "block_length=4", "diffusion_steps=8"]
    sets = [argument for setting in settings for argument in ("--set", setting)]
    command = ["sample", "--model", str(tmp_path / "model"), "--prompt", "21="]

    for arguments in (sets, ["--recipe", "quickstart", "--set", "temperature=0"]):
        assert run_main(monkeypatch, *command, "-n", "2", *arguments) == 0
        first, second = capsys.readouterr().out.splitlines()
        assert first == second  # greedy: every sample is the same
    assert run_main(monkeypatch, *command, "-n", "3", *sets[2:], "--seed", "5") == 0
    drawn = capsys.readouterr().out
    assert run_main(monkeypatch, *command, "-n", "3", *sets[2:], "--seed", "5") == 0
    assert capsys.readouterr().out == drawn and len(set(drawn.splitlines())) > 1


def test_every_sampler_and_cache_is_listed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rl4dlm.decoding import STRATEGIES
    from rl4dlm.rollout import CACHES

    assert run_main(monkeypatch, "sample", "--list-samplers") == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in (*STRATEGIES, *CACHES))


@pytest.mark.parametrize("module", ["rl4dlm", "rl4dlm.cli"])
def test_the_package_runs_as_a_module(module: str) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", module, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert run("--version").stdout.strip() == __version__
    assert "quickstart" in run("recipes", "ls").stdout
    refused = run("train", "no_such_recipe")
    assert refused.returncode == 2 and "no_such_recipe: no such recipe file" in refused.stderr
