"""A model of ours as lm-evaluation-harness sees one: log-likelihoods by the ELBO, generation until a string.

    from rl4dlm.commands.lm_eval import open_lm
    lm_eval.simple_evaluate(model=open_lm("my-model"), tasks=["hellaswag", "gsm8k"])

lm_eval comes with the extra `harness`. `HarnessModel` has its interface (`lm_eval.api.model.LM`) and needs
none of it. Where it is installed `open_lm` gives an instance that is an `LM` too, and `harness_class()`
registers the class, so that `lm_eval.simple_evaluate(model="rl4dlm", model_args=...)` works.

A diffusion model has no cheap exact likelihood. `loglikelihood` is an unbiased estimate of the ELBO, a lower
bound; differences between continuations are meaningful only beyond its noise, which falls with `num_states`.
Not covered: few-shot chat formatting beyond the tokenizer's template, and caching of requests.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
import torch

from rl4dlm.decoding import SamplerSpec
from rl4dlm.diffusion.seeds import derive_seed
from rl4dlm.errors import DataError, RecipeError
from rl4dlm.likelihood.elbo import ElboSettings, elbo, plan_corruptions
from rl4dlm.models import LoadedModel, denoiser, encode, load
from rl4dlm.rollout import Engine, Request


class HarnessRequest(Protocol):
    """What lm_eval asks: `args` is (context, continuation), (text,) or (context, generation settings)."""

    args: tuple[Any, ...]


@dataclass(frozen=True)
class HarnessSettings:
    """How the harness's questions are answered.

    Example: `HarnessSettings(num_states=128, length=256)`.
    """

    num_states: int = 128
    """Forwards per log-likelihood: stratified counts of hidden positions (LLaDA, arXiv:2502.09992: 128)."""
    token_budget: int = 16384
    """Tokens per forward at most."""
    check_greedy: bool = True
    """Decode the continuation's length greedily to say whether it is what the model would write; one forward
    per token. False: always said to be not."""
    length: int = 256
    """Tokens of a generation where the task does not say (`max_gen_toks`)."""
    block_length: int = 32
    tokens_per_step: int = 2
    slots: int = 16
    """Generations denoised together."""
    seed: int = 0
    """Root of every draw: the same requests get the same answers."""

    def __post_init__(self) -> None:
        for name in ("num_states", "token_budget", "length", "block_length", "tokens_per_step", "slots"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} = {getattr(self, name)} is not positive.\nFix: use 1 or more.")
        if self.block_length % self.tokens_per_step:
            raise RecipeError(
                f"tokens_per_step = {self.tokens_per_step} does not divide block_length = "
                f"{self.block_length}.\nFix: use a divisor."
            )


class HarnessModel:
    """The three requests of lm_eval, answered by a diffusion language model in this process."""

    def __init__(
        self, model: LoadedModel, settings: HarnessSettings | None = None, *, device: str = "cpu"
    ) -> None:
        """
        Args:
            model: in evaluation mode.
            settings: None: the defaults.
            device: where the model lies.
        """
        super().__init__()
        self._model, self._settings = model, settings or HarnessSettings()
        self._denoiser = denoiser(model, device=device)

    # --- What lm_eval asks of any model beside the requests. ---

    @property
    def tokenizer_name(self) -> str:
        """Names the chat template in lm_eval's cache keys."""
        return str(self._model.source or "from scratch")

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The tokenizer's chat template, empty where it has none or none is wanted."""
        return str(getattr(self._model.tokenizer, "chat_template", None) or "") if chat_template else ""

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Chat messages as the text that the model reads.

        Raises:
            DataError: the tokenizer has no chat template.
        """
        if not getattr(self._model.tokenizer, "chat_template", None):
            raise DataError(
                "lm_eval asks for a chat template, and the tokenizer has none.\n"
                "Fix: evaluate without --apply_chat_template."
            )
        return str(
            self._model.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    # --- The requests. ---

    def loglikelihood(
        self, requests: Sequence[HarnessRequest], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Per (context, continuation): the ELBO estimate of the continuation in nats, and whether it is what
        greedy decoding of its length writes.

        Args:
            disable_tqdm: lm_eval's; there is no bar.

        Raises:
            DataError: a continuation is longer than the model's positions, or has no token to score.
        """
        pairs = [self._token_pair(*request.args) for request in requests]
        return [(self._elbo(*pair), self._is_greedy(*pair)) for pair in pairs]

    def loglikelihood_rolling(
        self, requests: Sequence[HarnessRequest], disable_tqdm: bool = False
    ) -> list[float]:
        """Per (text,): the ELBO estimate of the whole text in nats, cut into windows of the model's length
        that do not see each other; 0 for a text without characters.

        Raises:
            DataError: a text has characters and no token to score.
        """
        totals = []
        for request in requests:
            ids = encode(self._model.tokenizer, request.args[0])
            if request.args[0] and not ids:
                raise _nothing_to_score("text", request.args[0])
            start = self._start()
            size = self._model.spec.max_length - len(start)
            windows = [ids[i : i + size] for i in range(0, len(ids), size)]
            totals.append(sum(self._elbo(start, window) for window in windows))
        return totals

    def generate_until(self, requests: Sequence[HarnessRequest], disable_tqdm: bool = False) -> list[str]:
        """Per (context, settings): the completion up to the first of the strings `until`.

        Of the settings `until`, `max_gen_toks`, `do_sample` and `temperature` are used; sampling is greedy
        unless `do_sample` is true.

        Raises:
            DataError: the completion alone is longer than the model's positions.
            RecipeError: a setting is wrong.
        """
        settings = [_GenerationSettings.read(request.args[1], self._settings) for request in requests]
        answers: dict[int, str] = {}
        for wanted in dict.fromkeys(settings):
            indices = [i for i, own in enumerate(settings) if own == wanted]
            texts = self._generate([str(requests[i].args[0]) for i in indices], indices, wanted)
            answers |= dict(zip(indices, texts, strict=True))
        return [answers[i] for i in range(len(requests))]

    def _generate(
        self, contexts: Sequence[str], indices: Sequence[int], wanted: _GenerationSettings
    ) -> list[str]:
        spec = wanted.sampler(self._settings)
        room = self._room(spec.gen_len)
        asked, seen = [], Counter[str]()
        for index, context in zip(indices, contexts, strict=True):
            ids = encode(self._model.tokenizer, context) or self._start()
            # A context that is asked for again (lm_eval's `repeats`) is another draw.
            seed = derive_seed(self._settings.seed, "generate", context, wanted.max_tokens, seen[context])
            seen[context] += 1
            asked.append(Request(index, 0, seed, ids[max(0, len(ids) - room) :]))
        rollouts = Engine(self._denoiser, spec, self._settings.slots).generate(asked, policy_version=0)
        return [wanted.cut(self._text(rollout, wanted.max_tokens)) for rollout in rollouts]

    def _text(self, rollout: Any, max_tokens: int) -> str:
        ids = rollout.completion_ids[: min(rollout.completion_len, max_tokens)].tolist()
        return str(self._model.tokenizer.decode(ids, skip_special_tokens=True))

    def _token_pair(self, context: str, continuation: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ids of context and continuation.

        They are encoded together, so that no token differs from running text, unless that changes the tokens
        of the context: a token across the border ("wor" + "ld") would hide a part of the continuation from
        the score. Then each is encoded alone.

        Raises:
            DataError: the continuation has no token.
        """
        kept = context.rstrip()
        context, continuation = kept, context[len(kept) :] + continuation if continuation else ""
        first = encode(self._model.tokenizer, context)
        whole = encode(self._model.tokenizer, context + continuation)
        ids = whole[len(first) :] if whole[: len(first)] == first else ()
        ids = ids or encode(self._model.tokenizer, continuation)
        if not ids:
            raise _nothing_to_score("continuation", continuation)
        room = self._room(len(ids))
        first = first or self._start()
        return first[max(0, len(first) - room) :], ids

    def _room(self, completion: int) -> int:
        """Prompt tokens that fit beside a completion."""
        room = self._model.spec.max_length - completion
        if room < 0:
            raise DataError(
                f"a completion of {completion} tokens exceeds the model's {self._model.spec.max_length} "
                "positions.\nFix: lower max_gen_toks, or use a model with more positions."
            )
        return room

    def _start(self) -> tuple[int, ...]:
        """What an empty context stands for: the start-of-text token where there is one."""
        start = self._model.tokenizer.bos_token_id
        return () if start is None else (int(start),)

    @torch.inference_mode()
    def _elbo(self, prompt: Sequence[int], completion: Sequence[int]) -> float:
        """Stratified-count estimate of one completion's ELBO, nats; a function of the ids and the seed."""
        settings = ElboSettings("stratified", self._settings.num_states, 1, "round_half")
        seed = derive_seed(self._settings.seed, "loglikelihood", *prompt, "then", *completion)
        mask: np.ndarray = np.ones((1, len(completion)), dtype=bool)
        plan = plan_corruptions(np.array([seed], dtype=np.int64), mask, 0, settings)
        size = max(1, self._settings.token_budget // (len(prompt) + len(completion)))
        prompt_ids, ids = [np.array(prompt, dtype=np.int64)], np.array([completion], dtype=np.int64)
        parts = [
            elbo(self._denoiser, prompt_ids, ids, plan.take(range(a, min(a + size, settings.num_states))))
            for a in range(0, settings.num_states, size)
        ]
        return float(sum(part.item() for part in parts))

    def _is_greedy(self, prompt: Sequence[int], completion: Sequence[int]) -> bool:
        if not self._settings.check_greedy:
            return False
        length = len(completion)
        spec = SamplerSpec(length, length, length, temperature=0.0, eos_policy="none")
        request = Request(0, 0, 0, tuple(prompt))
        (rollout,) = Engine(self._denoiser, spec, 1).generate([request], policy_version=0)
        return bool((rollout.completion_ids == np.array(completion)).all())


def _nothing_to_score(what: str, text: str) -> DataError:
    """An empty likelihood would be certain, and count as the right answer."""
    return DataError(
        f"lm_eval asks for the likelihood of the {what} {text[:80]!r}, which has no token.\n"
        "Fix: leave the instance out, or correct the task's doc_to_choice or doc_to_target."
    )


@dataclass(frozen=True)
class _GenerationSettings:
    """What one generation request asks for."""

    until: tuple[str, ...]
    max_tokens: int
    temperature: float

    @classmethod
    def read(cls, given: Mapping[str, Any], defaults: HarnessSettings) -> _GenerationSettings:
        until = given.get("until") or ()
        temperature = float(given.get("temperature", 1.0)) if given.get("do_sample") else 0.0
        max_tokens = int(given.get("max_gen_toks", defaults.length))
        if max_tokens < 1:
            raise RecipeError(f"max_gen_toks = {max_tokens} is not positive.\nFix: use 1 or more.")
        if not 0 <= temperature < math.inf:
            raise RecipeError(
                f"temperature = {temperature} is not a number from 0 up.\nFix: use 0 for greedy decoding."
            )
        return cls((until,) if isinstance(until, str) else tuple(until), max_tokens, temperature)

    def sampler(self, settings: HarnessSettings) -> SamplerSpec:
        """A canvas of whole blocks that holds `max_tokens`."""
        block = settings.block_length
        length = -(-self.max_tokens // block) * block
        return SamplerSpec(length, block, length // settings.tokens_per_step, temperature=self.temperature)

    def cut(self, text: str) -> str:
        """The text before the first stop string."""
        ends = [place for stop in self.until if stop and (place := text.find(stop)) >= 0]
        return text[: min(ends)] if ends else text


class FolderModel(HarnessModel):
    """A `HarnessModel` made from text arguments, as lm_eval's `model_args` are.

    Example: `harness_class(); lm_eval.simple_evaluate(model="rl4dlm", model_args="pretrained=my-model")`.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        trust_remote_code: bool = False,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        **settings: Any,
    ) -> None:
        """
        Args:
            pretrained: model folder or hub name.
            dtype: name of a torch dtype.
            batch_size: lm_eval's; a number sets `slots`, `auto` leaves it.
            max_batch_size: lm_eval's upper bound for `auto`; sets `slots` there.
            settings: fields of `HarnessSettings`.

        Raises:
            ModelError: the model cannot be loaded.
            RecipeError: a setting is unknown or wrong.
        """
        known = {field.name for field in fields(HarnessSettings)}
        if unknown := sorted(settings.keys() - known):
            raise RecipeError(
                f"model argument {unknown[0]!r} is not known.\nFix: use {', '.join(sorted(known))}."
            )
        torch_dtype = getattr(torch, dtype, None)
        if not isinstance(torch_dtype, torch.dtype):
            raise RecipeError(f"dtype = {dtype!r} is no torch dtype.\nFix: use float32 or bfloat16.")
        slots = max_batch_size if str(batch_size) == "auto" else batch_size
        if slots is not None and "slots" not in settings:
            settings["slots"] = int(slots)
        loaded = load(pretrained, dtype=torch_dtype, device=device, trust_remote_code=trust_remote_code)
        super().__init__(loaded, HarnessSettings(**settings), device=device)


@functools.cache
def harness_class() -> type[FolderModel]:
    """`FolderModel`; where lm_eval is installed a child that is its `LM` too, registered as `rl4dlm`."""
    if importlib.util.find_spec("lm_eval") is None:
        return FolderModel
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model

    return register_model("rl4dlm")(type("RegisteredModel", (FolderModel, LM), {}))


def open_lm(pretrained: str, **arguments: Any) -> HarnessModel:
    """A model folder or hub name for `lm_eval.simple_evaluate(model=...)`; arguments as of `FolderModel`.

    Raises:
        ModelError: the model cannot be loaded.
        RecipeError: an argument is unknown or wrong.
    """
    return harness_class()(pretrained, **arguments)
