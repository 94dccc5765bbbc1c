"""The reward model on a tiny random checkpoint: batching, settings, hostile text, the pool."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForSequenceClassification,
)

from rl4dlm.errors import PluginError
from rl4dlm.recipe import shipped_folder
from rl4dlm.recipe.sections import RewardConfig, RewardFunction
from rl4dlm.reward.batch import Scorable
from rl4dlm.reward.pool import RewardPool
from rl4dlm.reward.selftest import HOSTILE
from rl4dlm.types import Prompt

CHARACTERS = [chr(code) for code in range(32, 127)] + ["\n"]
TEXTS = ["good", "a much longer completion of many words", "b", "good answer\nover two lines"]


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "shipped_reward_model", shipped_folder("reward_fns") / "reward_model.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ids_of(text: str) -> torch.Tensor:
    return torch.tensor([[2 + CHARACTERS.index(symbol) for symbol in text]])


def save(folder: Path, num_labels: int = 1, chat_template: str | None = None, pads: str = "pad_token") -> str:
    """A random BERT whose tokens are characters; `pads` names the role of the token for padding."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    vocabulary = {token: index for index, token in enumerate(["[PAD]", "[UNK]", *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", **{pads: "[PAD]"})
    fast.chat_template = chat_template
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=128,
        num_labels=num_labels,
        initializer_range=0.5,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("reward_model"))


def test_scores_do_not_depend_on_the_batch_and_lie_between_zero_and_one(checkpoint):
    module = load()
    alone = [module.reward_model(["p"], [text], model=checkpoint, max_length=64)[0] for text in TEXTS]
    for batch_size in (1, 3, 8):
        together = module.reward_model(
            ["p"] * 4, TEXTS, model=checkpoint, max_length=64, batch_size=batch_size
        )
        assert together == pytest.approx(alone, abs=1e-6)
    assert len(set(alone)) == 4 and all(0 < score < 1 for score in alone)


def test_without_squashing_it_is_the_logit(checkpoint):
    module = load()
    (logit,) = module.reward_model(["p"], ["good"], model=checkpoint, max_length=64, squash=False)
    (score,) = module.reward_model(["p"], ["good"], model=checkpoint, max_length=64)
    assert score == pytest.approx(torch.tensor(logit).sigmoid().item(), abs=1e-6)


def test_the_model_reads_prompt_and_completion(checkpoint):
    module = load()
    (score,) = module.reward_model(["p"], ["good"], model=checkpoint, max_length=64, squash=False)
    (other,) = module.reward_model(["q"], ["good"], model=checkpoint, max_length=64, squash=False)
    network = BertForSequenceClassification.from_pretrained(checkpoint).eval()
    assert score == pytest.approx(network(ids_of("p\ngood")).logits.item(), abs=1e-5) and score != other


def test_a_chat_template_is_used_where_there_is_one(tmp_path):
    folder = save(
        tmp_path, chat_template="{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}"
    )
    module = load()
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "p"}]
    message = [{"role": "assistant", "content": "x"}]
    (score,) = module.reward_model([chat], [message], model=folder, max_length=64, squash=False)
    network = BertForSequenceClassification.from_pretrained(folder).eval()
    assert score == pytest.approx(network(ids_of("s:s;u:p;a:x;")).logits.item(), abs=1e-5)


def test_a_causal_model_without_a_padding_token_reads_the_last_token_of_each_row(tmp_path):
    folder, module = save(tmp_path, pads="eos_token"), load()
    config = Qwen3Config(
        vocab_size=98,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        num_labels=1,
        initializer_range=0.5,
    )
    network = Qwen3ForSequenceClassification(config).eval()
    network.save_pretrained(folder)
    scores = module.reward_model(["p"] * 4, TEXTS, model=folder, max_length=64, squash=False)
    for score, text in zip(scores, TEXTS, strict=True):
        last = network.score(network.model(ids_of(f"p\n{text}")).last_hidden_state)[0, -1, 0].item()
        assert score == pytest.approx(last, abs=1e-4)


def test_of_several_logits_one_must_be_named(tmp_path):
    folder, module = save(tmp_path, num_labels=3), load()
    with pytest.raises(ValueError, match="has 3 logits: set label"):
        module.reward_model(["p"], ["x"], model=folder, max_length=64)
    with pytest.raises(ValueError, match="label = 3, but the model has 3 logits"):
        module.reward_model(["p"], ["x"], model=folder, max_length=64, label=3)
    first, second = (
        module.reward_model(["p"], ["x"], model=folder, max_length=64, label=label, squash=False)
        for label in (0, 1)
    )
    assert first != second


def test_hostile_text_gets_a_finite_score_and_blank_text_none_of_the_marks(checkpoint):
    scores = load().reward_model(
        ["p"] * len(HOSTILE), list(HOSTILE.values()), model=checkpoint, max_length=64
    )
    assert all(0.0 <= score < 1.0 for score in scores)
    assert scores[list(HOSTILE).index("empty")] == scores[list(HOSTILE).index("blank")] == 0.0


@pytest.mark.slow
def test_a_run_loads_the_model_once_and_refuses_a_missing_one(checkpoint):
    missing = RewardFunction(path="reward_model", kwargs={"model": "not/here"})
    with RewardPool(RewardConfig(functions=[missing])) as rewards:
        with pytest.raises(PluginError, match=r"(?s)cannot be prepared: .*'not/here' is no folder.*Fix:"):
            rewards.check([Prompt(0, "p", "p", ())])
    function = RewardFunction(path="reward_model", kwargs={"model": checkpoint, "max_length": 64})
    # Importing torch takes longer than a score may: it belongs to loading.
    with RewardPool(RewardConfig(functions=[function], timeout_s=2.0)) as rewards:
        assert rewards.check([Prompt(0, "p", "p", ())]) == {"reward_model": [0.0]}
        scores = rewards.score([[Scorable("p", text) for text in TEXTS]])
    expected = load().reward_model(["p"] * 4, TEXTS, model=checkpoint, max_length=64)
    assert scores.reward.tolist() == pytest.approx(expected, abs=1e-6)
