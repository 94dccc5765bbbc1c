"""Everything that can be known before a run starts: model, data and rewards are opened, nothing is
launched."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from rl4dlm.data import (
    EVAL_UID,
    Example,
    ExampleSource,
    PromptSource,
    Reading,
    TextFormat,
    demonstrations,
    open_examples,
    open_prompts,
    open_task,
    preference_pairs,
    training_texts,
)
from rl4dlm.decoding import SamplerSpec
from rl4dlm.errors import ClusterError, DataError, ModelError, RecipeError
from rl4dlm.models import (
    LoadedModel,
    ModelFacts,
    build_bpe_tokenizer,
    build_char_tokenizer,
    create,
    encode,
    inspect,
    load_tokenizer,
    open_policy,
    options_of,
    plan,
    require_quantisable,
    save,
)
from rl4dlm.recipe import AnyRecipe, Recipe, SFTRecipe
from rl4dlm.recipe.advice import sft_warnings_of, warnings_of
from rl4dlm.recipe.objectives import BlockObjective, ObjectiveConfig, default_objective
from rl4dlm.recipe.sections import ModelConfig, RewardConfig, RolloutConfig
from rl4dlm.reward.entries import entries_of
from rl4dlm.reward.pool import RewardPool
from rl4dlm.reward.rollout_scores import NO_VERDICT, decides
from rl4dlm.rollout import check_sampler, sampler_notes
from rl4dlm.rollout.external import find_engine
from rl4dlm.run.folder import RunFolder
from rl4dlm.types import DenoiserSpec, Pair, Prompt

MAX_REFERENCES = 4000
"""Training rows whose references are read before the start."""


@dataclass(frozen=True)
class OpenedModel:
    """What is known of a model before any weight is read."""

    facts: ModelFacts
    spec: DenoiserSpec
    tokenizer: Any
    make_model: Callable[[], LoadedModel]
    """The model from scratch; only for `model.init`."""


@dataclass(frozen=True)
class Checks:
    """What the checks of any run found."""

    model: OpenedModel
    warnings: tuple[str, ...]
    """What the recipe asks for and should not, each with its remedy."""

    @property
    def facts(self) -> ModelFacts:
        return self.model.facts

    @property
    def spec(self) -> DenoiserSpec:
        return self.model.spec

    @property
    def tokenizer(self) -> Any:
        return self.model.tokenizer

    @property
    def make_model(self) -> Callable[[], LoadedModel]:
        return self.model.make_model


@dataclass(frozen=True)
class SFTPreflight(Checks):
    """What the checks found; `finetune` starts from it."""

    objective: ObjectiveConfig
    examples: ExampleSource
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Preflight(Checks):
    """What the checks found; `train` starts from it."""

    prompts: PromptSource
    notes: tuple[str, ...]

    def decode(self, ids: Sequence[int]) -> str:
        """Token ids as text, without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def demonstrations(self, recipe: Recipe, indices: range) -> list[Example]:
        """Demonstrations of the recipe's task, with the canvas of the rollouts; only for a procedural task.

        Raises:
            DataError: an answer does not fit the canvas, or a prompt the template.
        """
        assert recipe.data.task is not None
        return demonstrations(
            open_task(recipe.data.task, recipe.run.seed),
            self.prompts.renderer,
            completion_length=recipe.rollout.max_completion_length,
            indices=indices,
        )

    def pairs(self, recipe: Recipe, prompts: Sequence[Prompt]) -> list[Pair]:
        """The recorded preferences of some rows; see `preference_pairs`.

        Raises:
            DataError: a row cannot be used.
        """
        return preference_pairs(
            prompts,
            self.prompts.renderer,
            eos_id=self.spec.eos_id,
            canvas_length=recipe.rollout.max_completion_length,
            max_prompt_length=recipe.data.max_prompt_length,
            overlong=recipe.data.overlong,
        )


def preflight(recipe: Recipe, *, devices: bool = True) -> Preflight:
    """Check model folder, tokenizer, data, rewards and devices.

    Args:
        devices: whether this machine must have the GPUs that the recipe asks for.

    Raises:
        UserError: with the one thing to fix.
    """
    model = _opened(recipe, devices)
    notes = check_sampling(recipe.rollout, model)
    texts = text_format(recipe.model, model.tokenizer, model.spec)
    prompts = open_prompts(recipe.data, texts, seed=recipe.run.seed, num_eval=recipe.eval.num_prompts)
    first = prompts.batch(0, recipe.rollout.prompts_per_update)
    check_lengths(recipe, model.facts, [len(prompt.token_ids) for prompt in first])
    with RewardPool(recipe.reward) as rewards:
        rewards.check_references(_reference_rows(prompts))
        rewards.check(first[:2], partial(_ids_of, model.tokenizer))
        if recipe.data.over_denoising is not None:
            check_verdicts(recipe.reward, rewards)
    found = Preflight(model, tuple(warnings_of(recipe)), prompts, (*prompts.notes, *notes))
    if recipe.warm_start is not None:
        found.demonstrations(recipe, range(recipe.warm_start.batch_size))
    if not recipe.algorithm.samples_rollouts:
        check_pairs(recipe, found.pairs(recipe, first))
    return found


