"""Model folders and settings of every family that cannot be used, through the command line: one message, exit
status 2, nothing started."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rl4dlm import cli
from rl4dlm.models import LoadedModel, build_bpe_tokenizer, build_char_tokenizer, create, save
from rl4dlm.recipe.sections import ModelInit

SIZES = ModelInit(d_model=16, n_layers=2, n_heads=2, mlp_hidden_size=16, max_sequence_length=64)
USE_MODEL = ["model.init=null", "warm_start=null", "model.path=model", "rollout.block_length=4"]
BOTH = pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["train", "dry-run"])


@pytest.fixture(scope="module")
def sdar() -> LoadedModel:
    return create(SIZES, build_char_tokenizer("0123456789="), 0, family="sdar", block_length=4)


@pytest.fixture
def model(sdar: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An SDAR in three shards, which the recipe reaches as `model`."""
    monkeypatch.chdir(tmp_path)
    return save(sdar, tmp_path / "model", sdar.tokenizer, max_shard_bytes=7_000)


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Runs `rl4dlm ARGUMENTS` and checks the refusal; `told` are parts of the message."""

    def run(*arguments: str, told: list[str]) -> None:
        before = sorted(Path.cwd().rglob("*"))
        monkeypatch.setattr(sys, "argv", ["rl4dlm", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        message = capfd.readouterr().err
        assert stop.value.code == 2, message
        assert message.count("rl4dlm: ") == 1 and "Traceback" not in message
        assert [part for part in told if part not in message] == [], message
        assert sorted(Path.cwd().rglob("*")) == before

    return run


def edit(file: Path, **changes: object) -> None:
    data = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in {**data, **changes}.items() if v is not ...}))


def cut_second_shard(model: Path) -> None:
    shard = sorted(model.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-3])


DAMAGES = {
    "unknown family": (
        lambda m: edit(m / "config.json", model_type="gpt_neo"),
        ["config.json: model_type = 'gpt_neo' is not a family", "dream", "Fix: use a checkpoint"],
    ),
    "autoregressive": (
        lambda m: edit(m / "config.json", model_type="qwen3"),
        ["is an autoregressive model", "Fix: set model.family=a2d"],
    ),
    "wrong mask id": (
        lambda m: edit(m / "config.json", mask_token_id=3),
        [
            "mask_token_id = 3 in config.json",
            "the tokenizer gives <|mdm_mask|> the id 13",
            "Fix: use the tok",
        ],
    ),
    "small vocabulary": (
        lambda m: edit(m / "config.json", vocab_size=13),
        ["mask_token_id = 13 lies beyond the 13 rows", "Fix: use a SDAR or TraDo checkpoint"],
    ),
    "truncated shard": (
        cut_second_shard,
        ["model-00002-of-", "is truncated or damaged", "Fix: download or save this file again"],
    ),
    "missing shard": (
        lambda m: sorted(m.glob("*.safetensors"))[2].unlink(),
        ["is missing, but model.safetensors.index.json names it", "Fix: download this shard"],
    ),
    "no block length": (
        lambda m: edit(m / "config.json", block_size=...),
        ["config.json: required key 'block_size' is missing", "Fix: set model.block_length"],
    ),
    "layers beyond reason": (
        lambda m: edit(m / "config.json", num_hidden_layers=10**9),
        ["num_hidden_layers = 1000000000 is more than the 1,024", "Fix: use a SDAR or TraDo checkpoint"],
    ),
    "width beyond reason": (
        lambda m: edit(m / "config.json", hidden_size=10**12),
        ["hidden_size = 1000000000000 is more than the 131,072", "Fix: use a SDAR or TraDo checkpoint"],
    ),
    "quantised": (
        lambda m: edit(m / "config.json", quantization_config={"quant_method": "awq", "bits": 4}),
        ["quantization_config = ", "is not supported: this implementation needs None", "Fix: use a SDAR"],
    ),
    "unknown positions": (
        lambda m: edit(m / "config.json", rope_scaling={"type": "longrope"}),
        ["rope_scaling", "not one of the supported types default, linear, llama3, yarn", "Fix: "],
    ),
}


@BOTH
@pytest.mark.parametrize("name", DAMAGES)
def test_a_folder_that_cannot_be_used(dry, name, model, refused):
    damage, told = DAMAGES[name]
    damage(model)
    refused("train", *dry, "quickstart", *USE_MODEL, told=told)


@pytest.mark.parametrize("name", DAMAGES)
def test_other_commands_say_the_same(name, model, refused):
    damage, told = DAMAGES[name]
    damage(model)
    refused("sample", "--model", "model", "--prompt", "21=", told=told)


@BOTH
@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            ["model.family=dream"],
            ["the recipe says model.family = 'dream'", "Fix: set model.family to auto or"],
        ),
        (["model.block_length=8"], ["block length is 4", "model.block_length = 8", "Fix: leave model.block"]),
        (
            ["model.max_length=64"],
            ["reach 64 tokens, and model.max_length = 64", "Fix: leave model.max_length"],
        ),
        (
            ["rollout.block_length=2"],
            ["rollout.block_length = 2 does not fit a block-causal model with blocks of 4", "Fix: use 4"],
        ),
        (
            ["model.quantization=4bit", "trainer.lora={r: 4}"],
            ["model.quantization = 4bit needs a GPU", "Fix: set cluster.gpus_per_trainer"],
        ),
        (["model.quantization=8bit"], ["quantised weights cannot be trained", "Fix: set trainer.lora"]),
        (["model.family=sdr"], ["model.family = 'sdr'", "sdar", "Fix: "]),
    ],
)
def test_settings_that_the_model_contradicts(dry, settings, told, model, refused):
    refused("train", *dry, "quickstart", *USE_MODEL, *settings, told=told)


@BOTH
def test_a_device_without_bfloat16(dry, model, refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    gpus = ["cluster.gpus_per_trainer=0.5", "cluster.gpus_per_rollout_worker=0.5", "trainer.bf16=true"]
    told = ["trainer.bf16 = true and this GPU has no bfloat16", "Fix: set trainer.bf16=false"]
    refused("train", *dry, "quickstart", *USE_MODEL, *gpus, told=told)


@BOTH
def test_a_chat_template_that_fails(dry, tmp_path, refused, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokenizer = build_bpe_tokenizer(["one two three"], 300, chat_template=True)
    tokenizer.chat_template = "{{ raise_exception('system first, please') }}"
    loaded = create(SIZES, tokenizer, 0, family="sdar", block_length=4)
    save(loaded, tmp_path / "model", tokenizer)
    Path("rows.jsonl").write_text('{"prompt": "one", "answer": "two"}\n' * 40)
    data = ["data.task=null", "data.train=rows.jsonl", "eval.num_prompts=4"]
    told = ["rows.jsonl", "chat template fails: system first, please", "Fix: correct the row's messages"]
    refused("train", *dry, "quickstart", *USE_MODEL, *data, told=told)


def test_a_push_without_an_account(model, refused, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", "nowhere")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    refused(
        "export", "runs/none", "out", "--push-to", "me/mine", told=["needs an account", "Fix: set HF_TOKEN"]
    )
    refused("export", "runs/none", "out", "--push-to", "mine", told=["not a repository's name", "Fix: write"])
