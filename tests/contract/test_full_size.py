"""`--dry-run` on folders of full size: published configurations, every tensor's name, shape and dtype, no
byte of weights on the disk. What would go wrong at 8 billion parameters before the first weight is read goes
wrong here."""

from __future__ import annotations

import json
import math
import re
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit" / "models"))

from published_configs import (  # noqa: E402
    A2D_QWEN3,
    DREAM_7B,
    LLADA2_MINI,
    LLADA_8B,
    LLADA_MOE,
    SDAR_8B,
    TRADO_4B,
)

from rl4dlm.commands.dry_run import dry_run  # noqa: E402
from rl4dlm.errors import ModelError  # noqa: E402
from rl4dlm.models.families import find_family, stored_buffers, tensor_shapes  # noqa: E402
from rl4dlm.recipe import load_recipe  # noqa: E402

MODELS = {
    "llada": ("gdpo/llada_gsm8k", LLADA_8B),
    "dream": ("gdpo/dream_gsm8k", DREAM_7B),
    "sdar": ("gdpo/sdar_gsm8k", SDAR_8B),
}
MORE_MODELS = {
    "trado": ("gdpo/trado_gsm8k", TRADO_4B),
    "llada_moe": ("gdpo/llada_gsm8k", LLADA_MOE),
    "a2d": ("gdpo/llada_gsm8k", A2D_QWEN3),
}
BLOCKS_OF_32 = ["rollout.block_length=32", "rollout.diffusion_steps=128"]


def tokenizer_with(data: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """A token per character, and the special ones where the published vocabulary has them."""
    vocab = {chr(code): code for code in range(32, 127)} | {"\n": 10}
    specials = {"<|x-mask|>": data["mask_token_id"], "<|x-end|>": data["eos_token_id"]}
    backend = Tokenizer(models.WordLevel(vocab | specials))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    mask, end = (AddedToken(token, special=True, normalized=False) for token in specials)
    return PreTrainedTokenizerFast(tokenizer_object=backend, mask_token=mask, eos_token=end, pad_token=end)


def write_header(file: Path, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """A safetensors file of these bfloat16 tensors with a hole where the weights would be; their bytes."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + end)
    return end


def full_size(folder: Path, data: Mapping[str, Any]) -> int:
    """A model folder in two shards with an index; bytes of its weights."""
    family = find_family(data, "auto", "config.json")
    shapes = tensor_shapes(family, family.read_config(data, "config.json"))
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(data))
    tokenizer_with(data).save_pretrained(folder)
    half = len(shapes) // 2
    shards = {
        "model-00001-of-00002.safetensors": dict(list(shapes.items())[:half]),
        "model-00002-of-00002.safetensors": dict(list(shapes.items())[half:]),
    }
    total = sum(write_header(folder / file, part) for file, part in shards.items())
    weight_map = {name: file for file, part in shards.items() for name in part}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def printed(name: str, folder: Path, place: Path, *overrides: str) -> str:
    rows = place / "rows.jsonl"
    rows.write_text('{"question": "Ann has 2 apples. How many?", "answer": "#### 2"}\n' * 30)
    data = [f"data.train={rows}", "data.subset=null", f"data.eval={rows}", "data.max_prompt_length=500"]
    cpu = ["cluster.gpus_per_trainer=0", "cluster.gpus_per_rollout_worker=0"]
    settings = [f"model.path={folder}", f"run.output_dir={place}", "eval.num_prompts=4", *data, *cpu]
    with (place / "printed.txt").open("w+") as out:
        dry_run(load_recipe(name, [*settings, *overrides]), Console(file=out, width=200))
        out.seek(0)
        return " ".join(out.read().split())


@pytest.mark.parametrize(
    "name", [*MODELS, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE_MODELS)]
)
def test_a_model_of_full_size_passes_a_dry_run(name, tmp_path):
    recipe, data = {**MODELS, **MORE_MODELS}[name]
    size = full_size(tmp_path / "model", data)
    text = printed(recipe, tmp_path / "model", tmp_path)
    count = size // 2
    assert f"{count:,} parameters" in text
    assert f"vocabulary {data['vocab_size']:,}" in text
    weights = re.search(r"memory per rollout worker\W+weights ([\d.]+) GiB", text)
    assert weights and float(weights[1]) == pytest.approx(size / 2**30, abs=0.06)


@pytest.mark.slow
def test_a_mixture_of_sixteen_billion_passes_too(tmp_path):
    """20 layers of 256 experts: 14,800 tensors; the router's biases are stored and not trained."""
    size = full_size(tmp_path / "model", LLADA2_MINI)
    text = printed("gdpo/llada_gsm8k", tmp_path / "model", tmp_path, *BLOCKS_OF_32)
    assert f"{size // 2 - 19 * 256:,} parameters" in text


def test_the_routers_biases_are_all_that_is_stored_and_not_trained():
    small = {**LLADA2_MINI, "num_hidden_layers": 2, "num_experts": 16, "n_group": 8}
    family = find_family(small, "auto", "config.json")
    module = family.build(family.read_config(small | {"hidden_size": 32, "vocab_size": 157184}, "c"))
    assert sorted(stored_buffers(module)) == ["model.layers.1.mlp.gate.expert_bias"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"n_layers": 31}, "is unexpected"),
        ({"n_layers": 33}, "is missing"),
        ({"mlp_hidden_size": 12289}, r"config.json asks for \[12289, 4096\]"),
    ],
)
def test_weights_of_another_size_are_refused_by_their_names_and_shapes(change, told, tmp_path):
    full_size(tmp_path / "model", LLADA_8B)
    (tmp_path / "model" / "config.json").write_text(json.dumps({**LLADA_8B, **change}))
    with pytest.raises(ModelError, match=told):
        printed("gdpo/llada_gsm8k", tmp_path / "model", tmp_path)
