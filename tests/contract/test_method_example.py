"""The worked examples of docs/methods.md, and plug-ins with something wrong: lawful, or refused in plain
words."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rl4dlm.cli import app
from rl4dlm.commands.methods import method_settings
from rl4dlm.commands.methods import test_method as holds
from rl4dlm.errors import PluginError, RecipeError
from rl4dlm.models import ModelFacts
from rl4dlm.recipe import dump_resolved, load_recipe
from rl4dlm.recipe.algorithms import MethodConfig, PluginConfig, load_method
from rl4dlm.run.cost import cost_of
from rl4dlm.trainers import make_method
from rl4dlm.trainers.trial import try_method

PAGE = Path(__file__).resolve().parents[2] / "docs" / "methods.md"
DRY = ["train", "quickstart", "--dry-run"]
FACTS = ModelFacts(
    family="llada",
    num_parameters=1000,
    hidden_size=64,
    num_layers=2,
    num_heads=2,
    num_kv_heads=2,
    head_dim=32,
    mlp_size=128,
    vocab_size=20,
    max_length=64,
    bytes_on_disk=4000,
    dtype="float32",
    adapted_width=10,
    num_quantisable=0,
)

HELD = """
from rl4dlm.recipe.algorithms import ElboEstimated, SequenceLevel
from rl4dlm.trainers.elbo_states import elbo_settings, elbo_states
from rl4dlm.trainers.sequence import sequence_method


class Held(SequenceLevel, ElboEstimated):
    def build(self, setting):
        return sequence_method(self, setting, elbo_states(elbo_settings(self), setting.spec))

    def rules(self, recipe):
        yield from super().rules(recipe)
        if self.num_masks > recipe.rollout.max_completion_length:
            yield "algorithm.num_masks", "more masks than tokens", "use fewer"
"""


def example(name: str, folder: Path) -> str:
    """An example of the page as a file."""
    pattern = rf"```python\n# {name}\.py\n(.*?)```"
    (code,) = re.findall(pattern, PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    file = folder / f"{name}.py"
    file.write_text(code)
    return str(file)


def written(code: str, folder: Path) -> str:
    """Code as a file of its own name: a plug-in is imported once per process."""
    file = folder / f"plugin_{abs(hash((code, str(folder))))}.py"
    file.write_text(code)
    return str(file)


@pytest.mark.parametrize(
    ("name", "method", "lines"), [("reinforce", "Reinforce", 45), ("cispo", "cispo", 12)]
)
def test_an_example_is_short_and_obeys_the_laws(name: str, method: str, lines: int, tmp_path: Path) -> None:
    file = example(name, tmp_path)
    assert len(Path(file).read_text().splitlines()) <= lines
    assert holds(method_settings(f"{file}:{method}", []))


@pytest.fixture
def held(tmp_path: Path) -> str:
    return written(HELD, tmp_path) + ":Held"


@pytest.mark.parametrize("nested", [True, False])
def test_what_a_plug_in_declares_is_the_recipes_algorithm(held: str, nested: bool, tmp_path: Path) -> None:
    own = "beta: 0.04, sync_ref_model: true, ref_model_sync_steps: 3"
    shared = "num_iterations: 4, scale_rewards: group, baseline: loo, completion_scope: canvas"
    given = f"settings: {{{own}}}" if nested else own
    recipe = load_recipe("quickstart", [f"algorithm={{type: plugin, path: '{held}', {shared}, {given}}}"])
    algorithm = recipe.algorithm
    assert type(algorithm).__name__ == "Held" and algorithm.type == "plugin"
    assert (algorithm.num_iterations, algorithm.scale_rewards, algorithm.baseline) == (4, "group", "loo")
    assert algorithm.completion_scope == "canvas" and algorithm.keeps_reference and algorithm.needs_old
    assert algorithm.reference_follows and algorithm.syncs_reference_at(3, 1)
    cost = cost_of(recipe, FACTS, 5)
    assert cost.forwards["reference"] == cost.forwards["old"] == 4 * 128
    assert cost.trainer["reference"] > 0
    dump_resolved(recipe, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    method = make_method(algorithm)
    assert method.config is algorithm
    assert method.credit.advantages.__closure__ is not None


def test_a_plug_ins_rules_are_the_recipes(held: str) -> None:
    with pytest.raises(RecipeError, match="more masks than tokens"):
        load_recipe("quickstart", [f"algorithm={{type: plugin, path: '{held}', num_masks: 9}}"])
    with pytest.raises(RecipeError, match="no reference policy is kept"):
        load_recipe("quickstart", [f"algorithm={{type: plugin, path: '{held}', sync_ref_model: true}}"])


def test_settings_are_checked(tmp_path: Path) -> None:
    path = example("reinforce", tmp_path) + ":Reinforce"
    with pytest.raises(PluginError, match=r"algorithm.settings.num_masks: .* greater than or equal to 1"):
        load_method(PluginConfig(path=path, settings={"num_masks": 0}))
    with pytest.raises(
        PluginError, match=r"algorithm.num_mask: it is not known.\nFix: did you mean num_masks"
    ):
        load_method(PluginConfig.model_validate({"type": "plugin", "path": path, "num_mask": 2}))
    with pytest.raises(PluginError, match="both set"):
        load_method(PluginConfig.model_validate({"path": path, "num_masks": 1, "settings": {"num_masks": 1}}))


OBJECTIVE = """
from rl4dlm.recipe.algorithms import GroupMethod
from rl4dlm.trainers.credit import compared_in_group
from rl4dlm.trainers.estimates import PER_SEQUENCE, TokenLogp
from rl4dlm.trainers.method import Likelihood, Method, StatePlan
from rl4dlm.trainers.one_step import hidden_canvas
from dataclasses import replace


