"""Estimates against sums made by hand for LLaDA-8B and for the quick start."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rl4dlm.models import ModelFacts
from rl4dlm.recipe import Recipe, load_recipe
from rl4dlm.run.cost import GIB, cost_of, sft_cost_of, trainable_parameters

# GSAI-ML/LLaDA-8B-Base: config.json, and 8.02 billion parameters.
LLADA = ModelFacts(
    family="llada",
    num_parameters=8_015_581_184,
    hidden_size=4096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=32,
    head_dim=128,
    mlp_size=12288,
    vocab_size=126464,
    max_length=4096,
    bytes_on_disk=16_031_162_368,
    dtype="bfloat16",
    adapted_width=32 * 81_920,
    num_quantisable=32 * (4 * 4096 * 4096 + 3 * 4096 * 12288),
)
BYTES = LLADA.num_parameters


def of(*overrides: str) -> Recipe:
    """A recipe for LLaDA-8B on 8 ranks; the quick start gives the rest."""
    large = ["model.init=null", "model.path=x", "warm_start=null", "cluster.num_trainers=8"]
    return load_recipe("quickstart", [*large, *overrides])


@pytest.mark.parametrize(
    ("stage", "weights", "gradients", "optimizer"),
    [(0, 1, 1, 1), (1, 1, 1, 8), (2, 1, 8, 8), (3, 8, 8, 8)],
)
def test_each_zero_stage_shards_what_it_promises(
    stage: int, weights: int, gradients: int, optimizer: int
) -> None:
    trainer = cost_of(of("trainer.bf16=true", f"trainer.zero_stage={stage}"), LLADA, 200).trainer
    assert trainer["weights"] == 2 * BYTES / weights
    assert trainer["gradients"] == 2 * BYTES / gradients
    # Two moments and master weights in float32: 12 bytes a parameter.
    assert trainer["optimizer"] == 12 * BYTES / optimizer


def test_llada_8b_weighs_16_gb_in_bf16_and_32_in_fp32() -> None:
    bf16 = cost_of(of("trainer.bf16=true"), LLADA, 200)
    fp32 = cost_of(of(), LLADA, 200)
    assert bf16.rollout["weights"] == pytest.approx(16.0e9, rel=0.01)
    assert fp32.rollout["weights"] == pytest.approx(32.1e9, rel=0.01)
    assert fp32.trainer["optimizer"] == 8 * BYTES / 8  # moments only: the weights are their own masters


def test_quantised_projections_weigh_a_byte_or_half_of_one() -> None:
    lora = ["trainer.bf16=true", "trainer.lora.r=1", "trainer.zero_stage=1"]
    eight = cost_of(of(*lora, "model.quantization=8bit"), LLADA, 200)
    four = cost_of(of(*lora, "model.quantization=4bit"), LLADA, 200)
    # 6.98 billion of the 8.02 are projections: 6.98 + 2 x 1.04, and 3.6 + 2 x 1.04.
    assert eight.rollout["weights"] == pytest.approx(9.05e9, rel=0.01)
    assert four.rollout["weights"] == pytest.approx(5.67e9, rel=0.01)
    assert eight.trainer["weights"] == pytest.approx(9.05e9, rel=0.01)


def test_an_offloaded_optimizer_moves_to_the_host() -> None:
    cost = cost_of(of("trainer.bf16=true", "trainer.offload_optimizer=true"), LLADA, 200)
    assert (cost.trainer["optimizer"], cost.trainer_host) == (0, 12 * BYTES / 8)
    assert cost_of(of(), LLADA, 200).trainer_host == 0


def test_lora_counts_r_times_in_plus_out_of_every_projection() -> None:
    # q, k, v, o: 4 x (4096 + 4096); gate, up, down: 3 x (4096 + 12288). 81,920 per layer and rank of r.
    assert trainable_parameters(of("trainer.lora.r=128"), LLADA) == 128 * 81_920 * 32 == 335_544_320
    assert trainable_parameters(of(), LLADA) == LLADA.num_parameters


def test_lora_keeps_gradients_and_optimizer_of_the_adapters_alone() -> None:
    cost = cost_of(of("trainer.bf16=true", "trainer.zero_stage=0", "trainer.lora.r=128"), LLADA, 200)
    assert cost.trainer["gradients"] == 2 * 335_544_320
    assert cost.trainer["optimizer"] == 12 * 335_544_320
    assert cost.trainer["weights"] == 2 * (BYTES + 335_544_320)


def test_a_reference_costs_a_second_model_unless_adapters_can_be_switched_off() -> None:
    def reference(*overrides: str) -> float:
        return cost_of(of("trainer.bf16=true", "trainer.zero_stage=0", *overrides), LLADA, 200).trainer[
            "reference"
        ]

    assert reference() == 0
    assert reference("algorithm.beta=0.01") == 2 * BYTES
    assert reference("algorithm.beta=0.01", "trainer.lora.r=8") == 0


def test_checkpointing_activations_saves_most_of_them() -> None:
    plain = cost_of(of("trainer.micro_batch_tokens=4096"), LLADA, 200).trainer["activations"]
    saved = cost_of(
        of("trainer.micro_batch_tokens=4096", "trainer.gradient_checkpointing=true"), LLADA, 200
    ).trainer["activations"]
    # Per token: 32 layers of 10 x 4096 + 4 x 12288 numbers, or one such layer and 32 x 4096.
    assert plain == 4096 * 32 * (10 * 4096 + 4 * 12288) * 4
    assert saved == 4096 * ((10 * 4096 + 4 * 12288) + 32 * 4096) * 4


def test_activations_are_bounded_by_the_work_there_is() -> None:
    # 16 x 8 completions x 4 states / 8 ranks = 64 rows of 200 + 8 tokens, fewer than the budget allows.
    cost = cost_of(of("trainer.micro_batch_tokens=1000000000"), LLADA, 200)
    assert cost.trainer["activations"] == 64 * 208 * 32 * (10 * 4096 + 4 * 12288) * 4


def test_the_quick_starts_forwards_per_update() -> None:
    forwards = cost_of(load_recipe("quickstart"), LLADA, 7).forwards
    # 16 prompts x 8 completions x 8 steps; 128 completions x 4 nodes; on-policy and single: no old pass.
    assert forwards == {"rollout": 1024, "old": 0, "reference": 0, "update (forward and backward)": 512}


def test_more_passes_need_old_values_and_a_kl_needs_reference_values() -> None:
    recipe = load_recipe("quickstart", ["algorithm.num_iterations=2", "algorithm.beta=0.1"])
    forwards = cost_of(recipe, LLADA, 7).forwards
    assert (forwards["old"], forwards["reference"], forwards["update (forward and backward)"]) == (
        1024,
        1024,
        1024,
    )
    split = load_recipe("quickstart", ["trainer.num_minibatches=2"])
    assert cost_of(split, LLADA, 7).forwards["old"] == 512


def test_the_disk_holds_one_checkpoint_more_than_are_kept() -> None:
    # While a new one is written the old ones are still there. bf16: 12 bytes of optimizer + 2 copies of 2.
    disk = cost_of(of("trainer.bf16=true", "trainer.save_total_limit=2"), LLADA, 200).disk
    assert disk["checkpoints (2 kept)"] == 3 * 16 * BYTES
    assert disk["exported model"] == 2 * BYTES
    assert disk["rollouts"] < GIB
    assert cost_of(of("tracking.rollouts_every=0"), LLADA, 200).disk["rollouts"] == 0


def test_a_reference_that_follows_is_kept_in_every_checkpoint() -> None:
    fixed = cost_of(of("trainer.bf16=true", "algorithm.beta=0.1"), LLADA, 200).disk
    followed = of("trainer.bf16=true", "algorithm.beta=0.1", "algorithm.sync_ref_model=true")
    more = cost_of(followed, LLADA, 200).disk["checkpoints (2 kept)"] - fixed["checkpoints (2 kept)"]
    assert more == 3 * 2 * BYTES


def test_recorded_predictions_need_logits_of_the_whole_canvas_and_room_on_disk() -> None:
    shape = ["rollout.max_completion_length=256", "rollout.block_length=32", "rollout.diffusion_steps=128"]
    plain, mdpo, rcr, kept = (
        cost_of(of(*shape, *more), LLADA, 200)
        for more in (
            [],
            ["algorithm={type: mdpo}"],
            ["rollout.remasking=rcr"],
            ["rollout.record_predictions=true"],
        )
    )
    assert mdpo.rollout["logits"] == rcr.rollout["logits"] == kept.rollout["logits"]
    assert mdpo.rollout["logits"] == plain.rollout["logits"] * 256 / 32
    # 128 completions in 120 updates; 128 steps x 256 / 2 masked positions x 12 bytes each.
    assert kept.disk["rollouts"] - plain.disk["rollouts"] == 120 * 128 * 128 * 128 * 12
    assert mdpo.disk["rollouts"] == plain.disk["rollouts"]


def test_mdpo_evaluates_a_state_per_chosen_step() -> None:
    for settings, states in ((", sample_train_steps: 4", 4), ("", 8), (", reward_stride: 3", 4)):
        # Eight steps; every third and the last: 0, 3, 6, 7. 128 completions, with a reference policy.
        forwards = cost_of(of(f"algorithm={{type: mdpo{settings}}}"), LLADA, 200).forwards
        assert forwards["update (forward and backward)"] == forwards["reference"] == 128 * states


def test_fine_tuning_costs_what_its_passes_hold_and_no_rollouts() -> None:
    overrides = [
        "model.init=null",
        "model.path=x",
        "reward=null",
        "trainer.bf16=true",
        "trainer.zero_stage=3",
    ]
    recipe = load_recipe("sft/tiny_sort", [*overrides, "cluster.num_trainers=8", "sft.batch_size=64"])
    cost = sft_cost_of(recipe, LLADA, 2048, 1024)
    assert cost.trainer["weights"] == 2 * BYTES / 8 and cost.trainer["reference"] == 0
    assert cost.rollout == {} and "rollouts" not in cost.disk
    # 8 rows of 2,048 tokens are one pass of the budget of 16,384; its head runs on 1,024 rows at a time.
    assert cost.trainer["activations"] == 16384 * (10 * 4096 + 4 * 12288) * 2 * 32
    assert cost.trainer["logits"] == 3 * 1024 * 126464 * 4
    assert cost.forwards == {"update (forward and backward)": 64.0}
    sampled = load_recipe("sft/tiny_sort", [*overrides[:2], "trainer.bf16=true"])
    assert sft_cost_of(sampled, LLADA, 2048, 1024).rollout["weights"] == 2 * BYTES


def test_a_method_without_ratios_computes_no_old_log_probabilities() -> None:
    forwards = cost_of(of("algorithm={type: spg, num_iterations: 3}"), LLADA, 200).forwards
    # 16 x 8 completions, two states, three passes.
    assert (forwards["old"], forwards["update (forward and backward)"]) == (0, 768)


def test_recorded_pairs_cost_no_rollouts() -> None:
    settings = ("algorithm={type: vrpo, num_nodes: 4}", "data.task=null", "data.train=x")
    cost = cost_of(of(*settings), LLADA, 200)
    assert (cost.forwards["rollout"], cost.disk["rollouts"]) == (0, 0)
    # 16 pairs of two completions, four states each.
    assert cost.forwards["reference"] == cost.forwards["update (forward and backward)"] == 128


def test_beside_a_frozen_model_a_rank_holds_the_unmasking_policy_alone() -> None:
    policy = ("rollout.remasking=learned", "rollout.policy=new", "algorithm={type: unmasking_policy}")
    cost, model = cost_of(of(*policy), LLADA, 200), cost_of(of(), LLADA, 200)
    # 314,113 parameters in float32, and two moments of each, sharded by 8 ranks.
    assert cost.trainer["weights"] == 4 * 314_113 and cost.trainer["optimizer"] == 8 * 314_113 / 8
    assert cost.disk["exported model"] == 4 * 314_113
    assert cost.rollout == model.rollout and cost.forwards["update (forward and backward)"] == 0


def test_keys_and_values_of_every_slot_are_kept_where_there_is_a_cache() -> None:
    def kept(facts: ModelFacts, *overrides: str) -> float:
        return cost_of(of("trainer.bf16=true", "rollout.slots=4", *overrides), facts, 200).rollout["KV cache"]

    # 0.5 MiB per token in LLaDA-8B: 2 x 32 layers x 4096 numbers of 2 bytes; 200 + 8 + 1 columns.
    assert kept(LLADA, "rollout.cache=dual") == 4 * 209 * 2**19
    assert kept(replace(LLADA, num_kv_heads=8), "rollout.cache=dual") == 209 * 2**19
    assert kept(LLADA) == 0


def test_in_one_process_the_sampler_reads_the_trained_weights_and_gradients_are_float32() -> None:
    here = ["cluster.backend=local", "cluster.num_rollout_workers=1", "trainer.zero_stage=0"]
    local = cost_of(of(*here, "cluster.num_trainers=1", "trainer.bf16=true"), LLADA, 200)
    assert local.rollout["weights"] == 0 and local.trainer["gradients"] == 4 * BYTES
    learned = ["rollout.remasking=learned", "rollout.policy=new", "algorithm={type: unmasking_policy}"]
    policy = cost_of(of(*here, "cluster.num_trainers=1", *learned), LLADA, 200)
    assert policy.rollout["weights"] == 4 * BYTES and policy.trainer["weights"] < 4e6
