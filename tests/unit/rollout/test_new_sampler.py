"""A sampler of one's own: a row of facts, a function and its plain form are all that it takes."""

from __future__ import annotations

import io
import runpy
from pathlib import Path

import pytest
import torch
from rich.console import Console
from rollout_toys import MASK, assert_same, requests, transformer
from torch import Tensor

from rl4dlm.commands.sample import print_samplers
from rl4dlm.decoding import SamplerSpec, StepInput, Strategy
from rl4dlm.decoding.strategies import STRATEGIES, choose_then_draw
from rl4dlm.errors import RecipeError
from rl4dlm.recipe import load_recipe
from rl4dlm.recipe.advice import warnings_of
from rl4dlm.recipe.samplers import SAMPLERS, SamplerFacts
from rl4dlm.recipe.sections import RolloutConfig
from rl4dlm.rollout import Engine, check_trace
from rl4dlm.testing.reference_sampler import CHOICES, State, generate_reference, ordered_choice

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"


def _rightmost(spec: SamplerSpec, step: StepInput) -> Tensor:
    return step.at_seen(step.position).float()


def _rightmost_plainly(state: State):
    return torch.arange(len(state.canvas), dtype=torch.float32).numpy()


@pytest.fixture(autouse=True)
def rightmost(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = SamplerFacts("positions from right to left", "a test", is_static=True, has_probabilities=False)
    decide = Strategy(lambda spec, step: choose_then_draw(spec, step, score=_rightmost))
    monkeypatch.setitem(SAMPLERS, "rightmost", facts)
    monkeypatch.setitem(STRATEGIES, "rightmost", decide)
    monkeypatch.setitem(CHOICES, "rightmost", ordered_choice(_rightmost_plainly))


def test_the_engine_equals_its_plain_form() -> None:
    for changes in ({}, {"draft_steps": 3}, {"record_predictions": True}):
        spec = SamplerSpec(16, 8, 16, 0.8, "rightmost", eos_policy="none", **changes)
        ours = Engine(transformer(), spec, 3).generate(requests(5), policy_version=0)
        if "draft_steps" not in changes:
            assert_same(ours, generate_reference(transformer(), spec, requests(5), policy_version=0))
        for rollout in ours:
            check_trace(rollout, MASK)
            assert rollout.trace.step_map.tolist() == [*range(7, -1, -1), *range(15, 7, -1)]


def test_the_recipe_takes_it_and_its_rules_know_its_facts() -> None:
    named = ["rollout.remasking=rightmost"]
    recipe = load_recipe("gdpo/tiny_sort", named)
    assert SamplerSpec.from_config(recipe.rollout).facts.source == "a test"
    assert "rightmost" in RolloutConfig.model_json_schema()["properties"]["remasking"]["enum"]
    load_recipe("gdpo/tiny_sort", [*named, "rollout.draft_steps=2"])
    with pytest.raises(RecipeError, match="did you mean rightmost?"):
        load_recipe("gdpo/tiny_sort", ["rollout.remasking=rigtmost"])
    with pytest.raises(RecipeError, match="threshold = 0.8 is not read by rollout.remasking = rightmost"):
        load_recipe("gdpo/tiny_sort", [*named, "rollout.threshold=0.8"])
    with pytest.raises(RecipeError, match="rightmost has confidences that are no probabilities"):
        load_recipe("gdpo/tiny_sort", [*named, "algorithm={type: mdpo}"])
    assert not warnings_of(load_recipe("tracerl/tiny_sort", named))


def test_the_command_line_and_the_page_show_it() -> None:
    shown = Console(file=io.StringIO(), width=200)
    print_samplers(shown)
    assert "positions from right to left" in shown.file.getvalue()
    page = "\n".join(runpy.run_path(str(SCRIPTS / "make_sampler_docs.py"))["samplers"]())
    assert "| `rightmost` | positions from right to left | yes | bounded | no |  | a test |" in page


def test_without_a_row_no_recipe_knows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(SAMPLERS, "rightmost")
    with pytest.raises(RecipeError, match="rollout.remasking = 'rightmost' is not 'low_confidence'"):
        load_recipe("gdpo/tiny_sort", ["rollout.remasking=rightmost"])
