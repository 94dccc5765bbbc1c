"""The network against explicit mathematics, and the invariances that samplers and trainers rely on."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rl4dlm.models.base import key_mask_and_positions
from rl4dlm.models.llada import LLaDA, RMSNorm, rotary_tables, rotate


def explicit_logits(module: LLaDA, ids: list[int]) -> Tensor:
    """One row, no padding, written out from the specification in float64: `[length, vocab]`."""
    config = module.config
    weights = {name: p.detach().double() for name, p in module.named_parameters()}
    half = config.head_dim // 2
    groups = config.num_attention_heads // config.num_key_value_heads

    def norm(x: Tensor, name: str) -> Tensor:
        rms = (x.pow(2).sum(-1, keepdim=True) / x.shape[-1] + config.rms_norm_eps).sqrt()
        return x / rms * weights[name]

    def rope(u: Tensor, position: int) -> Tensor:
        angle = torch.tensor(
            [position * config.rope["rope_theta"] ** (-2 * j / config.head_dim) for j in range(half)]
        )
        angle = angle.double()
        one, two = u[:half], u[half:]
        return torch.cat((one * angle.cos() - two * angle.sin(), two * angle.cos() + one * angle.sin()))

    def attention(x: Tensor, at: str) -> Tensor:
        q, k, v = (x @ weights[f"{at}.{part}_proj.weight"].T for part in "qkv")
        outputs = []
        for head in range(config.num_attention_heads):
            own = slice(head * config.head_dim, (head + 1) * config.head_dim)
            shared = slice((head // groups) * config.head_dim, (head // groups + 1) * config.head_dim)
            queries = torch.stack([rope(u, i) for i, u in enumerate(q[:, own])])
            keys = torch.stack([rope(u, i) for i, u in enumerate(k[:, shared])])
            scores = queries @ keys.T / math.sqrt(config.head_dim)
            outputs.append((scores.exp() / scores.exp().sum(-1, keepdim=True)) @ v[:, shared])
        return torch.cat(outputs, -1) @ weights[f"{at}.attn_out.weight"].T

    x = weights["model.transformer.wte.weight"][ids]
    for layer in range(config.num_hidden_layers):
        at = f"model.transformer.blocks.{layer}"
        x = x + attention(norm(x, f"{at}.attn_norm.weight"), at)
        y = norm(x, f"{at}.ff_norm.weight")
        gate = y @ weights[f"{at}.ff_proj.weight"].T
        inner = gate / (1 + (-gate).exp()) * (y @ weights[f"{at}.up_proj.weight"].T)
        x = x + inner @ weights[f"{at}.ff_out.weight"].T
    head = "wte" if config.tie_word_embeddings else "ff_out"
    logits = norm(x, "model.transformer.ln_f.weight") @ weights[f"model.transformer.{head}.weight"].T
    logits[:, [20, 22, 23]] = -math.inf
    return logits


def pad(ids: list[int], left: int, right: int) -> tuple[Tensor, Tensor]:
    """Ids and attention mask `[1, length]` with padding on both sides."""
    padded = torch.tensor([[21] * left + ids + [21] * right])
    mask = torch.zeros_like(padded, dtype=torch.bool)
    mask[:, left : left + len(ids)] = True
    return padded, mask


@pytest.mark.parametrize(
    "changes", [{}, {"n_kv_heads": 2}, {"n_kv_heads": 1}, {"weight_tying": True}, {"rope_theta": 100.0}]
)
def test_logits_equal_the_explicit_mathematics(tiny, tokens, changes):
    module = tiny(**changes)
    for row, logits in zip(tokens.tolist(), module(tokens), strict=True):
        torch.testing.assert_close(logits.double(), explicit_logits(module, row), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("left", "right"), [(0, 0), (1, 0), (5, 0), (0, 4), (3, 2)])
def test_padding_is_invisible_to_real_tokens(tiny, left, right):
    module, ids = tiny(), [3, 20, 7, 20, 1]
    alone = module(torch.tensor([ids]))[0]
    padded, mask = pad(ids, left, right)
    real = module(padded, mask)[0, left : left + len(ids)]
    torch.testing.assert_close(real, alone, atol=1e-5, rtol=0)


def test_padding_between_prompt_and_completion_is_not_counted_in_positions(tiny):
    module, ids = tiny(), [3, 20, 7, 20, 1]
    holed = torch.tensor([[3, 20, 21, 21, 7, 20, 1]])
    mask = torch.tensor([[True, True, False, False, True, True, True]])
    alone = module(torch.tensor([ids]))[0]
    torch.testing.assert_close(module(holed, mask)[mask], alone, atol=1e-5, rtol=0)


def test_ignoring_the_mask_changes_the_logits(tiny):
    module, ids = tiny(), [3, 20, 7, 20, 1]
    padded, mask = pad(ids, 5, 0)
    assert (module(padded)[0, 5:, :20] - module(padded, mask)[0, 5:, :20]).abs().max() > 0.1


def test_the_content_of_padding_does_not_matter(tiny):
    module = tiny()
    padded, mask = pad([3, 20, 7], 4, 2)
    other = padded.masked_fill(~mask, 5)
    assert torch.equal(module(padded, mask)[mask], module(other, mask)[mask])


def test_a_row_gives_the_same_logits_alone_and_among_padded_rows(tiny):
    module, rows = tiny(), [[3, 20, 7, 20, 1], [20, 2], [9, 9, 20, 4, 4, 4, 20]]
    padded = [pad(ids, 7 - len(ids), 0) for ids in rows]
    together = module(torch.cat([p[0] for p in padded]), torch.cat([p[1] for p in padded]))
    for ids, logits in zip(rows, together, strict=True):
        torch.testing.assert_close(logits[7 - len(ids) :], module(torch.tensor([ids]))[0], atol=1e-5, rtol=0)


def test_padded_queries_and_empty_rows_stay_finite(tiny):
    module = tiny()
    padded, mask = pad([3, 20, 7], 4, 2)
    ids, mask = torch.cat([padded, padded]), torch.cat([mask, torch.zeros_like(mask)])
    logits = module(ids, mask)
    assert torch.isfinite(logits[..., :20]).all()
    logits[0, 4:7, :20].sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in module.parameters())


def test_no_row_of_keys_is_ever_fully_masked():
    # some attention back-ends return NaN for such a row, others zeros
    mask = torch.tensor([[False, True], [False, False]])
    visible, positions = key_mask_and_positions(torch.zeros(2, 2, dtype=torch.long), mask)
    assert visible[:, 0, 0].tolist() == [[False, True], [True, True]]
    assert positions.tolist() == [[0, 0], [0, 0]]


def test_an_all_true_mask_takes_the_path_without_a_mask(tiny, tokens):
    module = tiny()
    assert torch.equal(module(tokens, torch.ones_like(tokens, dtype=torch.bool)), module(tokens))


@pytest.mark.parametrize("dtype", [torch.long, torch.float32])
def test_a_mask_that_is_not_bool_is_refused(tiny, tokens, dtype):
    with pytest.raises(TypeError, match="must be bool"):
        tiny()(tokens, torch.ones_like(tokens, dtype=dtype))


def test_permuting_rows_permutes_logits(tiny, tokens):
    module = tiny()
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(module(tokens[order]), module(tokens)[order], atol=1e-6, rtol=0)


def test_attention_is_bidirectional(tiny, tokens):
    module = tiny()
    changed = tokens.clone()
    changed[:, -1] = (tokens[:, -1] + 1) % 20
    assert (module(changed)[:, 0, :20] - module(tokens)[:, 0, :20]).abs().min(-1).values.max() > 1e-4


@pytest.mark.parametrize("offset", [1, 10, 100])
def test_shifting_all_positions_changes_nothing(tiny, tokens, offset):
    module = tiny()
    positions = torch.arange(12)[None]
    hidden = module.model(tokens, None, positions)
    torch.testing.assert_close(module.model(tokens, None, positions + offset), hidden, atol=1e-5, rtol=0)
    assert (module.model(tokens, None, positions * 2) - hidden).abs().max() > 0.1


def test_rotary_angles_follow_the_half_split_formula():
    cos, sin = rotary_tables(torch.tensor([[0, 3]]), head_dim=4, theta=100.0)
    # frequencies 100^0 = 1 and 100^(-2/4) = 0.1, each once per half: angles 3, 0.3, 3, 0.3
    angles = torch.tensor([3.0, 0.3, 3.0, 0.3])
    assert torch.equal(cos[0, 0, 0], torch.ones(4))
    torch.testing.assert_close(cos[0, 0, 1], angles.cos())
    torch.testing.assert_close(sin[0, 0, 1], angles.sin())


def test_the_norm_casts_before_it_applies_its_weight():
    x = torch.randn(50, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    norm = RMSNorm(32, 1e-5).bfloat16()
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(1))
    exact = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-5)
    assert torch.equal(norm(x), exact.bfloat16() * norm.weight)
    assert not torch.equal(norm(x), (exact * norm.weight.float()).bfloat16())


def test_heads_are_rotated_in_float32_and_cast_back():
    x = torch.randn(1, 2, 50, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    cos, sin = rotary_tables(torch.arange(50)[None], head_dim=8, theta=100.0)
    assert torch.equal(rotate(x, cos, sin), rotate(x.float(), cos, sin).bfloat16())
    assert rotate(x, cos, sin).dtype == torch.bfloat16


def test_casting_to_bfloat16_leaves_the_rotary_angles_in_float32(tiny, tokens):
    seen = []

    def tables_of(module: LLaDA) -> tuple[Tensor, Tensor]:
        hook = module.model.transformer["blocks"][0].register_forward_pre_hook(
            lambda _, args: seen.append(args[1:3])
        )
        module(tokens)
        hook.remove()
        return seen[-1]

    module = tiny()
    full = tables_of(module)
    half = tables_of(module.bfloat16())
    assert half[0].dtype == torch.float32
    assert torch.equal(half[0], full[0]) and torch.equal(half[1], full[1])
    assert not [buffer for buffer in module.buffers() if buffer.is_floating_point()]


def test_bfloat16_weights_give_float32_logits_close_to_those_of_the_same_weights_in_float32(tiny, tokens):
    half = tiny().bfloat16()
    full = tiny().bfloat16().float()
    logits, exact = half(tokens), full(tokens)
    assert logits.dtype == torch.float32
    difference = (logits - exact)[..., :20].abs()
    # about ten roundings in sequence, each of up to 2^-9 = 0.2 % of the value
    assert 0 < difference.mean() < 0.02 * exact[..., :20].std()


def test_gradient_checkpointing_changes_neither_values_nor_gradients(tiny, tokens):
    plain, frugal = tiny(), tiny()
    frugal.gradient_checkpointing_enable()
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[0, :3] = False
    gradients = []
    for module in (plain, frugal):
        logp = module(tokens, mask, select=mask, labels=tokens % 20)
        logp.sum().backward()
        gradients.append([logp.detach(), *(p.grad for p in module.parameters())])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


def test_gradient_checkpointing_runs_blocks_twice_until_disabled(tiny, tokens):
    module, calls = tiny(), []
    module.model.transformer["blocks"][0].register_forward_pre_hook(lambda *_: calls.append(1))
    module.gradient_checkpointing_enable()
    module(tokens)[..., :20].sum().backward()
    assert len(calls) == 2
    module.gradient_checkpointing_disable()
    module(tokens)[..., :20].sum().backward()
    assert len(calls) == 3


def test_a_tied_head_has_no_tensor_of_its_own_and_trains_the_embedding(tiny, tokens):
    module = tiny(weight_tying=True)
    assert "model.transformer.ff_out.weight" not in dict(module.named_parameters())
    unseen = 19 if not (tokens == 19).any() else 18
    only_head = tokens.masked_fill(tokens == unseen, 0)
    module(only_head)[..., unseen].sum().backward()
    assert module.model.transformer["wte"].weight.grad[unseen].abs().max() > 0
