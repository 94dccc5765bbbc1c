"""Rules that tie sections together: each refuses its own mistake and lets the quick start pass."""

from __future__ import annotations

import pytest

from rl4dlm.errors import RecipeError
from rl4dlm.recipe import load_recipe
from rl4dlm.recipe.rules import RULES, divisors_near

DATASET = ["data.task=null", "data.train=rows.jsonl"]
NO_WARM_START = "warm_start=null"
UNMASKING = "algorithm={type: unmasking_policy}"
IN_ONE_PROCESS = (
    *("cluster.backend=local", "cluster.num_trainers=1", "cluster.num_rollout_workers=1"),
    "trainer.zero_stage=0",
)
LEARNED = ("rollout.remasking=learned", "rollout.policy=new")

# Rule, overrides of the quick start that break it, the key named, and something of the remedy.
BROKEN = [
    ("one_model_source", ["model.path=here"], "model.path", "exactly one"),
    ("one_model_source", ["model.init=null"], "model.path", "exactly one"),
    ("one_model_source", ["model.init.n_heads=3"], "model.init.n_heads", "1 or 2 or 4 heads"),
    ("one_model_source", ["model.init.n_kv_heads=3"], "model.init.n_kv_heads", "1 or 2 or 4"),
    ("blocks_fit_the_family", ["model.family=sdar"], "model.block_length", "published: 4"),
    ("blocks_fit_the_family", ["model.block_length=4"], "model.block_length", "sdar, llada2, bd3lm, a2d"),
    ("blocks_fit_the_family", ["model.family=dream", "model.block_length=4"], "model.block_length", "leave"),
    (
        "experts_can_be_chosen",
        ["model.family=llada_moe", "model.init.num_experts_per_tok=5"],
        "model.init.num_experts_per_tok",
        "4 or less",
    ),
    (
        "experts_can_be_chosen",
        ["model.family=llada2", "model.block_length=4", "model.init.num_experts=5"],
        "model.init.num_experts",
        "even number",
    ),
    (
        "a_model_from_scratch_is_as_long_as_it_is_made",
        ["model.max_length=128"],
        "model.max_length",
        "model.init.max_sequence_length",
    ),
    (
        "a_model_from_scratch_has_its_own_mask",
        ["model.mask_token=<mask>"],
        "model.mask_token",
        "leave it out",
    ),
    ("quantised_weights_stay_as_they_are", ["model.quantization=4bit"], "model.quantization", "trainer.lora"),
    (
        "quantised_weights_stay_as_they_are",
        ["model.quantization=8bit", "trainer.lora.r=4", NO_WARM_START, "trainer.zero_stage=3"],
        "trainer.zero_stage",
        "trainer.zero_stage=2",
    ),
    ("one_data_source", ["data.train=rows.jsonl"], "data.task", "exactly one"),
    (
        "one_data_source",
        ["data.task={name: sudoku4, min_empty: 9, max_empty: 3}"],
        "data.task.min_empty",
        "swap",
    ),
    ("char_tokenizer_has_characters", [*DATASET, NO_WARM_START], "model.init.tokenizer.type", "byte_bpe"),
    ("blocks_divide_the_canvas", ["rollout.block_length=3"], "rollout.block_length", "1 or 2 or 4"),
    # 8 / 2 = 4 blocks; 6 steps lie between 4 and 8.
    (
        "blocks_divide_the_canvas",
        ["rollout.block_length=2", "rollout.diffusion_steps=6"],
        "rollout.diffusion_steps",
        "multiple of 4 such as 4 or 8",
    ),
    ("blocks_divide_the_canvas", ["rollout.diffusion_steps=9"], "rollout.diffusion_steps", "8 or less"),
    (
        "blocks_divide_the_canvas",
        ["rollout.block_lengths=[8, 3]"],
        "rollout.block_lengths = 3",
        "1 or 2 or 4",
    ),
    (
        "blocks_divide_the_canvas",
        ["data.over_denoising.block_lengths=[8, 2]", "rollout.diffusion_steps=6"],
        "4 blocks (rollout.max_completion_length / data.over_denoising.block_lengths)",
        "multiple of 4",
    ),
    (
        "confidences_are_weights",
        ["algorithm={type: mdpo}", "rollout.remasking=random"],
        "rollout.remasking = random",
        "token_weights: uniform",
    ),
    (
        "predictions_belong_to_states",
        ["rollout.record_predictions=true", "rollout.record_states=false"],
        "rollout.record_predictions",
        "record_states: true",
    ),
    (
        "a_method_brings_its_own_rules",
        ["algorithm={type: coupled_grpo, min_rate: 0.6, max_rate: 0.4}"],
        "algorithm.min_rate",
        "swap",
    ),
    (
        "a_method_brings_its_own_rules",
        ["algorithm={type: just_grpo}"],
        "rollout.remasking",
        "ar",
    ),
    (
        "a_method_brings_its_own_rules",
        ["algorithm={type: just_grpo}", "rollout.remasking=ar", "rollout.diffusion_steps=4"],
        "rollout.diffusion_steps",
        "set it to 8",
    ),
    (
        "a_method_brings_its_own_rules",
        ["algorithm={type: agrpo, importance_correction: truncated}"],
        "algorithm.importance_correction",
        "ratio_against to update",
    ),
    ("groups_have_company", ["rollout.num_generations=1"], "rollout.num_generations", "at least 2"),
    ("something_to_explore", ["rollout.temperature=0"], "rollout.temperature", "0.6 to 1.0"),
    (
        "a_new_policy_is_trained",
        ["rollout.remasking=learned", "rollout.policy=new"],
        "rollout.policy",
        "algorithm.type = unmasking_policy",
    ),
    (
        "a_method_brings_its_own_rules",
        [UNMASKING],
        "rollout.remasking = low_confidence",
        "policy to new",
    ),
    (
        "a_method_brings_its_own_rules",
        [UNMASKING, "rollout.remasking=learned"],
        "rollout.policy = ''",
        "policy to new",
    ),
    (
        "a_method_brings_its_own_rules",
        [UNMASKING, "algorithm.tau=0.5", "rollout.remasking=learned", "rollout.policy=runs/x/policy"],
        "rollout.policy",
        "leave them out",
    ),
    *[
        (
            "a_method_brings_its_own_rules",
            [UNMASKING, *LEARNED, NO_WARM_START, f"{key}={value}"],
            key,
            remedy,
        )
        for key, value, remedy in (
            ("rollout.early_commit", "sched_cosine", "none"),
            ("rollout.engine", "my.module:make", "builtin"),
            ("trainer.lora", "{r: 4}", "leave it out"),
            ("trainer.gradient_checkpointing", "true", "false"),
            ("trainer.zero_stage", "3", "0, 1 or 2"),
        )
    ],
    ("sampler_settings_are_read", ["rollout.threshold=0.8"], "rollout.threshold", "dynamic or threshold"),
    (
        "lengths_fit_the_model",
        ["model.init.max_sequence_length=8"],
        "model.init.max_sequence_length",
        "raise",
    ),
    (
        "every_reward_has_a_weight",
        ["reward.reward_weights=[1, 2]"],
        "reward.reward_weights",
        "one weight per",
    ),
    ("minibatches_hold_groups", ["trainer.num_minibatches=17"], "trainer.num_minibatches", "16 or less"),
    # 16 x 8 completions in 16 minibatches: 8 for 9 ranks.
    (
        "ranks_have_work",
        ["trainer.num_minibatches=16", "cluster.num_trainers=9"],
        "cluster.num_trainers",
        "8 ranks or less",
    ),
    (
        "offload_needs_sharding",
        ["trainer.offload_optimizer=true", "trainer.zero_stage=0"],
        "trainer.offload_optimizer",
        "1, 2 or 3",
    ),
    (
        "warm_start_has_demonstrations",
        [*DATASET, "model.init.tokenizer.type=byte_bpe"],
        "warm_start",
        "remove warm_start",
    ),
    ("warm_start_has_demonstrations", ["trainer.lora.r=4"], "warm_start", "remove one"),
    ("placement_fits", ["cluster.rollout_resource=sampler"], "cluster.rollout_resource", "separate"),
    (
        "placement_fits",
        ["cluster.gpus_per_trainer=0.7", "cluster.gpus_per_rollout_worker=0.6"],
        "cluster.gpus_per_rollout_worker",
        "0.6 and 0.4",
    ),
    ("a_worker_uses_one_gpu", ["cluster.gpus_per_trainer=8"], "cluster.gpus_per_trainer = 8", "set it to 1"),
    (
        "a_worker_uses_one_gpu",
        ["cluster.gpus_per_rollout_worker=2"],
        "gpus_per_rollout_worker = 2",
        "set it to 1",
    ),
    (
        "a_method_brings_its_own_rules",
        ["algorithm.sync_ref_model=true"],
        "algorithm.beta = 0",
        "algorithm.beta above 0",
    ),
    (
        "a_method_brings_its_own_rules",
        ["algorithm.sync_ref_model=true", "algorithm.beta=0.1", "trainer.lora.r=4", NO_WARM_START],
        "trainer.lora",
        "algorithm.sync_ref_model=false",
    ),
    (
        "what_is_drawn_ahead_is_sampled",
        [
            *("algorithm={type: vrpo}", "cluster.schedule=one_step_off", *DATASET, NO_WARM_START),
            "model.init.tokenizer.type=byte_bpe",
        ],
        "cluster.schedule = one_step_off",
        "cluster.schedule=sync",
    ),
    (
        "graphs_are_recorded_on_a_gpu",
        ["rollout.cuda_graphs=true"],
        "cluster.gpus_per_rollout_worker = 0",
        "rollout.cuda_graphs=false",
    ),
    (
        "graphs_are_recorded_on_a_gpu",
        ["rollout.cuda_graphs=true", "cluster.gpus_per_rollout_worker=1", "rollout.engine=sglang_dlm:make"],
        "rollout.engine = sglang_dlm:make",
        "rollout.engine",
    ),
    (
        "graphs_are_recorded_on_a_gpu",
        [
            *("rollout.cuda_graphs=true", "cluster.gpus_per_rollout_worker=1", "model.quantization=8bit"),
            *(UNMASKING, *LEARNED, "model.init=null", "model.path=here", NO_WARM_START),
        ],
        "model.quantization = 8bit",
        "model.quantization",
    ),
    ("a_method_brings_its_own_rules", ["algorithm.epsilon=1"], "algorithm.epsilon", "below 1"),
    (
        "a_method_brings_its_own_rules",
        ["algorithm={type: tracerl, enlarge: {block_length: 3}}"],
        "algorithm.enlarge.block_length = 3",
        "use 16",
    ),
    (
        "a_method_brings_its_own_rules",
        [
            "algorithm={type: tracerl, enlarge: {block_length: 8}, importance_correction: truncated}",
        ],
        "algorithm.importance_correction",
        "set it to none",
    ),
    (
        "trajectories_are_kept",
        ["algorithm={type: tracerl}", "rollout.remasking=rcr"],
        "rollout.remasking = rcr",
        "top_probability",
    ),
    (
        "a_method_brings_its_own_rules",
        ["algorithm={type: tracerl, process_chunk: 4}"],
        "algorithm.process_chunk = 4",
        "add algorithm.value",
    ),
    (
        "a_method_brings_its_own_rules",
        ["algorithm={type: tracerl, accuracy_range: [0.8, 0.2]}"],
        "algorithm.accuracy_range",
        "lower end first",
    ),
    (
        "a_method_brings_its_own_rules",
        ["algorithm={type: spg, restrict_to_block: true, mask_scheme: random}"],
        "algorithm.restrict_to_block",
        "block_random",
    ),
    ("a_method_brings_its_own_rules", ["algorithm={type: vrpo}"], "algorithm.pairs", "pairs: online"),
    ("warmup_ends", ["trainer.warmup_steps=120"], "trainer.warmup_steps", "a tenth"),
    (
        "one_process_does_one_thing_at_a_time",
        ["cluster.backend=local"],
        "cluster.num_trainers = 2, cluster.num_rollout_workers = 2, trainer.zero_stage = 2",
        "set cluster.num_trainers=1 cluster.num_rollout_workers=1 trainer.zero_stage=0, or cluster.backend",
    ),
    (
        "one_process_does_one_thing_at_a_time",
        [*IN_ONE_PROCESS, "cluster.schedule=one_step_off", "cluster.num_reward_workers=3"],
        "cluster.num_reward_workers = 3, cluster.schedule = one_step_off",
        "cluster.num_reward_workers=1 cluster.schedule=sync",
    ),
    (
        "one_process_does_one_thing_at_a_time",
        [*IN_ONE_PROCESS, "cluster.address=auto", "cluster.placement=separate", "cluster.trainer_resource=a"],
        "cluster.address = auto",
        "cluster.placement=colocated cluster.address=null cluster.trainer_resource=null",
    ),
    (
        "one_process_does_one_thing_at_a_time",
        [*IN_ONE_PROCESS, "cluster.gpus_per_trainer=1"],
        "cluster.gpus_per_rollout_worker = 0",
        "cluster.gpus_per_trainer=0.5 cluster.gpus_per_rollout_worker=0.5",
    ),
    (
        "one_process_does_one_thing_at_a_time",
        [*IN_ONE_PROCESS, "cluster.gpus_per_rollout_worker=0.7"],
        "cluster.gpus_per_trainer = 0",
        "cluster.gpus_per_trainer=0.5 cluster.gpus_per_rollout_worker=0.5",
    ),
    ("a_policy_decides", ["rollout.remasking=learned"], "rollout.policy is not set", "a registered policy"),
    (
        "early_commits_look_somewhere",
        ["rollout.early_commit=prophet", "rollout.answer_region=[6,2]"],
        "rollout.answer_region = (6, 2)",
        "use sched_cosine",
    ),
    (
        "an_accepted_end_stays",
        ["rollout.remasking=saber", "rollout.eos_policy=accepted_eos"],
        "rollout.remasking = saber may remask",
        "block_eos",
    ),
    (
        "drafts_can_be_made",
        ["rollout.draft_steps=2", "rollout.remasking=ccd"],
        "rollout.draft_steps = 2",
        "low_confidence or top_probability or random",
    ),
    (
        "caches_fit_the_sampler",
        ["rollout.cache=dkv_greedy", "rollout.remasking=margin"],
        "rollout.remasking = margin finds out by it",
        "random or ar or dream_origin",
    ),
]


