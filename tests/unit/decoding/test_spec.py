from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest

from rl4dlm.decoding import STRATEGIES, SamplerSpec
from rl4dlm.decoding.learned import find_policy
from rl4dlm.decoding.proposal import Law
from rl4dlm.errors import RecipeError
from rl4dlm.recipe.rules.sampling import _READERS
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


@pytest.mark.parametrize("remasking", sorted(STRATEGIES))
def test_the_recipe_knows_the_sampler_and_which_settings_it_reads(remasking: str) -> None:
    assert remasking in get_args(RolloutConfig.model_fields["remasking"].annotation)
    for key, readers in _READERS.items():
        assert (remasking in readers) == (key in STRATEGIES[remasking].settings)


def test_a_policy_that_nobody_registered_is_named() -> None:
    with pytest.raises(RecipeError, match="'mine' is not registered.*\\nFix: call"):
        find_policy("mine")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gen_len": 0}, "max_completion_length = 0 is not positive"),
        ({"steps": -4}, "diffusion_steps = -4 is not positive"),
        ({"block_length": 5}, "block_length = 5 does not divide rollout.max_completion_length = 16"),
        ({"steps": 6}, "diffusion_steps = 6 does not fit 4 blocks"),
        ({"steps": 20}, "diffusion_steps = 20 does not fit 4 blocks"),
        ({"temperature": -0.1}, "temperature = -0.1 is not a finite number"),
        ({"temperature": float("nan")}, "temperature = nan"),
        ({"remasking": "x"}, "remasking = 'x' is not known"),
        ({"remasking": "dynamic", "threshold": 1.5}, "threshold = 1.5 is not a finite number from 0 to 1"),
        ({"top_p": 0.0}, "top_p = 0.0 is not"),
        ({"top_k": -1}, "top_k = -1 is not"),
        ({"threshold": 0.8}, "threshold = 0.8 is not read by rollout.remasking = low_confidence"),
        ({"remasking": "ar", "order_temperature": 0.5}, "is not read by rollout.remasking = ar"),
        ({"remasking": "rcr", "rcr_update": "mean"}, "rcr_update = 'mean' is not known"),
        ({"remasking": "learned"}, "rollout.policy is not set"),
        ({"policy": "mine"}, "policy = mine is not read"),
        ({"eos_policy": "accepted_eos", "remasking": "rcr"}, "may take back"),
        ({"early_commit": "prophet"}, "answer_region = None: prophet looks at the place"),
        ({"early_commit": "prophet", "answer_region": (4, 20)}, r"answer_region = \(4, 20\)"),
        ({"answer_region": (0, 4)}, "is read by rollout.early_commit = prophet only"),
        ({"early_commit_high": 5.0}, "are not read without rollout.early_commit"),
        ({"draft_steps": 4, "remasking": "dynamic"}, "drafts steps that are known beforehand"),
        ({"draft_steps": 4, "early_commit": "sched_exp"}, "drafts steps that are known beforehand"),
        ({"draft_steps": 4, "cfg_scale": 1.0}, "does not go with guidance"),
        ({"cache_refresh": 4}, "is not read by rollout.cache = none"),
        ({"cache": "dual", "record_predictions": True}, "does not go with guidance, drafts or recorded"),
        ({"cache": "prefix", "draft_steps": 4}, "does not go with guidance, drafts or recorded"),
        ({"cache": "prefix", "remasking": "rcr"}, "takes their tokens back"),
        ({"confidence_from": "x"}, "confidence_from = 'x' is not known"),
        ({"eos_policy": "x"}, "eos_policy = 'x' is not known"),
    ],
)
def test_settings_that_do_not_fit_are_refused_with_a_remedy(change: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as error:
        replace(SPEC, **change)
    assert "Fix: " in str(error.value)