def _reference_rows(prompts: PromptSource) -> list[tuple[str, Mapping[str, Any]]]:
    """Rows of a dataset whose references are read before the start, in the order of the file; a procedural
    task makes its own."""
    if prompts.num_train is None:
        return []
    train = prompts.batch(0, min(prompts.num_train, MAX_REFERENCES))
    rows = [(f"data.train, row {one.uid}", one.columns) for one in sorted(train, key=lambda one: one.uid)]
    held_out = prompts.eval_prompts()
    return rows + [(f"evaluation, row {one.uid - EVAL_UID}", one.columns) for one in held_out]


def preflight_sft(recipe: SFTRecipe, *, devices: bool = True) -> SFTPreflight:
    """Check model folder, tokenizer, data, objective, rewards and devices of a fine-tuning run.

    Args:
        devices: whether this machine must have the GPUs that the recipe asks for.

    Raises:
        UserError: with the one thing to fix.
    """
    model = _opened(recipe, devices)
    objective = recipe.sft.objective or default_objective(model.spec.attention)
    check_objective(objective, recipe.sft.fill, model)
    reading = Reading(
        texts=text_format(recipe.model, model.tokenizer, model.spec),
        spec=model.spec,
        canvas=recipe.rollout.max_completion_length,
        seed=recipe.run.seed,
        num_eval=recipe.eval.num_prompts,
        traced=objective.type == "trace",
    )
    examples = open_examples(recipe.data, reading)
    first = examples.batch(0, recipe.sft.batch_size)
    check_lengths(recipe, model.facts, [len(example.prompt_ids) for example in first])
    if recipe.reward is not None:
        check_sampling(recipe.rollout, model)
        with RewardPool(recipe.reward) as rewards:
            rewards.check(examples.eval_prompts()[:2], partial(_ids_of, model.tokenizer))
    return SFTPreflight(
        model,
        tuple(sft_warnings_of(recipe, model.spec.attention)),
        objective,
        examples,
        tuple(examples.notes),
    )


def _opened(recipe: AnyRecipe, devices: bool) -> OpenedModel:
    """What any run asks before its data: devices, reward functions by name, the model without its weights."""
    if devices:
        check_devices(recipe)
    require_quantisable(recipe.model.quantization, _weakest_device(recipe))
    if recipe.reward is not None:
        entries_of(recipe.reward)
    return _open_model(recipe)


def check_sampling(rollout: RolloutConfig, model: OpenedModel) -> Sequence[str]:
    """Sampler, cache, policy and engine must fit the model; what to know about the samples.

    Raises:
        RecipeError: they do not.
    """
    sampler = SamplerSpec.from_config(rollout)
    check_sampler(sampler, model.spec)
    check_graphs(rollout, model.facts)
    if rollout.policy:
        open_policy(rollout.policy)
    find_engine(rollout.engine)
    return sampler_notes(sampler)


def text_format(model: ModelConfig, tokenizer: Any, spec: DenoiserSpec) -> TextFormat:
    """How a recipe's texts become what its model reads."""
    return TextFormat(
        tokenizer,
        partial(encode, tokenizer, mask_id=spec.mask_id),
        stop_ids=spec.stop_ids,
        chat_template=model.chat_template,
        template_kwargs=model.chat_template_kwargs,
    )


def starting_model(recipe: AnyRecipe, folder: RunFolder, checks: Checks) -> str:
    """The model folder or hub name that a run starts from; a model from scratch is written into the run."""
    if recipe.model.path is not None:
        local = Path(recipe.model.path)  # workers have working directories of their own
        return str(local.resolve()) if local.exists() else recipe.model.path
    if not folder.initial_model.exists():
        model = checks.make_model()
        save(model, folder.initial_model, model.tokenizer)
    return str(folder.initial_model.resolve())


def _open_model(recipe: AnyRecipe) -> OpenedModel:
    """Tokenizer and facts of the recipe's model."""
    if recipe.model.init is not None:
        tokenizer = _scratch_tokenizer(recipe)
        facts, spec = plan(recipe.model.init, tokenizer, **_scratch_options(recipe))
        return OpenedModel(facts, spec, tokenizer, partial(_make, recipe, tokenizer))
    path = recipe.model.path
    assert path is not None
    facts = inspect(path, **options_of(recipe.model))
    tokenizer, spec = load_tokenizer(path, **options_of(recipe.model))
    return OpenedModel(facts, spec, tokenizer, partial(_no_model, path))


