"""The whole main job on a tiny model of every family, in one process: rollouts, a GDPO update and one along
the trajectory, sync, export."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rl4dlm.decoding import SamplerSpec  # noqa: E402
from rl4dlm.diffusion.seeds import derive_seed  # noqa: E402
from rl4dlm.learner.engine import PlainEngine  # noqa: E402
from rl4dlm.learner.update import RankUpdate  # noqa: E402
from rl4dlm.likelihood.trace import replay_gap  # noqa: E402
from rl4dlm.models import (  # noqa: E402
    LoadedModel,
    add_lora,
    build_char_tokenizer,
    create,
    denoiser,
    load,
    load_trainable_state,
    save,
    trainable_state,
)
from rl4dlm.recipe import Recipe, load_recipe  # noqa: E402
from rl4dlm.rollout import Engine, Request  # noqa: E402
from rl4dlm.trainers import method_of  # noqa: E402
from rl4dlm.trainers.prepare import prepare_batch  # noqa: E402
from rl4dlm.types import Prompt, Rollout, RolloutGroup, Scores  # noqa: E402

FAMILIES = [
    ("llada", None),
    ("llada_moe", None),
    ("llada2", 4),
    ("dream", None),
    ("sdar", 4),
    ("a2d", None),
    ("a2d", 4),
    ("mdlm", None),
    ("bd3lm", 4),
]
METHODS = {
    "gdpo": "algorithm={type: gdpo, estimator: stratified, num_nodes: 2, num_iterations: 2}",
    "tracerl": "algorithm={type: tracerl, shrink: 2}",
}
PROMPTS = [(3, 1, 4, 10), (1, 5, 9, 2, 6, 10), (5, 10)]  # a block may begin inside a prompt


def recipe_for(family: str, block_length: int | None, method: str) -> Recipe:
    sizes = {"d_model": 16, "n_layers": 2, "n_heads": 2, "mlp_hidden_size": 32, "max_sequence_length": 32}
    settings = [f"model.init.{key}={value}" for key, value in sizes.items()]
    blocks = [] if block_length is None else [f"model.block_length={block_length}"]
    return load_recipe(
        "quickstart",
        [
            f"model.family={family}",
            *blocks,
            *settings,
            "rollout={prompts_per_update: 3, num_generations: 4, max_completion_length: 8, block_length: 4, "
            "diffusion_steps: 4, temperature: 1.0, slots: 8, remasking: top_probability}",
            METHODS[method],
            "trainer.learning_rate=1e-2",
        ],
    )


def sampled(recipe: Recipe, loaded: LoadedModel) -> list[Rollout]:
    requests = [
        Request(uid, sample, derive_seed(0, uid, sample), prompt)
        for uid, prompt in enumerate(PROMPTS)
        for sample in range(4)
    ]
    engine = Engine(denoiser(loaded), SamplerSpec.from_config(recipe.rollout), recipe.rollout.slots)
    return engine.generate(requests, policy_version=0)


def scored(rollouts: list[Rollout]) -> tuple[list[RolloutGroup], Scores]:
    """Groups by prompt, rewarded by how often a completion holds a 3."""
    groups = [
        RolloutGroup(Prompt(uid, "", "", prompt), tuple(rollouts[4 * uid : 4 * uid + 4]))
        for uid, prompt in enumerate(PROMPTS)
    ]
    reward = np.array([(r.completion_ids == 3).mean() + r.seed % 7 / 100 for r in rollouts], dtype=np.float32)
    return groups, Scores(reward, {}, {}, np.zeros(len(rollouts), dtype=bool))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("family", "block_length"), FAMILIES)
def test_a_family_samples_learns_syncs_and_is_exported(family, block_length, method, tmp_path):
    recipe = recipe_for(family, block_length, method)
    tokenizer = build_char_tokenizer("0123456789=")
    policy, sampler = (
        create(recipe.model.init, tokenizer, 1, family=family, block_length=block_length) for _ in range(2)
    )
    rollouts = sampled(recipe, sampler)
    gap, tokens = replay_gap(denoiser(policy), rollouts, 1.0)
    assert tokens > 12 and gap / tokens < 1e-5
    trainer = method_of(recipe, policy.spec)
    groups, scores = scored(rollouts)
    batch, _ = prepare_batch(trainer, groups, scores, policy_version=0, seed=0)
    engine = PlainEngine(policy.module, recipe.trainer)
    update = RankUpdate(
        engine=engine,
        denoiser=denoiser(policy, model=engine),
        method=trainer,
        rank=0,
        world_size=1,
        token_budget=200,
        num_minibatches=1,
    )
    metrics = update.run(batch)
    assert all(np.isfinite(value) for value in metrics.values()) and metrics["grad_norm"] > 0
    moved, _ = replay_gap(denoiser(policy), rollouts, 1.0)
    assert moved / tokens > 1e-4  # the policy is no longer the one that sampled
    load_trainable_state(sampler.module, trainable_state(policy.module))
    again = sampled(recipe, sampler)
    gap, tokens = replay_gap(denoiser(policy), again, 1.0)
    assert gap / tokens < 1e-5
    exported = load(save(policy, tmp_path / "model", tokenizer))
    assert exported.spec == policy.spec
    assert replay_gap(denoiser(exported), again, 1.0) == pytest.approx((gap, tokens), abs=1e-4)


@pytest.mark.parametrize(("family", "block_length"), [("llada2", 4), ("dream", None), ("sdar", 4)])
def test_adapters_of_a_family_learn_while_its_base_stands_still(family, block_length):
    recipe = recipe_for(family, block_length, "gdpo").model_copy(
        update={"trainer": load_recipe("quickstart", ["trainer.lora.r=2", "warm_start=null"]).trainer}
    )
    policy = create(
        recipe.model.init, build_char_tokenizer("0123456789="), 1, family=family, block_length=block_length
    )
    before = {name: p.detach().clone() for name, p in policy.module.named_parameters()}
    rollouts = sampled(recipe, policy)
    adapted = add_lora(policy.module, recipe.trainer.lora, family, seed=1)
    engine = PlainEngine(adapted, recipe.trainer)
    trainer = method_of(recipe, policy.spec)
    batch, _ = prepare_batch(trainer, *scored(rollouts), policy_version=0, seed=0)
    update = RankUpdate(
        engine=engine,
        denoiser=denoiser(policy, model=engine),
        method=trainer,
        rank=0,
        world_size=1,
        token_budget=200,
        num_minibatches=1,
    )
    update.run(batch)
    changed = trainable_state(adapted)
    assert all(".lora_" in name for name in changed)
    assert any(tensor.abs().max() > 0 for name, tensor in changed.items() if ".lora_B." in name)
    for name, parameter in adapted.named_parameters():
        plain = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        if plain in before:
            assert torch.equal(parameter, before[plain]), name
