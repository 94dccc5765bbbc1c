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


OVERLAPPED = "cluster.schedule=one_step_off"


def test_older_rollouts_are_warned_about_unless_they_are_weighed() -> None:
    (warning,) = warnings_of(load_recipe("quickstart", [OVERLAPPED]))
    assert "gdpo takes them for its own" in warning and "learning rate" in warning
    (warning,) = warnings_of(load_recipe("quickstart", [OVERLAPPED, "algorithm={type: diffu_grpo}"]))
    assert "Better: set algorithm.importance_correction=truncated." in warning
    for weighed in (
        "algorithm={type: diffu_grpo, importance_correction: truncated}",
        "algorithm={type: agrpo}",
        "algorithm={type: vrpo, pairs: online}",
    ):
        assert warnings_of(load_recipe("quickstart", [OVERLAPPED, weighed, "rollout.remasking=random"])) == []


def test_overlapping_on_shared_gpus_is_warned_about() -> None:
    gpus = ["cluster.gpus_per_trainer=0.5", "cluster.gpus_per_rollout_worker=0.5"]
    corrected = ["algorithm={type: diffu_grpo, importance_correction: truncated}", "rollout.remasking=random"]
    (warning,) = warnings_of(load_recipe("quickstart", [OVERLAPPED, *gpus, *corrected]))
    assert "cluster.placement=separate" in warning
    apart = ["cluster.placement=separate", "cluster.gpus_per_trainer=1", "cluster.gpus_per_rollout_worker=1"]
    assert warnings_of(load_recipe("quickstart", [OVERLAPPED, *apart, *corrected])) == []
