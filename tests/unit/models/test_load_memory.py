"""Loading holds the weights and little more: measured on a model of 100 MB in shards of 20."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rl4dlm.models import build_char_tokenizer, create, save
from rl4dlm.recipe.sections import ModelInit

MIB = 2**20
CHILD = """
import resource, sys
import torch
from rl4dlm.models import load
from rl4dlm.models.decoder import DecoderBackbone  # what a first load imports is not its memory
import transformers.models.qwen3.modeling_qwen3
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
torch.ones(1) @ torch.ones(1)
before = peak()
module = load(sys.argv[1]).module
size = sum(p.numel() * p.element_size() for p in module.parameters())
print(peak() - before, size)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("family", "block_length"), [("sdar", 4), ("llada", None)])
def test_the_peak_is_a_shard_above_the_weights(family, block_length, tmp_path: Path):
    sizes = ModelInit(d_model=512, n_layers=8, n_heads=8, mlp_hidden_size=1536, max_sequence_length=64)
    loaded = create(sizes, build_char_tokenizer("0123456789="), 0, family=family, block_length=block_length)
    folder = save(loaded, tmp_path / "model", loaded.tokenizer, max_shard_bytes=20 * MIB)
    largest = max(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert len(list(folder.glob("*.safetensors"))) >= 5
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder)], capture_output=True, text=True, check=True, timeout=120
    )
    peak, size = map(int, done.stdout.split())
    assert size > 90 * MIB
    assert peak < size + largest + 12 * MIB  # and what the tokenizer and the modules themselves take
