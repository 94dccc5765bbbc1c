"""A converted model with shifted logits: with blocks of one token it is the autoregressive model that it was
made of, and with longer ones sampler, doubled layout and value model agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ar_toys import KINDS, TOKENS, write_parent
from torch import Tensor
from transformers import AutoModelForCausalLM

from rl4dlm import models
from rl4dlm.data import Example
from rl4dlm.decoding import SamplerSpec
from rl4dlm.likelihood.states import States, state_logp, state_values
from rl4dlm.recipe.objectives import BlockObjective
from rl4dlm.rollout import Engine, Request
from rl4dlm.trainers.sft import SFTPlan, row_nll, sft_batch
from rl4dlm.types import Denoiser, Rollout

PROMPTS = [[3], [1, 4], [1, 5, 9], [2, 6, 5, 3], [5, 8, 9, 7, 9]]
COMPLETIONS = np.random.default_rng(0).integers(0, 11, (5, 8))


@pytest.fixture(scope="module", params=[(kind, tied) for kind in KINDS for tied in (True, False)], ids=str)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind, tied = request.param
    return write_parent(tmp_path_factory.mktemp(kind) / "parent", kind, tied=tied)


def converted(folder: Path, block_length: int, **options: Any) -> Denoiser:
    return models.denoiser(models.load(folder, family="a2d", block_length=block_length, **options))


def parent_logp(parent: Any, prompt: list[int], completion: list[int]) -> Tensor:
    """log p of each completion token by transformers' own class, `[completion]`."""
    logits = parent(torch.tensor([[*prompt, *completion]])).logits[0].log_softmax(-1)
    return logits[len(prompt) - 1 : -1].gather(1, torch.tensor(completion)[:, None])[:, 0]


def states_of(is_masked: Tensor) -> States:
    """One state a row; everything hidden is scored."""
    row = torch.arange(len(is_masked))
    return States(row, torch.zeros_like(row), is_masked, is_masked, torch.ones(is_masked.shape).double())


def prompts(rows: list[list[int]]) -> list[np.ndarray]:
    return [np.array(row, np.int32) for row in rows]


# --- Blocks of one token ---