def check_objective(objective: ObjectiveConfig, fill: str, model: OpenedModel) -> None:
    """An objective must train what the model's attention does when it samples.

    Raises:
        RecipeError: it does not.
    """
    spec, family, key = model.spec, model.facts.family, f"sft.objective.type = {objective.type}"
    in_blocks = spec.attention == "block_causal"
    if objective.type in ("random_mask", "semi_ar") and in_blocks:
        raise RecipeError(
            f"{key} is for full attention, and {family} attends in blocks of {spec.block_length}.\n"
            "Fix: set sft.objective.type: block."
        )
    if objective.type == "block" and not in_blocks:
        raise RecipeError(
            f"{key} trains block-causal attention, and {family} attends to the whole sequence when it "
            "samples.\nFix: use random_mask or semi_ar; a converted model attends in blocks with "
            "model.family: a2d and model.block_length."
        )
    if objective.type == "ar" and (in_blocks or not spec.logit_shift):
        reason = "attends in blocks" if in_blocks else "predicts the position itself"
        raise RecipeError(
            f"{key} needs a model with full attention whose output at a position predicts the next one, and "
            f"{family}'s {reason}.\n"
            "Fix: use random_mask, or for a model that attends in blocks, block with growth: [1, ...]."
        )
    if isinstance(objective, BlockObjective):
        last = objective.growth[-1] if objective.growth else objective.block_length
        if last not in (None, spec.block_length):
            raise RecipeError(
                f"sft.objective ends with blocks of {last} tokens, and the model samples in blocks of "
                f"{spec.block_length} (block_size in its config.json, or model.block_length).\n"
                "Fix: make them equal."
            )
    if fill == "block" and not in_blocks:
        raise RecipeError(f"sft.fill = block needs blocks, and {family} has none.\nFix: use canvas.")


def check_devices(recipe: AnyRecipe) -> None:
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


def _weakest_device(recipe: AnyRecipe) -> str:
    """`cpu` where a trainer or a rollout worker is on one."""
    cluster = recipe.cluster
    return "cuda" if cluster.gpus_per_trainer and cluster.gpus_per_rollout_worker else "cpu"


def _ids_of(tokenizer: Any, text: str) -> list[int]:
    """Token ids of any text for trying rewards, also of one that the tokenizer cannot represent whole."""
    return list(tokenizer.encode(text, add_special_tokens=False))


def check_verdicts(config: RewardConfig, rewards: RewardPool) -> None:
    """The over-denoising filter asks which answers are correct; the recipe must say so.

    Raises:
        RecipeError: it does not.
    """
    if not decides(config, [entry.name for entry in rewards.entries], rewards.bounds()):
        raise RecipeError(f"data.over_denoising: {NO_VERDICT}")


def check_graphs(rollout: RolloutConfig, facts: ModelFacts) -> None:
    """Refuse to record layers whose kernels depend on the tokens.

    Raises:
        RecipeError: the model has experts.
    """
    if rollout.cuda_graphs and facts.num_experts:
        raise RecipeError(
            f"rollout.cuda_graphs = true: which of the {facts.num_experts} experts of {facts.family} run "
            "depends on the tokens, and a recording cannot choose.\nFix: set rollout.cuda_graphs=false."
        )


def check_lengths(recipe: AnyRecipe, facts: ModelFacts, prompt_lengths: list[int]) -> None:
    """Prompt and canvas must fit the model's positions.

    Raises:
        RecipeError: they do not.
    """
    canvas = recipe.rollout.max_completion_length
    task_longest = max(prompt_lengths, default=0)
    longest = task_longest if recipe.data.task is not None else recipe.data.max_prompt_length
    if longest + canvas > facts.max_length:
        raise RecipeError(
            f"prompts of up to {longest} tokens (data.max_prompt_length) and "
            f"rollout.max_completion_length = {canvas} exceed the model's {facts.max_length} positions.\n"
            f"Fix: lower them to {facts.max_length} together."
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


def scratch_model(recipe: AnyRecipe) -> LoadedModel:
    """The tokenizer and the network that `model.init` describes; only for a recipe that has it."""
    return _make(recipe, _scratch_tokenizer(recipe))


def _make(recipe: AnyRecipe, tokenizer: PreTrainedTokenizerBase) -> LoadedModel:
    assert recipe.model.init is not None
    return create(recipe.model.init, tokenizer, recipe.run.seed, **_scratch_options(recipe))


def _scratch_options(recipe: AnyRecipe) -> dict[str, Any]:
    family = "llada" if recipe.model.family == "auto" else recipe.model.family
    return {
        "family": family,
        "block_length": recipe.model.block_length,
        "logit_shift": recipe.model.logit_shift,
    }


def _scratch_tokenizer(recipe: AnyRecipe) -> PreTrainedTokenizerBase:
    init = recipe.model.init
    assert init is not None
    if init.tokenizer.type == "char":
        assert recipe.data.task is not None
        return build_char_tokenizer(open_task(recipe.data.task, recipe.run.seed).characters)
    texts = training_texts(recipe.data, recipe.run.seed, held_out=recipe.eval.num_prompts)
    return build_bpe_tokenizer(texts, init.tokenizer.vocab_size)


def _no_model(path: str) -> LoadedModel:
    raise ModelError(f"{path} is a model folder; there is nothing to make from scratch.")
