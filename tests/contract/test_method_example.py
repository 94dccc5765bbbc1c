"""The worked example of docs/methods.md: short, lawful, and refused in plain words where it is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import test_method_laws as laws
from typer.testing import CliRunner

from rl4dlm.cli import app
from rl4dlm.errors import PluginError
from rl4dlm.recipe.algorithms import PluginConfig
from rl4dlm.trainers import make_method

PAGE = Path(__file__).resolve().parents[2] / "docs" / "methods.md"


@pytest.fixture
def example(tmp_path: Path) -> str:
    (code,) = re.findall(
        r"```python\n# reinforce\.py\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL
    )
    assert len(code.splitlines()) < 100
    file = tmp_path / "reinforce.py"
    file.write_text(code)
    return f"{file}:Reinforce"


@pytest.fixture
def settings(example: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(laws.SETTINGS, "example", {"type": "plugin", "path": example})
    return "example"


@pytest.mark.parametrize("block_length", [None, 2], ids=["full", "blocks"])
def test_the_example_obeys_the_laws(settings: str, block_length: int | None) -> None:
    laws.test_the_update_does_not_depend_on_how_the_batch_is_split(settings, block_length)
    laws.test_equal_rewards_give_no_gradient(settings)
    laws.test_a_shift_of_all_rewards_changes_nothing(settings)


def test_the_example_raises_rewarded_completions(settings: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = laws.SETTINGS[settings]["path"]
    monkeypatch.setattr(
        laws,
        "make",
        lambda name, block=None, **changes: (
            make_method(
                PluginConfig(
                    path=path, settings={key: value for key, value in changes.items() if name == settings}
                )
            )
            if name == settings
            else MAKE(name, block, **changes)
        ),
    )
    laws.test_gradient_steps_raise_the_rewarded_completions(settings, None)


MAKE = laws.make


def test_its_settings_are_checked(example: str) -> None:
    with pytest.raises(
        PluginError, match=r"algorithm.settings.num_masks: .* greater than or equal to 1 \(got 0\)"
    ):
        make_method(PluginConfig(path=example, settings={"num_masks": 0}))
    with pytest.raises(
        PluginError, match="num_mask: .*\n.*knows baseline, completion_scope, num_iterations, num_masks"
    ):
        make_method(PluginConfig(path=example, settings={"num_mask": 2}))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("class Reinforce: pass", "Reinforce is not a class derived from"),
        ("import nothing_of_that_name", "it cannot be imported: ModuleNotFoundError"),
        ("raise SystemExit(0)", "it cannot be imported: SystemExit"),
        (
            "from rl4dlm.trainers.state_trainer import StateTrainer\nclass Reinforce(StateTrainer): pass",
            "Reinforce.Settings is not a class",
        ),
    ],
)
def test_a_plug_in_that_is_no_method_is_refused(code: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / f"broken{len(code)}.py"
    file.write_text(code)
    with pytest.raises(PluginError, match=re.escape(message)):
        make_method(PluginConfig(path=f"{file}:Reinforce"))


def test_the_command_line_takes_it_and_refuses_a_wrong_one(
    example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = ["train", "quickstart", "--dry-run", f"run.output_dir={tmp_path}"]
    good = CliRunner().invoke(app, [*run, "algorithm={type: plugin, path: reinforce.py:Reinforce}"])
    assert good.exit_code == 0 and "quickstart: plugin" in good.output
    with pytest.raises(PluginError, match="num_masks"):
        CliRunner().invoke(
            app,
            [*run, f"algorithm={{type: plugin, path: '{example}', settings: {{num_masks: x}}}}"],
            catch_exceptions=False,
        )
