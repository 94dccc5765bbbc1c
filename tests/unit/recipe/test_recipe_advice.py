"""What is warned about before a run starts."""

import pytest

from rl4dlm.recipe import load_recipe
from rl4dlm.recipe.advice import warnings_of

TRACE = "algorithm={type: tracerl}"


@pytest.mark.parametrize(
    "overrides",
    [
        [TRACE],
        ["algorithm={type: agrpo}"],
        ["algorithm={type: diffu_grpo, importance_correction: truncated}"],
    ],
)
def test_trajectory_likelihoods_under_low_confidence_sampling_are_warned_about(overrides) -> None:
    (warning,) = warnings_of(load_recipe("quickstart", overrides))
    assert "rollout.remasking = low_confidence" in warning and "top_probability" in warning


@pytest.mark.parametrize("cut", ["rollout.top_p=0.9", "rollout.top_k=5"])
def test_a_cut_of_the_vocabulary_is_warned_about_where_trajectories_are_scored(cut) -> None:
    (warning,) = warnings_of(
        load_recipe("quickstart", ["algorithm={type: agrpo}", "rollout.remasking=random", cut])
    )
    assert cut.replace("=", " = ") in warning and "uncut" in warning
    assert warnings_of(load_recipe("quickstart", [cut])) == []


@pytest.mark.parametrize(
    "overrides", [[], [TRACE, "rollout.remasking=top_probability"], [TRACE, "rollout.remasking=random"]]
)
def test_nothing_is_said_where_nothing_is_unwise(overrides) -> None:
    assert warnings_of(load_recipe("quickstart", overrides)) == []
