"""Everything that can be known before a run starts: model, data and rewards are opened, nothing is
launched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from rl4dlm.data import (
    PromptSource,
    demonstrations,
    open_prompts,
    open_task,
    preference_pairs,
    training_texts,
)
from rl4dlm.errors import ClusterError, DataError, ModelError, RecipeError
from rl4dlm.models import (
    LoadedModel,
    ModelFacts,
    build_bpe_tokenizer,
    build_char_tokenizer,
    create,
    describe,
    encode,
    inspect,
    load_tokenizer,
)
from rl4dlm.recipe import Recipe
from rl4dlm.reward.entries import entries_of
from rl4dlm.reward.pool import RewardPool
from rl4dlm.types import DenoiserSpec, Pair, Prompt


@dataclass(frozen=True)
class Preflight:
    """What the checks found; `train` goes on with it."""

    facts: ModelFacts
    spec: DenoiserSpec
    tokenizer: Any
    prompts: PromptSource
    notes: tuple[str, ...]
    make_model: Callable[[], LoadedModel]
    """The model from scratch; only for `model.init`."""

    def decode(self, ids: Sequence[int]) -> str:
        """Token ids as text, without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def pairs(self, recipe: Recipe, prompts: Sequence[Prompt]) -> list[Pair]:
        """The recorded preferences of some rows; see `preference_pairs`.

        Raises:
            DataError: a row cannot be used.
        """
        return preference_pairs(
            prompts,
            partial(encode, self.tokenizer),
            eos_id=self.spec.eos_id,
            canvas_length=recipe.rollout.max_completion_length,
            overlong=recipe.data.overlong,
        )


def preflight(recipe: Recipe) -> Preflight:
    """Check model folder, tokenizer, data, rewards and devices.

    Raises:
        UserError: with the one thing to mend.
    """
    check_devices(recipe)
    entries_of(recipe.reward)
    if recipe.model.init is not None:
        model = _scratch_model(recipe)
        tokenizer, spec, facts, make_model = model.tokenizer, model.spec, describe(model), lambda: model
    else:
        assert recipe.model.path is not None
        facts = inspect(recipe.model.path, family=recipe.model.family)
        tokenizer, spec = load_tokenizer(
            recipe.model.path, family=recipe.model.family, trust_remote_code=recipe.model.trust_remote_code
        )
        make_model = partial(_no_model, recipe.model.path)
    prompts = open_prompts(
        recipe.data,
        tokenizer=tokenizer,
        encode=partial(encode, tokenizer),
        chat_template=recipe.model.chat_template,
        seed=recipe.run.seed,
        num_eval=recipe.eval.num_prompts,
    )
    first = prompts.batch(0, recipe.rollout.prompts_per_update)
    check_lengths(recipe, facts, first)
    check_demonstrations(recipe, tokenizer, spec, prompts)
    with RewardPool(recipe.reward) as rewards:
        rewards.check(first[:2])
    found = Preflight(facts, spec, tokenizer, prompts, tuple(prompts.notes), make_model)
    if not recipe.algorithm.samples_rollouts:
        check_pairs(recipe, found.pairs(recipe, first))
    return found


def check_devices(recipe: Recipe) -> None:
    """Refuse a recipe that wants GPUs of a machine that has none; a joined cluster is checked when it is
    reached.

    Raises:
        ClusterError: more GPUs than there are, or bfloat16 where the device lacks it.
    """
    cluster = recipe.cluster
    if cluster.address is not None:
        return
    trainers, rollouts = cluster.num_trainers, cluster.num_rollout_workers
    need = trainers * cluster.gpus_per_trainer + rollouts * cluster.gpus_per_rollout_worker
    if need:
        import torch

        have = torch.cuda.device_count()
        if need > have:
            raise ClusterError(
                f"the recipe asks for {need:g} GPUs (cluster.num_trainers = {trainers} x gpus_per_trainer = "
                f"{cluster.gpus_per_trainer:g}, num_rollout_workers = {rollouts} x gpus_per_rollout_worker = "
                f"{cluster.gpus_per_rollout_worker:g}) and this machine has {have}.\n"
                "Fix: lower them, set them to 0 to run on CPU, or join a cluster with cluster.address."
            )
        if recipe.trainer.bf16 and not torch.cuda.is_bf16_supported():
            raise ClusterError(
                "trainer.bf16 = true and this GPU has no bfloat16.\nFix: set trainer.bf16=false."
            )


def check_lengths(recipe: Recipe, facts: ModelFacts, prompts: list[Prompt]) -> None:
    """Prompt and canvas must fit the model's positions.

    Raises:
        RecipeError: they do not.
    """
    canvas = recipe.rollout.max_completion_length
    task_longest = max((len(prompt.token_ids) for prompt in prompts), default=0)
    longest = task_longest if recipe.data.task is not None else recipe.data.max_prompt_length
    if longest + canvas > facts.max_length:
        raise RecipeError(
            f"prompts of up to {longest} tokens (data.max_prompt_length) and "
            f"rollout.max_completion_length = {canvas} exceed the model's {facts.max_length} positions.\n"
            f"Fix: lower them to {facts.max_length} together."
        )


def check_demonstrations(recipe: Recipe, tokenizer: Any, spec: DenoiserSpec, prompts: PromptSource) -> None:
    """The warm start's answers must fit the canvas and its prompts the template.

    Raises:
        DataError: they do not.
    """
    if recipe.warm_start is None or recipe.data.task is None:
        return
    demonstrations(
        open_task(recipe.data.task, recipe.run.seed),
        partial(encode, tokenizer),
        eos_id=spec.eos_id,
        completion_length=recipe.rollout.max_completion_length,
        indices=range(recipe.warm_start.batch_size),
        render=prompts.render,
    )


def check_pairs(recipe: Recipe, pairs: list[Pair]) -> None:
    """Some pair of the first update must fit the canvas.

    Raises:
        DataError: none does.
    """
    if not pairs:
        raise DataError(
            f"data.train = {recipe.data.train}: none of the first update's pairs (rollout.prompts_per_update "
            f"= {recipe.rollout.prompts_per_update}) fits rollout.max_completion_length = "
            f"{recipe.rollout.max_completion_length} tokens.\n"
            "Fix: raise rollout.max_completion_length, or set data.overlong: truncate."
        )


def _scratch_model(recipe: Recipe) -> LoadedModel:
    """The tokenizer and the network that `model.init` describes."""
    init = recipe.model.init
    assert init is not None
    if init.tokenizer.type == "char":
        assert recipe.data.task is not None
        tokenizer = build_char_tokenizer(open_task(recipe.data.task, recipe.run.seed).characters)
    else:
        texts = training_texts(recipe.data, recipe.run.seed, held_out=recipe.eval.num_prompts)
        tokenizer = build_bpe_tokenizer(texts, init.tokenizer.vocab_size)
    return create(init, tokenizer, recipe.run.seed)


def _no_model(path: str) -> LoadedModel:
    raise ModelError(f"{path} is a model folder; there is nothing to make from scratch.")
