"""Laws that every family obeys, whatever its architecture: padding, packing, copies, caches, gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from family_toys import EOS, FAMILY_CASES, MASK, TEXT, make_family
from peft import PeftModel
from torch import Tensor

from rl4dlm import models
from rl4dlm.diffusion.blocks import BlockLayout, WindowLayout, doubled_layout, sequence_layout
from rl4dlm.recipe.sections import LoraSettings

CASES = pytest.mark.parametrize(("family", "block_length"), FAMILY_CASES)
BLOCK_CASES = pytest.mark.parametrize(("family", "block_length"), [c for c in FAMILY_CASES if c[1]])


def text(length: int, seed: int = 0) -> Tensor:
    """int64 `[1, length]`, with some masks after the first token."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, TEXT, (1, length), generator=generator)
    hidden = torch.rand(1, length, generator=generator) < 0.3
    hidden[:, 0] = False
    return ids.masked_fill(hidden, MASK)


def scores(module: Any, ids: Tensor, *args: Any, **options: Any) -> Tensor:
    """Logits without the forbidden column, which is -inf."""
    with torch.no_grad():
        logits = module(ids, *args, **options)
    assert torch.isneginf(logits[..., MASK]).all()
    return logits[..., :MASK]


@CASES
@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_padding_is_invisible_wherever_it_lies(family, block_length, side):
    module = make_family(family, block_length).module
    left, right = {"left": (5, 0), "right": (0, 5), "both": (3, 2)}[side]
    ids = text(13)
    padded = torch.nn.functional.pad(ids, (left, right), value=7)
    mask = torch.zeros_like(padded, dtype=torch.bool)
    mask[:, left : left + 13] = True
    alone = scores(module, ids)
    torch.testing.assert_close(scores(module, padded, mask)[:, left : left + 13], alone, rtol=0, atol=1e-5)
    assert torch.isfinite(scores(module, padded, mask)).all()


@CASES
def test_packed_sequences_do_not_see_each_other(family, block_length):
    module = make_family(family, block_length).module
    one, two = text(9, seed=1), text(7, seed=2)
    parts = [sequence_layout(torch.ones_like(ids, dtype=torch.bool), block_length) for ids in (one, two)]
    packed = BlockLayout(
        position=torch.cat([part.position for part in parts], dim=1),
        block=torch.cat([part.block for part in parts], dim=1),
        noisy=torch.zeros(1, 16, dtype=torch.bool),
        segment=torch.tensor([[0] * 9 + [1] * 7]),
    )
    together = scores(module, torch.cat((one, two), dim=1), None, layout=packed)
    torch.testing.assert_close(together[:, :9], scores(module, one), rtol=0, atol=1e-5)
    torch.testing.assert_close(together[:, 9:], scores(module, two), rtol=0, atol=1e-5)


@CASES
def test_the_own_attention_written_out_as_a_layout_changes_nothing(family, block_length):
    module = make_family(family, block_length).module
    ids, mask = text(12), torch.ones(1, 12, dtype=torch.bool)
    mask[:, :3] = False
    given = scores(module, ids, None, layout=sequence_layout(mask, block_length))
    torch.testing.assert_close(given[:, 3:], scores(module, ids, mask)[:, 3:], rtol=0, atol=1e-5)


@CASES
def test_a_change_reaches_its_own_block_and_later_ones_or_all_tokens(family, block_length):
    module = make_family(family, block_length).module
    ids = text(12)
    changed = ids.clone()
    changed[0, 9] = (ids[0, 9] + 3) % 10
    moved = (scores(module, ids) - scores(module, changed)).abs().amax(-1)[0] > 1e-6
    first = 0 if block_length is None else 9 // block_length * block_length
    assert not moved[:first].any() and moved[first:].all()


