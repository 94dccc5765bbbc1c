from __future__ import annotations

from dataclasses import replace

import pytest

from rl4dlm.decoding import STRATEGIES, SamplerSpec
from rl4dlm.decoding.learned import find_policy
from rl4dlm.decoding.proposal import Law
from rl4dlm.errors import RecipeError
from rl4dlm.recipe.samplers import SAMPLERS, own_settings
from rl4dlm.recipe.sections import RolloutConfig

SPEC = SamplerSpec(gen_len=16, block_length=4, steps=8)


def test_a_recipe_becomes_a_sampler_and_describes_itself_in_the_recipes_words() -> None:
    config = RolloutConfig(
        max_completion_length=16,
        block_length=4,
        diffusion_steps=8,
        temperature=0.7,
        remasking="top_probability",
        confidence_from="tempered",
        eos_policy="none",
    )
    spec = SamplerSpec.from_config(config)
    assert (spec.gen_len, spec.block_length, spec.steps, spec.temperature) == (16, 4, 8, 0.7)
    assert (spec.num_blocks, spec.steps_per_block) == (4, 2)
    assert spec.describe().items() <= config.model_dump().items()
    assert SamplerSpec.from_config(config, temperature=0.0) == replace(spec, temperature=0.0)


def test_hash_is_stable_and_tells_every_setting_apart() -> None:
    assert SPEC.hash() == 8311354418320472301
    assert SPEC.hash() == replace(SPEC, temperature=1).hash()
    others = [
        replace(SPEC, gen_len=32),
        replace(SPEC, block_length=8),
        replace(SPEC, steps=16),
        replace(SPEC, temperature=0.9),
        replace(SPEC, remasking="random"),
        replace(SPEC, confidence_from="tempered"),
        replace(SPEC, eos_policy="none"),
    ]
    hashes = {spec.hash() for spec in [SPEC, *others]}
    assert len(hashes) == 8
    assert all(0 <= value < 2**63 for value in hashes)


def test_greedy_confidence_has_temperature_one() -> None:
    tempered = replace(SPEC, confidence_from="tempered", temperature=0.5)
    assert tempered.confidence_law == Law(0.5)
    assert replace(tempered, temperature=0.0).confidence_law == Law(1.0)
    assert replace(tempered, confidence_from="raw").confidence_law == Law(1.0)
    cut = replace(tempered, confidence_from="filtered", top_p=0.9, top_k=4)
    assert cut.confidence_law == Law(0.5, 0.9, 4)
    # Dream's samplers read what they draw from, whatever the recipe says.
    assert replace(cut, remasking="dream_entropy", confidence_from="raw").confidence_law == Law(0.5, 0.9, 4)


def test_a_sampler_is_described_by_what_it_reads() -> None:
    assert "threshold" not in SPEC.describe()
    dynamic = replace(SPEC, remasking="dynamic", threshold=0.8)
    assert dynamic.describe()["threshold"] == 0.8
    assert replace(SPEC, remasking="dynamic").hash() != dynamic.hash()
    assert replace(SPEC, record_predictions=True).hash() == SPEC.hash()
    assert replace(SPEC, top_p=0.9).describe()["top_p"] == 0.9


def test_every_sampler_has_facts_and_functions_that_agree() -> None:
    assert list(STRATEGIES) == list(SAMPLERS)
    for name, strategy in STRATEGIES.items():
        assert (strategy.picks is not None) == SAMPLERS[name].knows_order, name
    assert set(own_settings()) <= set(RolloutConfig.model_fields)


def test_a_policy_that_nobody_registered_is_named() -> None:
    with pytest.raises(RecipeError, match="'mine' is not registered.*\\nFix: call"):
        find_policy("mine")


@pytest.mark.parametrize(
    "change",
    [
        {"block_length": 5},
        {"steps": 6},
        {"steps": 20},
        {"temperature": -0.1},
        {"remasking": "x"},
        {"remasking": "learned"},
        {"early_commit": "prophet"},
        {"draft_steps": 4, "remasking": "dynamic"},
        {"cache": "prefix", "remasking": "rcr"},
    ],
)
def test_a_sampler_that_no_rule_lets_through_is_our_own_mistake(change: dict) -> None:
    with pytest.raises(AssertionError, match="gen_len=16"):
        replace(SPEC, **change)


def test_rcr_is_described_by_its_schedule_and_its_confidence() -> None:
    rcr = replace(SPEC, remasking="rcr")
    other = replace(rcr, rcr_schedule="linear", rcr_confidence="margin")
    assert "rcr_schedule" not in rcr.describe() and rcr.hash() != other.hash()
    assert (other.describe()["rcr_schedule"], other.describe()["rcr_confidence"]) == ("linear", "margin")
