"""Every method of the package obeys the laws of `rl4dlm/trainers/laws.py`, for full attention and for blocks.

A method that is added to `rl4dlm.trainers.METHODS` and to `SETTINGS` is held to them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from rl4dlm.recipe.algorithms import AlgorithmConfig, GDPOConfig, LossConfig
from rl4dlm.trainers import METHODS, laws
from rl4dlm.trainers.laws import LAWS, BrokenLaw, MethodTrial
from rl4dlm.trainers.method import Method

SETTINGS: dict[str, dict[str, Any]] = {
    "espo": {"type": "espo", "epsilon": 0.2},
    "espo-plain": {"type": "espo", "epsilon": 0.01, "beta": 0.0, "num_masks": 1, "baseline": "mean"},
    "gdpo": {"type": "gdpo"},
    "gdpo-kl": {"type": "gdpo", "beta": 0.2, "num_nodes": 2},
    "spg": {"type": "spg"},
    "spg-random": {"type": "spg", "mask_scheme": "random", "num_masks": 3, "after_eos": "keep"},
    "spg-block": {"type": "spg", "restrict_to_block": True, "eubo_beta": 1.0, "omega": 1.0},
    "vrpo": {"type": "vrpo", "pairs": "online", "num_nodes": 3},
    "vrpo-sft": {"type": "vrpo", "pairs": "online", "num_nodes": 2, "num_masks": 2, "sft_weight": 0.5},
    "vrpo-length": {"type": "vrpo", "pairs": "online", "normalise_by_length": True, "beta": 5.0},
    "wd1": {"type": "wd1"},
    "wd1pp": {"type": "wd1pp"},
    "wd1pp-few": {"type": "wd1pp", "sample_train_steps": 2, "completion_scope": "until_eos", "psi": 2.0},
    "wd1-sharp": {"type": "wd1", "psi": 3.0, "p_mask_prompt": 0.0, "completion_scope": "canvas"},
    "diffu_grpo": {"type": "diffu_grpo", "beta": 0.0},
    "diffu_grpo-kl": {"type": "diffu_grpo", "p_mask_prompt": 0.5},
    "mdpo": {"type": "mdpo", "beta": 0.0},
    "mdpo-kl": {"type": "mdpo", "sample_train_steps": 2, "beta": 0.5, "token_weights": "uniform"},
    "mdpo-options": {
        "type": "mdpo",
        "beta": 0.0,
        "adv_kind": "reward",
        "reward_stride": 2,
        "lambda_mode": "none",
        "train_beyond_block": False,
        "importance_correction": "truncated",
    },
    "diffu_grpo-importance": {"type": "diffu_grpo", "importance_correction": "truncated"},
    "coupled_grpo": {"type": "coupled_grpo", "beta": 0.0},
    "coupled_grpo-kl": {"type": "coupled_grpo", "beta": 0.3, "calibrate": True, "baseline": "loo"},
    "unigrpo": {"type": "unigrpo", "beta": 0.0},
    "unigrpo-kl": {"type": "unigrpo", "beta": 0.3, "aggregation": "token_mean"},
    "agrpo": {"type": "agrpo", "num_steps": 3},
    "agrpo-kl": {"type": "agrpo", "num_steps": 2, "step_sampling": "surprisal", "beta": 0.3},
    "agrpo-update": {
        "type": "agrpo",
        "num_steps": 2,
        "ratio_against": "update",
        "aggregation": "seq_mean",
        "importance_correction": "truncated",
    },
    "just_grpo": {"type": "just_grpo"},
    "tracerl": {"type": "tracerl"},
    "tracerl-shrunk": {"type": "tracerl", "shrink": 2, "aggregation": "step_mean", "beta": 0.1},
    "tracerl-release": {"type": "tracerl", "aggregation": "state_mean", "importance_correction": "truncated"},
}
"""Settings by name; every method must occur."""


laws_of_all = pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
cases = pytest.mark.parametrize("name", SETTINGS)
models = pytest.mark.parametrize("block_length", [None, 2], ids=["full", "blocks"])


def test_every_method_is_held_to_the_laws() -> None:
    # An unmasking policy is no likelihood of a language model: tests/unit/trainers/test_unmasking_policy.py.
    # A method of one loss function is in tests/contract/test_method_example.py.
    named = {kind.model_fields["type"].default for kind in METHODS if kind is not LossConfig}
    assert {settings["type"] for settings in SETTINGS.values()} == named - {"unmasking_policy"}


@models
@cases
@laws_of_all
def test_a_method_obeys(law: Callable[[MethodTrial], None], name: str, block_length: int | None) -> None:
    law(MethodTrial(TypeAdapter(AlgorithmConfig).validate_python(SETTINGS[name]), block_length))


def _broken(monkeypatch: pytest.MonkeyPatch, change: Callable[[Method[Any]], Method[Any]]) -> MethodTrial:
    """A trial of GDPO with something wrong about it."""
    sound = laws.make_method
    monkeypatch.setattr(laws, "make_method", lambda *given: change(sound(*given)))
    return MethodTrial(GDPOConfig(num_nodes=2))


def test_a_mean_over_what_is_at_hand_breaks_the_first_law(monkeypatch: pytest.MonkeyPatch) -> None:
    def mean_at_hand(value: torch.Tensor, rows: Any, *_: Any) -> Any:
        return -(value * rows.advantage).mean(), {}

    trial = _broken(monkeypatch, lambda method: replace(method, objective=mean_at_hand))
    with pytest.raises(BrokenLaw, match="tokens per pass on .* the loss is"):
        laws.an_update_does_not_depend_on_how_the_batch_is_split(trial)


def test_a_loss_of_the_wrong_sign_breaks_the_last_law(monkeypatch: pytest.MonkeyPatch) -> None:
    def upside_down(method: Method[Any]) -> Method[Any]:
        sound = method.objective

        def objective(*given: Any) -> Any:
            share, metrics = sound(*given)
            return -share, metrics

        return replace(method, objective=objective)

    with pytest.raises(BrokenLaw, match="not above 0.2"):
        laws.gradient_steps_raise_the_rewarded_completions(_broken(monkeypatch, upside_down))


def test_rewards_that_are_not_compared_break_the_laws_of_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    def raw(method: Method[Any]) -> Method[Any]:
        return replace(method, credit=replace(method.credit, advantages=lambda reward, group: reward))

    trial = _broken(monkeypatch, raw)
    with pytest.raises(BrokenLaw, match="gradient is"):
        laws.equal_rewards_give_no_gradient(trial)
    with pytest.raises(BrokenLaw, match="differ by"):
        laws.a_shift_of_all_rewards_changes_nothing(trial)
