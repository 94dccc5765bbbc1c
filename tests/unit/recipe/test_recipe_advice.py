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


@pytest.mark.parametrize(
    "algorithm",
    [
        "{type: tracerl}",
        "{type: agrpo}",
        "{type: agrpo, ratio_against: update}",
        "{type: just_grpo}",
        "{type: unigrpo, importance_correction: truncated}",
    ],
)
def test_guided_rollouts_are_warned_about_where_trajectories_are_scored(algorithm: str) -> None:
    order = "ar" if "just" in algorithm else "top_probability"
    chosen = [f"algorithm={algorithm}", f"rollout.remasking={order}", "rollout.block_length=8"]
    guided = load_recipe("quickstart", [*chosen, "rollout.cfg_scale=1.5"])
    (warning,) = warnings_of(guided)
    assert "rollout.cfg_scale = 1.5" in warning and "without guidance" in warning
    assert "set rollout.cfg_scale to 0" in warning
    assert warnings_of(load_recipe("quickstart", chosen)) == []


def test_guidance_is_left_alone_where_no_trajectory_is_scored() -> None:
    assert warnings_of(load_recipe("quickstart", ["rollout.cfg_scale=1.5"])) == []


LORA = ["warm_start=null", "model.init=null", "model.path=some/model", "trainer.lora.r=4"]


def dropped(*overrides: str, dropout: float = 0.05) -> list[str]:
    """Warnings about a recipe with LoRA dropout."""
    rate = f"trainer.lora.lora_dropout={dropout}"
    return warnings_of(load_recipe("quickstart", [*LORA, rate, *overrides]))


@pytest.mark.parametrize(
    "overrides",
    [
        ["algorithm.num_iterations=2"],
        ["trainer.num_minibatches=2"],
        ["algorithm.beta=0.1"],
        ["algorithm={type: unigrpo}"],
        ["algorithm={type: vrpo, pairs: online}"],
        ["algorithm={type: agrpo}", "rollout.remasking=random"],
        ["algorithm={type: tracerl, num_iterations: 3, beta: 0}", "rollout.remasking=random"],
    ],
)
def test_dropout_is_warned_about_where_estimates_are_compared(overrides: list[str]) -> None:
    (warning,) = dropped(*overrides)
    assert "trainer.lora.lora_dropout = 0.05" in warning and "lora_dropout to 0" in warning
    assert dropped(*overrides, dropout=0.0) == []


@pytest.mark.parametrize(
    "overrides",
    [
        [],  # one step: the ratio is 1 by construction
        ["algorithm={type: wd1}", "trainer.num_minibatches=2"],
        ["algorithm={type: spg, num_iterations: 2}"],
        ["algorithm={type: agrpo, ratio_against: update}", "rollout.remasking=random"],
    ],
)
def test_dropout_is_left_alone_where_nothing_is_compared(overrides: list[str]) -> None:
    assert dropped(*overrides) == []


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
