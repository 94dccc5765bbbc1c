"""What a recipe's sampler is refused for, each with the setting and a remedy."""

from __future__ import annotations

import pytest

from rl4dlm.errors import RecipeError
from rl4dlm.recipe import load_recipe
from rl4dlm.recipe.rules.sampling import unfit_for_model
from rl4dlm.recipe.samplers import CACHES, SAMPLERS, own_settings, readers

REFUSED = [
    ({"max_completion_length": 0}, "greater than 0"),
    ({"diffusion_steps": -4}, "greater than 0"),
    ({"block_length": 5}, "does not divide rollout.max_completion_length"),
    ({"temperature": -0.1}, "temperature = -0.1 is not"),
    ({"temperature": ".inf"}, "temperature = inf is not a finite number"),
    ({"remasking": "low_confidences"}, "did you mean low_confidence?"),
    ({"cache": "prefx"}, "did you mean prefix?"),
    ({"remasking": "dynamic", "threshold": 1.5}, "threshold = 1.5 is not less than or equal to 1"),
    ({"top_p": 0.0}, "top_p = 0.0 is not"),
    ({"top_k": -1}, "top_k = -1 is not"),
    ({"threshold": 0.8}, "threshold = 0.8 is not read by rollout.remasking = low_confidence"),
    ({"remasking": "ar", "order_temperature": 0.5}, "is not read by rollout.remasking = ar"),
    ({"rcr_schedule": "linear"}, "rcr_schedule = linear is not read by rollout.remasking = low_confidence"),
    ({"remasking": "saber", "rcr_confidence": "margin"}, "rcr_confidence = margin is not read by"),
    ({"remasking": "rcr", "rcr_update": "mean"}, "rcr_update = 'mean' is not 'last', 'max' or 'min'"),
    ({"remasking": "learned"}, "rollout.policy is not set"),
    ({"policy": "mine"}, "policy = mine is not read"),
    ({"eos_policy": "accepted_eos", "remasking": "rcr"}, "may remask"),
    ({"eos_policy": "accepted_eos", "remasking": "saber"}, "may remask"),
    ({"early_commit": "prophet"}, "answer_region = None: prophet looks at the place"),
    ({"early_commit": "prophet", "answer_region": "[4,200]"}, "two positions within 0 and "),
    ({"answer_region": "[0,4]"}, "is read by rollout.early_commit = prophet only"),
    ({"early_commit_high": 5.0}, "early_commit_high = 5.0 is not read without rollout.early_commit"),
    ({"draft_steps": 4, "remasking": "dynamic"}, "drafts steps that are known beforehand"),
    ({"draft_steps": 4, "early_commit": "sched_exp"}, "drafts steps that are known beforehand"),
    ({"draft_steps": 4, "cfg_scale": 1.0}, "does not go with guidance"),
    ({"cache_refresh": 4}, "is not read by rollout.cache = none"),
    ({"cache": "block", "cache_refresh": 4}, "is exact and never refreshed"),
    ({"cache": "dual", "record_predictions": "true"}, "does not go with guidance, drafts or recorded"),
    ({"cache": "prefix", "draft_steps": 4}, "does not go with guidance, drafts or recorded"),
    ({"cache": "prefix", "remasking": "rcr"}, "remasks their tokens"),
    ({"cache": "block", "remasking": "saber"}, "remasks their tokens"),
    ({"cache": "dkv_greedy"}, "use random or ar or dream_origin"),
    ({"cache": "dual", "early_commit": "sched_exp"}, "computes the active block only"),
    ({"confidence_from": "x"}, "confidence_from = 'x' is not"),
    ({"eos_policy": "x"}, "eos_policy = 'x' is not"),
]


@pytest.mark.parametrize(("settings", "told"), REFUSED, ids=[f"{s}" for s, _ in REFUSED])
def test_settings_that_do_not_fit_are_refused_with_a_remedy(settings: dict, told: str) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe("gdpo/tiny_sort", [f"rollout.{key}={value}" for key, value in settings.items()])
    assert told in str(error.value) and "Fix: " in str(error.value)


def test_a_method_that_needs_predictions_goes_without_a_cache() -> None:
    with pytest.raises(RecipeError, match="does not go with guidance, drafts or recorded"):
        load_recipe("gdpo/tiny_sort", ["algorithm={type: mdpo}", "rollout.cache=prefix"])


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_setting_is_taken_by_its_readers_and_refused_by_all_others(name: str) -> None:
    other = {"threshold": 0.8, "factor": 2.0, "entropy_budget": 0.5, "order_temperature": 0.5}
    other |= {"rcr_update": "max", "rcr_confidence": "margin", "rcr_schedule": "cosine"}
    other |= {"policy": "mine", "policy_sharpness": 2.0}
    assert set(other) == set(own_settings())
    needed = ["rollout.policy=mine"] if name == "learned" else []
    for key, value in other.items():
        given = [f"rollout.remasking={name}", *needed, f"rollout.{key}={value}"]
        if name in readers(key):
            assert getattr(load_recipe("gdpo/tiny_sort", given).rollout, key) == value
        else:
            with pytest.raises(RecipeError, match=f"rollout.{key} = {value} is not read by"):
                load_recipe("gdpo/tiny_sort", given)


def test_a_model_refuses_blocks_and_caches_of_another_kind() -> None:
    assert not list(unfit_for_model("none", 32, "full", None))
    assert not list(unfit_for_model("block", 32, "block_causal", 16))
    ((key, problem, remedy),) = unfit_for_model("none", 24, "block_causal", 16)
    assert key == "rollout.block_length" and "blocks of 16" in problem and "multiple" in remedy
    for name, plan in CACHES.items():
        other = "full" if plan.attention == "block_causal" else "block_causal"
        ((_, problem, remedy),) = unfit_for_model(name, 16, other, 16)
        assert f"the model's is {other}" in problem and name not in remedy


def test_confidences_of_rcr_weigh_predictions_unless_they_are_entropies() -> None:
    mdpo = ["algorithm={type: mdpo}", "rollout.remasking=rcr"]
    load_recipe("gdpo/tiny_sort", [*mdpo, "rollout.rcr_confidence=margin"])
    with pytest.raises(RecipeError, match="rcr_confidence = neg_entropy has confidences that are no prob"):
        load_recipe("gdpo/tiny_sort", [*mdpo, "rollout.rcr_confidence=neg_entropy"])


@pytest.mark.parametrize("name", SAMPLERS)
def test_methods_that_score_trajectories_take_samplers_that_keep_their_tokens(name: str) -> None:
    given = [f"rollout.remasking={name}", *(["rollout.policy=mine"] if name == "learned" else [])]
    if not SAMPLERS[name].revises:
        load_recipe("tracerl/tiny_sort", given)
        return
    with pytest.raises(RecipeError, match="scores each token in the one state that it was drawn in"):
        load_recipe("tracerl/tiny_sort", given)