class Mine(GroupMethod):
    def build(self, setting):
        states = hidden_canvas(0.0){states}
        likelihood = Likelihood(states, PER_SEQUENCE, TokenLogp(setting.spec))
        return Method(self, setting, likelihood, objective, compared_in_group(self))


def objective(value, rows, old, ref, step):
    {objective}
"""


@pytest.mark.parametrize(
    ("code", "name", "message"),
    [
        ("class Mine: pass", "Mine", "neither a loss function nor a class derived from"),
        ("import nothing_of_that_name", "Mine", "it cannot be imported: ModuleNotFoundError"),
        ("raise SystemExit(0)", "Mine", "it cannot be imported: SystemExit"),
        (
            "from rl4dlm.recipe.algorithms import GroupMethod\nclass Mine(GroupMethod): pass",
            "Mine",
            "has no method `build(self, setting)`",
        ),
        (
            OBJECTIVE.format(states="", objective="return value.sum()"),
            "Mine",
            "the objective returned Tensor",
        ),
        (OBJECTIVE.format(states="", objective="return value, {}"), "Mine", "not one number"),
        (OBJECTIVE.format(states="", objective="return value.sum() / 0, {}"), "Mine", "are not finite"),
        (
            OBJECTIVE.format(
                states="; states = replace(states, make=lambda batch, rows: None)",
                objective="return value.sum(), {}",
            ),
            "Mine",
            "raises TypeError",
        ),
        ("def mine(logp, advantage): return (logp * advantage).sum()", "mine", "not the loss of each token"),
        ("def mine(logp, rewards): return logp", "mine", "its parameter rewards is neither given"),
        (
            "def mine(logp, *, baseline: float = 1.0): return logp",
            "mine",
            "its parameter baseline is a setting",
        ),
    ],
)
def test_a_plug_in_with_something_wrong_is_refused_before_the_start(
    code: str, name: str, message: str, tmp_path: Path
) -> None:
    path = f"{written(code, tmp_path)}:{name}"
    with pytest.raises(PluginError, match=re.escape(message)):
        CliRunner().invoke(
            app,
            [*DRY, f"run.output_dir={tmp_path}", f"algorithm={{type: plugin, path: '{path}'}}"],
            catch_exceptions=False,
        )


def test_a_change_of_defaults_alone_is_a_method(tmp_path: Path) -> None:
    code = "from rl4dlm.recipe.algorithms import GDPOConfig, defaults\n"
    code += "@defaults(num_nodes=2)\nclass Mine(GDPOConfig): pass"
    config = method_settings(f"{written(code, tmp_path)}:Mine", ["num_iterations=3"])
    assert isinstance(config, MethodConfig) and config.num_iterations == 3
    try_method(config)
    assert make_method(config).config is config


def test_the_command_line_tries_a_method_and_says_what_it_breaks(tmp_path: Path) -> None:
    good = CliRunner().invoke(app, ["methods", "ls"])
    assert good.exit_code == 0 and "gdpo" in good.output and "plugin" not in good.output
    file = written("def raw(logp): return -logp", tmp_path)
    broken = CliRunner().invoke(app, ["methods", "test", f"{file}:raw"])
    assert broken.exit_code == 1 and "broken" in broken.output
    with pytest.raises(PluginError, match="FILE:Name"):
        method_settings("gpdo", [])


def test_no_code_compares_a_methods_name() -> None:
    package = Path(__file__).resolve().parents[2] / "rl4dlm"
    pattern = re.compile(r"(algorithm|method|config)\.type\s*(==|!=|in\b|not in\b)")
    found = [str(path) for path in package.rglob("*.py") if pattern.search(path.read_text(encoding="utf-8"))]
    assert not found
