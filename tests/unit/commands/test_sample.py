"""`rl4dlm sample` opens the model and renders the prompt as a recipe or `--set` says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from rl4dlm.commands.sample import sample_model
from rl4dlm.errors import UserError

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from ar_toys import EOS, tokenizer_without_mask, write_parent  # noqa: E402

TEMPLATE = "{% for message in messages %}{{ message['content'] }}={% endfor %}"
SAMPLER = [
    "temperature=0",
    "max_completion_length=6",
    "diffusion_steps=6",
    "block_length=1",
    "eos_policy=none",
]
AS_BLOCKS = ["model.family=a2d", "model.block_length=1"]


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    folder = write_parent(tmp_path / "parent", "llama")
    tokenizer = tokenizer_without_mask()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def parents_text(folder: Path, text: str) -> str:
    """What transformers' own class writes after a text, greedily."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), tokenizer_without_mask()
    ids = tokenizer(text).input_ids
    start = len(ids)
    for _ in range(6):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    written = ids[start:]
    end = written.index(EOS) if EOS in written else len(written)
    return str(tokenizer.decode(written[:end], skip_special_tokens=True))


def test_an_autoregressive_folder_is_sampled_as_a_diffusion_model(parent, capsys):
    with pytest.raises(UserError, match="set model.family=a2d"):
        sample_model(str(parent), "86", None, SAMPLER, 1, 0)
    sample_model(str(parent), "86", None, [*SAMPLER, *AS_BLOCKS], 1, 0)
    assert capsys.readouterr().out.strip() == parents_text(parent, "86=")


def test_the_prompt_is_rendered_with_the_recipes_system_prompt_and_template(parent, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    keys = dict(setting.split("=") for setting in SAMPLER)
    sections = {
        "model": {"path": str(parent), "family": "a2d", "block_length": 1},
        "data": {"task": {"name": "sort"}, "system_prompt": "97", "prompt_template": "5{prompt}8"},
        "rollout": keys,
        "reward": {"functions": ["sort"]},
        "algorithm": {"type": "gdpo"},
    }
    recipe.write_text(json.dumps(sections))
    sample_model(str(parent), "86", str(recipe), [], 1, 0)
    rendered = capsys.readouterr().out.strip()
    assert rendered == parents_text(parent, "97=5868=") != parents_text(parent, "86=")
    sample_model(str(parent), "86", str(recipe), ["data.system_prompt='24'"], 1, 0)
    assert capsys.readouterr().out.strip() == parents_text(parent, "24=5868=")


def test_a_setting_of_the_model_that_contradicts_its_folder_is_refused(parent):
    with pytest.raises(UserError, match="logit_shift"):
        sample_model(str(parent), "86", None, [*SAMPLER, *AS_BLOCKS, "model.logit_shift=2"], 1, 0)