def test_log_probabilities_with_blocks_of_one_token_are_the_parents(folder):
    parent = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        hidden = states_of(torch.ones(COMPLETIONS.shape, dtype=torch.bool))
        ours = state_logp(converted(folder, 1), prompts(PROMPTS), COMPLETIONS, hidden)
        theirs = [parent_logp(parent, p, c.tolist()) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    torch.testing.assert_close(ours, torch.stack(theirs), rtol=0, atol=1e-5)


def test_the_plain_forward_with_blocks_of_one_token_gives_the_parents_logits_one_place_on(folder):
    parent = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.from_numpy(COMPLETIONS)
    with torch.no_grad():
        ours, theirs = converted(folder, 1).model(ids), parent(ids).logits
    torch.testing.assert_close(ours[:, 1:, :TOKENS], theirs[:, :-1], rtol=0, atol=1e-5)


def test_sft_loss_and_gradient_with_blocks_of_one_token_are_next_token_predictions(folder):
    parent = AutoModelForCausalLM.from_pretrained(folder).eval()
    model = converted(folder, 1)
    rows = [
        Example(i, np.array(p, np.int32), np.array(c[: 3 + i], np.int32), ended=False)
        for i, (p, c) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True))
    ]
    batch = sft_batch(rows, SFTPlan(BlockObjective(), "none", canvas=8, block_length=1), model.spec, 0)
    ours = row_nll(model, batch, range(5))
    theirs = []
    for row in rows:
        ids = torch.tensor([[*row.prompt_ids.tolist(), *row.completion_ids.tolist()]])
        labels = ids.clone()
        labels[:, : len(row.prompt_ids)] = -100
        theirs.append(parent(ids, labels=labels).loss * len(row.completion_ids))
    torch.testing.assert_close(ours, torch.stack(theirs), rtol=0, atol=5e-5)
    ours.sum().backward()
    torch.stack(theirs).sum().backward()
    named = dict(model.model.named_parameters())
    for name, parameter in parent.named_parameters():
        ours_of = named[name].grad[: len(parameter)]
        torch.testing.assert_close(ours_of, parameter.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cache", ["none", "block"])
def test_greedy_text_with_blocks_of_one_token_is_the_parents(folder, cache):
    parent = AutoModelForCausalLM.from_pretrained(folder).eval()
    drawn = sample(converted(folder, 1), 12, 1, temperature=0.0, cache=cache)
    for prompt, rollout in zip(PROMPTS, drawn, strict=True):
        ids = list(prompt)
        for _ in range(12):
            with torch.no_grad():
                ids.append(int(parent(torch.tensor([ids])).logits[0, -1].argmax()))
        assert rollout.completion_ids.tolist() == ids[len(prompt) :]


def sample(model: Denoiser, length: int, block_length: int, **settings: Any) -> list[Rollout]:
    spec = SamplerSpec(
        length, block_length, length, remasking="top_probability", eos_policy="none", **settings
    )
    requests = [Request(i, 0, 100 + i, tuple(prompt)) for i, prompt in enumerate(PROMPTS)]
    return Engine(model, spec, 3).generate(requests, policy_version=0)


# --- Longer blocks ---


def step_by_step(
    model: Denoiser, prompt: list[int], completion: list[int], hidden: list[bool], block_length: int
) -> Tensor:
    """log p of hidden tokens, a forward per block on what is before it and the block itself."""
    values = torch.zeros(len(completion))
    clean, start = [*prompt, *completion], len(prompt)
    noisy = [
        *prompt,
        *(model.spec.mask_id if h else token for token, h in zip(completion, hidden, strict=True)),
    ]
    for block in range(start // block_length, (len(clean) - 1) // block_length + 1):
        first, end = block * block_length, min((block + 1) * block_length, len(clean))
        logp = model.model(torch.tensor([[*clean[:first], *noisy[first:end]]]))[0].log_softmax(-1)
        for place in range(max(first, start), end):
            if hidden[place - start]:
                values[place - start] = logp[place, clean[place]]
    return values


@pytest.mark.parametrize("block_length", [1, 2, 4])
def test_the_doubled_layout_gives_what_forwards_block_by_block_give(folder, block_length):
    model = converted(folder, block_length)
    rows = [[], *PROMPTS[:4]] if block_length > 1 else PROMPTS
    hidden = torch.rand(COMPLETIONS.shape, generator=torch.Generator().manual_seed(3)) < 0.7
    with torch.no_grad():
        ours = state_logp(model, prompts(rows), COMPLETIONS, states_of(hidden))
        theirs = [
            step_by_step(model, p, c.tolist(), h.tolist(), block_length)
            for p, c, h in zip(rows, COMPLETIONS, hidden, strict=True)
        ]
    torch.testing.assert_close(ours, torch.stack(theirs), rtol=0, atol=1e-5)


@pytest.mark.parametrize("cache", ["none", "block"])
@pytest.mark.parametrize("block_length", [1, 2, 4])
def test_the_trainer_gives_a_sampled_token_the_probability_that_the_sampler_did(folder, block_length, cache):
    model = converted(folder, block_length)
    for prompt, rollout in zip(PROMPTS, sample(model, 8, block_length, cache=cache), strict=True):
        step = torch.from_numpy(rollout.trace.step_map).long()
        number = torch.arange(int(step.max()) + 1)
        states = States(
            row=torch.zeros_like(number),
            number=number,
            is_masked=step >= number[:, None],
            target=step == number[:, None],
            weight=torch.ones(len(number), len(step)).double(),
        )
        with torch.no_grad():
            ours = state_logp(model, prompts([prompt]), rollout.completion_ids[None], states).sum(0)
        drawn = torch.from_numpy(rollout.trace.rollout_logp)
        torch.testing.assert_close(ours, drawn.to(ours.dtype), rtol=0, atol=1e-5)


@pytest.mark.parametrize("block_length", [2, 4])
def test_cache_and_drafts_change_no_sample(folder, block_length):
    model = converted(folder, block_length)
    plain = sample(model, 8, block_length)
    for settings in ({"cache": "block"}, {"draft_steps": 3}):
        for one, other in zip(plain, sample(model, 8, block_length, **settings), strict=True):
            assert one.completion_ids.tolist() == other.completion_ids.tolist()


def test_values_of_the_doubled_layout_are_those_of_forwards_block_by_block(folder):
    loaded = models.load(folder, family="a2d", block_length=4)
    value = models.ValueModel(loaded.module)
    torch.nn.init.normal_(value.head.weight, generator=torch.Generator().manual_seed(1))
    model = Denoiser(value, loaded.spec)
    hidden = torch.ones(1, 8, dtype=torch.bool)
    mask = loaded.spec.mask_id
    with torch.no_grad():
        found = state_values(model, prompts([[1, 4]]), COMPLETIONS[:1], states_of(hidden))[0]
        clean = COMPLETIONS[0].tolist()
        one = value(torch.tensor([[1, 4, mask, mask]]))[0, 2:]
        two = value(torch.tensor([[1, 4, *clean[:2], *[mask] * 4]]))[0, 4:]
    torch.testing.assert_close(found[:6], torch.cat((one, two)), rtol=0, atol=1e-5)