@BLOCK_CASES
def test_one_doubled_pass_equals_decoding_block_by_block(family, block_length):
    module = make_family(family, block_length).module
    clean, mask = text(19, seed=3), torch.ones(1, 19, dtype=torch.bool)
    mask[:, :3] = False  # 16 real tokens: a prompt of 8 and two blocks to decode
    noisy = clean[:, 11:].masked_fill(torch.tensor([[1, 0, 1, 1, 0, 1, 0, 1]]).bool(), MASK)
    doubled = torch.cat((clean, noisy), dim=1)
    layout = doubled_layout(mask, block_length, copied=8)
    at_once = scores(module, doubled, None, layout=layout)[:, 19:]
    for start in (0, 4):
        state = torch.cat((clean[:, : 11 + start], noisy[:, start : start + 4]), dim=1)
        by_block = scores(module, state, mask[:, : 15 + start])[:, -4:]
        torch.testing.assert_close(at_once[:, start : start + 4], by_block, rtol=0, atol=1e-5)


class StandInCache:
    """Stores what it is given and returns everything stored, oldest first."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, key: Tensor, value: Tensor, layer: int, *args: Any, **kwargs: Any) -> Any:
        if layer in self.layers:
            old = self.layers[layer]
            key, value = torch.cat((old[0], key), dim=2), torch.cat((old[1], value), dim=2)
        self.layers[layer] = (key, value)
        return key, value


@BLOCK_CASES
def test_a_cache_of_finished_blocks_changes_nothing(family, block_length):
    module = make_family(family, block_length).module
    ids, mask = text(15, seed=4), torch.ones(1, 15, dtype=torch.bool)
    mask[:, :3] = False
    whole = sequence_layout(mask, block_length)
    cache, parts = StandInCache(), []
    for start, end in ((0, 11), (11, 15)):  # two blocks after the padding, then the third
        window = WindowLayout(whole.position[:, start:end], whole.visible()[:, start:end, :end])
        parts.append(scores(module, ids[:, start:end], None, layout=window, cache=cache))
    assert sorted(cache.layers) == [0, 1] and cache.layers[0][0].shape[2] == 15
    torch.testing.assert_close(
        torch.cat(parts, dim=1)[:, 3:], scores(module, ids, mask)[:, 3:], rtol=0, atol=1e-5
    )


def test_a_window_of_a_shifted_model_begins_one_token_early():
    module = make_family("dream", None).module
    ids = text(12, seed=5)
    whole = sequence_layout(torch.ones(1, 12, dtype=torch.bool), None)
    cache = StandInCache()
    everything = scores(module, ids, None, layout=whole, cache=cache)

    class Stored:
        """The keys of the first seven tokens as they were, and those of the window."""

        def update(self, key: Tensor, value: Tensor, layer: int, *args: Any, **kwargs: Any) -> Any:
            old = cache.layers[layer]
            return torch.cat((old[0][:, :, :7], key), dim=2), torch.cat((old[1][:, :, :7], value), dim=2)

    window = WindowLayout(whole.position[:, 7:], whole.visible()[:, 7:])
    late = scores(module, ids[:, 7:], None, layout=window, cache=Stored())
    torch.testing.assert_close(late[:, 1:], everything[:, 8:], rtol=0, atol=1e-5)
    assert (late[:, 0] - everything[:, 7]).abs().max() > 1e-2


@CASES
def test_selected_logits_and_label_scores_agree_with_all_of_them(family, block_length):
    module = make_family(family, block_length).module
    ids = text(12)
    select = ids == MASK
    labels = torch.randint(0, 10, ids.shape, generator=torch.Generator().manual_seed(1))
    whole = module(ids)
    torch.testing.assert_close(module(ids, select=select), whole[select], rtol=0, atol=1e-5)
    expected = (whole / 0.7).log_softmax(-1).gather(-1, labels[..., None])[..., 0]
    got = module(ids, select=select, labels=labels, temperature=0.7)
    torch.testing.assert_close(got, expected[select], rtol=0, atol=1e-5)


@CASES
def test_gradients_reach_every_parameter_and_survive_checkpointing(family, block_length):
    gradients = []
    for recompute in (False, True):
        module = make_family(family, block_length).module
        if recompute:
            module.gradient_checkpointing_enable()
        ids = text(12)
        module(ids, select=ids == MASK, labels=ids * 0 + 3).sum().backward()
        gradients.append({name: parameter.grad for name, parameter in module.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None, name  # an expert without tokens has a gradient of zero, not none
        assert gradient.abs().max() > 0 or ".experts." in name, name
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-6, atol=1e-6)


@CASES
def test_the_mask_must_be_bool(family, block_length):
    module = make_family(family, block_length).module
    with pytest.raises(TypeError, match="must be bool"):
        module(text(5), torch.ones(1, 5, dtype=torch.long))


@CASES
def test_casting_the_module_does_not_degrade_its_rotary_angles(family, block_length):
    module = make_family(family, block_length, rope_theta=1e4).module
    ids = text(12)
    far = sequence_layout(torch.ones(1, 12, dtype=torch.bool), block_length)
    far = BlockLayout(far.position + 40, far.block, far.noisy, far.segment)
    exact = scores(module, ids, None, layout=far)
    there_and_back = module.bfloat16().float()
    rounded = make_family(family, block_length, rope_theta=1e4).module
    with torch.no_grad():
        for parameter in rounded.parameters():
            parameter.copy_(parameter.bfloat16())
    assert torch.equal(scores(there_and_back, ids, None, layout=far), scores(rounded, ids, None, layout=far))
    assert (exact - scores(rounded, ids, None, layout=far)).abs().max() < 0.5


@CASES
def test_the_denoiser_record_says_how_the_family_attends(family, block_length):
    spec = make_family(family, block_length).spec
    assert spec.attention == ("full" if block_length is None else "block_causal")
    assert spec.block_length == block_length
    assert spec.logit_shift == (1 if family == "dream" else 0)
    assert (spec.mask_id, spec.eos_id, spec.max_length) == (MASK, EOS, 64)


# In two layers: seven projections; attention's four (LLaDA-MoE, DiT); fused attention's two, and the three of
# a dense MLP and of a shared expert (LLaDA2).
ADAPTED = {
    "llada": 14,
    "llada_moe": 8,
    "llada2": 10,
    "dream": 14,
    "sdar": 14,
    "a2d": 14,
    "mdlm": 8,
    "bd3lm": 8,
}


@CASES
@pytest.mark.parametrize("max_shard_bytes", [5_000_000_000, 20_000])
def test_a_saved_model_is_the_same_model_when_loaded(family, block_length, max_shard_bytes, tmp_path):
    loaded = make_family(family, block_length)
    folder = models.save(loaded, tmp_path / "m", loaded.tokenizer, max_shard_bytes=max_shard_bytes)
    again = models.load(folder)
    assert (again.family, again.spec) == (family, loaded.spec)
    assert again.module.config.to_dict()["architectures"]
    assert torch.equal(again.module(text(12)), loaded.module(text(12)))
    assert models.inspect(folder).num_parameters == sum(p.numel() for p in loaded.module.parameters())


@CASES
def test_adapters_merge_into_the_weights_they_adapt(family, block_length, tmp_path):
    loaded = make_family(family, block_length)
    ids, labels = text(12), text(12, seed=8).clamp_max(10)
    before = loaded.module(ids, labels=labels)
    width = models.describe(loaded).adapted_width
    adapted = models.add_lora(loaded.module, LoraSettings(r=3, lora_alpha=6), family, seed=1)
    assert 3 * width == sum(tensor.numel() for tensor in models.trainable_state(adapted).values())
    assert torch.equal(adapted(ids, labels=labels), before)
    names = [name for name, _ in adapted.named_modules() if name.endswith("lora_A")]
    assert len(names) == ADAPTED[family]
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(0.0, 0.2, generator=generator)
    unmerged = adapted(ids, labels=labels)
    assert (unmerged - before).abs().max() > 0.1
    folder = models.save(adapted, tmp_path / "merged", loaded.tokenizer)
    merged = models.load(folder).module(ids, labels=labels)
    torch.testing.assert_close(merged, unmerged, rtol=0, atol=1e-5)
    with models.reference(adapted):
        assert torch.equal(adapted(ids, labels=labels), before)
    stored = models.save_adapter(adapted, tmp_path / "adapter")
    again = PeftModel.from_pretrained(make_family(family, block_length).module, str(stored))
    assert torch.equal(again(ids, labels=labels), unmerged)
