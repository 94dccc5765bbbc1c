"""MDLM and BD3-LM against their equations, token by token."""

from __future__ import annotations

import math

import pytest
import torch
from family_toys import EOS, INIT, MASK, make_family
from torch import Tensor

from rl4dlm.models.dit import DiT
from rl4dlm.models.network_config import made_config, read_config

IDS = torch.tensor([[3, 1, 13, 4, 13, 5, 9, 2, 13, 6]])


def explicit_logits(module: DiT, ids: list[int]) -> Tensor:
    """One row, written out from the specification in float64: `[length, vocab]`."""
    config = module.config
    weights = {name: t.detach().double() for name, t in module.state_dict().items()}
    size, length = config.head_dim, len(ids)

    def linear(x: Tensor, at: str) -> Tensor:
        bias = weights.get(f"backbone.{at}.bias", torch.zeros(1, dtype=torch.float64))
        return x @ weights[f"backbone.{at}.weight"].T + bias

    def norm(x: Tensor, at: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return (
            centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weights[f"backbone.{at}.weight"]
        )

    def silu(x: Tensor) -> Tensor:
        return x * x.sigmoid()

    def rope(u: Tensor, position: int) -> Tensor:
        angle = position * 10000.0 ** (-2 * torch.arange(size // 2).double() / size)
        one, two = u[: size // 2], u[size // 2 :]
        return torch.cat((one * angle.cos() - two * angle.sin(), two * angle.cos() + one * angle.sin()))

    def attention(x: Tensor, at: str) -> Tensor:
        query, key, value = (
            linear(x, f"{at}.attn_qkv").reshape(length, 3, config.num_attention_heads, size).unbind(1)
        )
        mixed = torch.zeros(length, config.num_attention_heads, size, dtype=torch.float64)
        for head in range(config.num_attention_heads):
            for i in range(length):
                blocks = config.block_length
                seen = [j for j in range(length) if blocks is None or j // blocks <= i // blocks]
                q = rope(query[i, head], i)
                logits = torch.stack([q @ rope(key[j, head], j) for j in seen]) / math.sqrt(size)
                for share, j in zip(logits.softmax(0), seen, strict=True):
                    mixed[i, head] += share * value[j, head]
        return linear(mixed.reshape(length, -1), f"{at}.attn_out")

    def mlp(x: Tensor, at: str) -> Tensor:
        y = linear(x, f"{at}.mlp.0")
        y = 0.5 * y * (1 + (math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)).tanh())
        return linear(y, f"{at}.mlp.2")

    def modulation(at: str, parts: int) -> list[Tensor]:
        if not config.adaln:
            return [torch.zeros(1).double(), torch.zeros(1).double(), torch.ones(1).double()] * (parts // 2)
        time = torch.cat((torch.ones(128), torch.zeros(128))).double()  # cos 0, then sin 0
        condition = silu(linear(silu(linear(time, "sigma_map.mlp.0")), "sigma_map.mlp.2"))
        return list(linear(condition, f"{at}.adaLN_modulation").chunk(parts))

    x = weights["backbone.vocab_embed.embedding"][ids]
    for block in range(config.num_hidden_layers):
        at = f"blocks.{block}"
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation(at, 6)[:6]
        x = x + gate1 * attention(norm(x, f"{at}.norm1") * (1 + scale1) + shift1, at)
        x = x + gate2 * mlp(norm(x, f"{at}.norm2") * (1 + scale2) + shift2, at)
    shift, scale = modulation("output_layer", 2)[:2]
    return linear(norm(x, "output_layer.norm_final") * (1 + scale) + shift, "output_layer.linear")


def modulated_bd3lm() -> DiT:
    """BD3-LM with the modulation that its research configuration has."""
    ids = {"mask_id": MASK, "eos_id": EOS, "pad_id": EOS}
    data = made_config("bd3lm", INIT, vocab_size=14, block_length=4, **ids).to_dict()
    module = DiT(read_config("bd3lm", {**data, "adaln": True}, "test"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    module.forbid([MASK])
    return module


@pytest.mark.parametrize("name", ["mdlm", "bd3lm", "bd3lm modulated"])
def test_the_network_is_what_its_equations_say(name):
    if name == "bd3lm modulated":
        module = modulated_bd3lm()
    else:
        module = make_family(name, 4 if name == "bd3lm" else None).module
    with torch.no_grad():
        logits = module(IDS)[0, :, :13].double()
    torch.testing.assert_close(logits, explicit_logits(module, IDS[0].tolist())[:, :13], rtol=0, atol=2e-5)


def test_a_model_from_scratch_starts_with_uniform_predictions_as_published():
    from rl4dlm.models import build_char_tokenizer, create

    for family, block_length in (("mdlm", None), ("bd3lm", 4)):
        loaded = create(
            INIT, build_char_tokenizer("0123456789="), 0, family=family, block_length=block_length
        )
        logp = loaded.module(IDS)[..., :13].log_softmax(-1)
        torch.testing.assert_close(logp, torch.full_like(logp, -math.log(13)))


def test_what_published_files_store_beside_the_weights_is_stored_in_float32(tmp_path):
    from rl4dlm.models import load, save

    loaded = make_family("bd3lm", 4)
    loaded.module.bfloat16()
    folder = save(loaded, tmp_path / "m", loaded.tokenizer, dtype=torch.bfloat16)
    again = load(folder, dtype=torch.bfloat16).module
    frequencies = again.backbone.rotary_emb.inv_freq
    assert frequencies.dtype == torch.float32
    torch.testing.assert_close(frequencies, 10000.0 ** -(torch.arange(0, 8, 2) / 8))
    assert again.sampling_eps_min.item() == pytest.approx(1e-3, rel=1e-6)
    assert next(again.parameters()).dtype == torch.bfloat16