@pytest.mark.parametrize(("rule", "overrides", "key", "remedy"), BROKEN)
def test_a_rule_names_key_value_and_remedy(rule: str, overrides: list[str], key: str, remedy: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("quickstart", overrides)
    problem, fix = str(caught.value).splitlines()
    assert key in problem and remedy in fix.removeprefix("Fix: ")


def test_every_rule_is_broken_by_some_case() -> None:
    assert {rule for rule, *_ in BROKEN} == {rule.__name__ for rule in RULES}


def test_each_case_breaks_the_rule_it_names_and_no_other() -> None:
    for name, overrides, _, _ in BROKEN:
        load_recipe("quickstart", overrides, [rule for rule in RULES if rule.__name__ != name])


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        [*DATASET, NO_WARM_START, "model.init.tokenizer.type=byte_bpe"],
        ["model.init=null", "model.path=here"],
        ["rollout.temperature=0", "rollout.remasking=random"],
        ["rollout.temperature=0", UNMASKING, *LEARNED, "algorithm.tau=0.5"],
        [UNMASKING, *LEARNED, "model.init=null", "model.path=here", NO_WARM_START, "model.quantization=4bit"],
        ["rollout.block_length=2", "rollout.diffusion_steps=4"],
        ["cluster.gpus_per_trainer=0.6", "cluster.gpus_per_rollout_worker=0.4"],
        ["cluster.placement=separate", "cluster.trainer_resource=big", "cluster.rollout_resource=small"],
        ["trainer.max_steps=1", "trainer.warmup_steps=1"],
        [*IN_ONE_PROCESS],
        [*IN_ONE_PROCESS, "cluster.gpus_per_trainer=0.5", "cluster.gpus_per_rollout_worker=0.5"],
        ["rollout.block_lengths=[2, 4, 8]"],
        ["algorithm={type: mdpo, token_weights: uniform}", "rollout.remasking=random"],
        ["algorithm={type: mdpo}", "rollout.remasking=rcr"],
    ],
)
def test_rules_are_silent_on_what_is_right(overrides: list[str]) -> None:
    load_recipe("quickstart", overrides)


def test_the_nearest_divisors_are_offered_in_order() -> None:
    assert divisors_near(48, 256) == "16 or 32 or 64"  # distances 32, 16, 16
    assert divisors_near(5, 7) == "1 or 7"
