"""The loop in one process, without Ray and DeepSpeed: the same stages by the same code, nothing distributed.

What a distributed run must equal up to rounding, and what comparisons of methods run. It keeps no checkpoints
and survives nothing; `train.py` does.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from rl4dlm.data import demonstrations, open_task
from rl4dlm.decoding import SamplerSpec
from rl4dlm.diffusion.seeds import derive_seed
from rl4dlm.errors import RecipeError
from rl4dlm.learner.critic import Critic
from rl4dlm.learner.learning_rate import learning_rate, warm_start_rate
from rl4dlm.learner.supervised import RankSFT
from rl4dlm.learner.update import RankUpdate
from rl4dlm.loops.rollouts import requests_of
from rl4dlm.loss.reduce import finish_metrics, merge_metrics
from rl4dlm.loss.value import with_explained_variance
from rl4dlm.models import LoadedModel, ValueModel, denoiser, encode, load
from rl4dlm.models.loading import options_of
from rl4dlm.recipe import Recipe
from rl4dlm.recipe.sections import TrainerConfig
from rl4dlm.reward.judge import NO_VERDICT, Scorer, is_correct, score_groups, score_steps, trainer_state
from rl4dlm.rollout import Engine, Request
from rl4dlm.rollout.groups import group_rollouts, make_requests
from rl4dlm.run.preflight import Preflight
from rl4dlm.trainers import make_trainer, setting_of
from rl4dlm.trainers.base import Metrics
from rl4dlm.trainers.sft import sft_batch
from rl4dlm.trainers.sft_steps import warm_start_plan
from rl4dlm.trainers.trace_value import TraceValue
from rl4dlm.types import Denoiser, Rollout, RolloutGroup
from rl4dlm.workers.engine import mix_reference


class PlainEngine:
    """DeepSpeed's interface over a module and AdamW; gradients accumulate until `step`."""

    def __init__(
        self, module: torch.nn.Module, trainer: TrainerConfig, weight_decay: float | None = None
    ) -> None:
        self.module, self._clip, self._norm = module, trainer.max_grad_norm, 0.0
        decay = trainer.weight_decay if weight_decay is None else weight_decay
        matrices = [p for p in module.parameters() if p.requires_grad and p.ndim > 1]
        vectors = [p for p in module.parameters() if p.requires_grad and p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=trainer.learning_rate,
            betas=trainer.adam_betas,
            eps=trainer.adam_epsilon,
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def train(self) -> None:
        self.module.train()

    def eval(self) -> None:
        self.module.eval()

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        self._norm = float(torch.nn.utils.clip_grad_norm_(parameters, self._clip))
        self.optimizer.step()
        self.optimizer.zero_grad()

    def get_global_grad_norm(self) -> float:
        return self._norm

    def set_learning_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate


class PlainRun:
    """A recipe's run in this process, on the CPU.

    Example: `run = PlainRun(recipe, checks, "runs/x/warm_start", pool)`; then `run.step(1)`, `run.step(2)`.
    Not covered: LoRA, recorded pairs, filtered prompts, `unmasking_policy`, checkpoints.
    """

    def __init__(self, recipe: Recipe, checks: Preflight, model_path: str, rewards: Scorer) -> None:
        """
        Args:
            recipe: its cluster section is not read.
            checks: of the recipe.
            model_path: folder of the weights to start from.
            rewards: scores completions, e.g. a `RewardPool`.
        """
        self.recipe, self.checks, self.rewards = recipe, checks, rewards
        self._model_path = model_path
        loaded = self._load()
        self.engine = PlainEngine(loaded.module, recipe.trainer)
        self.denoiser = denoiser(loaded, model=self.engine)
        self.trainer = make_trainer(recipe, loaded.spec)
        reference = denoiser(self._load()) if self.trainer.needs_reference else None
        self._update = self._rank_update(self.engine, self.denoiser, self.trainer, reference)
        self._critic = self._make_critic(loaded)
        self.version = 0

    def step(self, update: int) -> Metrics:
        """Update 1, 2, ...: sample, score, prepare, learn."""
        began = time.monotonic()
        groups = self._sample(update)
        state = trainer_state(update - 1, self.recipe.trainer.max_steps)
        scores = score_groups(self.rewards, groups, state)
        step_rewards = self._step_rewards(groups, state)
        seed = derive_seed(self.recipe.run.seed, "update", update)
        batch, metrics = self.trainer.prepare(
            groups, scores, policy_version=self.version, seed=seed, step_rewards=step_rewards
        )
        if batch is not None:
            metrics |= self._learn(batch, update)
            self._sync_reference(update)
        self.version = update
        correct = is_correct(scores, self.recipe.reward)
        if correct is not None:
            metrics["accuracy"] = float(correct.mean())
        return metrics | {"step_time": time.monotonic() - began}

    def evaluate(self) -> float:
        """Greedy accuracy on the held-out prompts, with the recipe's sampler.

        Raises:
            RecipeError: the recipe does not say what is correct.
        """
        prompts = self.checks.prompts.eval_prompts(self.recipe.eval.num_prompts)
        requests = make_requests(prompts, 1, self.recipe.run.seed, "evaluation")
        spec = SamplerSpec.from_config(self.recipe.rollout, temperature=0.0)
        groups = group_rollouts(prompts, self._generate(requests, spec))
        state = trainer_state(self.version, self.recipe.trainer.max_steps)
        correct = is_correct(score_groups(self.rewards, groups, state), self.recipe.reward)
        if correct is None:
            raise RecipeError(NO_VERDICT)
        return float(correct.mean())

    def _sample(self, update: int) -> list[RolloutGroup]:
        prompts = self.checks.prompts.batch(update - 1, self.recipe.rollout.prompts_per_update)
        requests, spec = requests_of(self.recipe, self.trainer, prompts, update)
        return group_rollouts(prompts, self._generate(requests, spec))

    def _generate(self, requests: Sequence[Request], spec: SamplerSpec) -> list[Rollout]:
        self.engine.eval()
        engine = Engine(self.denoiser, spec, self.recipe.rollout.slots)
        return engine.generate(requests, policy_version=self.version, decode=self.checks.decode)

    def _step_rewards(self, groups: list[RolloutGroup], state: Mapping[str, int]) -> list[np.ndarray] | None:
        if not self.trainer.scores_steps:
            return None
        decodes = self.trainer.partial_decodes(groups)
        stop_ids = self.checks.spec.stop_ids
        return score_steps(self.rewards, groups, decodes, self.checks.decode, stop_ids, state)[0]

    def _learn(self, batch: Any, update: int) -> Metrics:
        rate = learning_rate(self.recipe.trainer, update)
        self.engine.set_learning_rate(rate)
        parts: list[Mapping[str, float]] = []
        if self._critic is not None:
            value = self._critic.method.value
            self._critic.update.engine.set_learning_rate(
                value.learning_rate * rate / self.recipe.trainer.learning_rate
            )
            batch, judged = self._critic.run(batch)
            parts.append(judged)
            if update <= value.warmup_updates:
                return with_explained_variance(finish_metrics(judged))
        parts.append(self._update.run(batch))
        return with_explained_variance(finish_metrics(merge_metrics(parts)))

    def _sync_reference(self, update: int) -> None:
        """Move the reference towards the policy where it is time to."""
        algorithm, frozen = self.recipe.algorithm, self._update.reference
        if frozen is not None and algorithm.syncs_reference_at(update):
            mix_reference(self.engine, frozen.model, 0, algorithm.ref_model_mixup_alpha)

    def _load(self) -> LoadedModel:
        return load(self._model_path, **options_of(self.recipe.model))

    def _make_critic(self, loaded: LoadedModel) -> Critic | None:
        value = getattr(self.recipe.algorithm, "value", None)
        if value is None:
            return None
        engine = PlainEngine(ValueModel(self._load().module), self.recipe.trainer)
        method = TraceValue(self.recipe.algorithm, value, setting_of(self.recipe, loaded.spec))
        update = self._rank_update(engine, Denoiser(engine, loaded.spec), method, None)
        return Critic(update, method, lambda values: values)

    def _rank_update(
        self, engine: PlainEngine, model: Denoiser, trainer: Any, reference: Denoiser | None
    ) -> RankUpdate:
        return RankUpdate(
            engine=engine,
            denoiser=model,
            trainer=trainer,
            rank=0,
            world_size=1,
            token_budget=self.recipe.trainer.micro_batch_tokens,
            num_minibatches=self.recipe.trainer.num_minibatches,
            reference=reference,
        )


def warm_started(recipe: Recipe, checks: Preflight) -> LoadedModel:
    """The recipe's model from scratch after its warm start, by the code of the distributed run.

    Raises:
        ValueError: the recipe has no warm start.
    """
    settings = recipe.warm_start
    if settings is None or recipe.data.task is None:
        raise ValueError("the recipe has no warm start")
    loaded = checks.make_model()
    engine = PlainEngine(loaded.module, recipe.trainer, settings.weight_decay)
    rank = RankSFT(engine, denoiser(loaded, model=engine), 0, 1, recipe.trainer.micro_batch_tokens)
    task, plan = open_task(recipe.data.task, recipe.run.seed), warm_start_plan(recipe.rollout, loaded.spec)
    for step in range(settings.steps):
        examples = demonstrations(
            task,
            partial(encode, loaded.tokenizer),
            completion_length=recipe.rollout.max_completion_length,
            indices=range(step * settings.batch_size, (step + 1) * settings.batch_size),
            render=checks.prompts.render,
        )
        engine.set_learning_rate(warm_start_rate(settings, step))
        rank.step(sft_batch(examples, plan, loaded.spec, derive_seed(recipe.run.seed, "warm_start", step)))
    loaded.module.eval()
    return loaded
