"""Folders as the released classes write them: what config.json leaves unsaid comes from elsewhere, or is
asked for by the name of the setting."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from published_configs import DREAM_7B, LLADA2_MINI, LLADA_8B, LLADA_MOE, MDLM_OWT, SDAR_8B, SDAR_30B
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from rl4dlm import models as rl4dlm_models
from rl4dlm.errors import ModelError, ModelWarning
from rl4dlm.models.families import find_family, tensor_shapes

TEXT = "0123456789="
EOS, MASK, ROWS = 11, 12, 16
IDS = torch.tensor([[3, 1, MASK, 4, MASK, 5]])
HF = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "vocab_size": ROWS, "rms_norm_eps": 1e-6,
}  # fmt: skip
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2}
LLADA_MOE_CLASS: dict[str, Any] = {
    # the released class writes each of its arguments; it has none for the mask
    **{key: value for key, value in HF.items() if key != "intermediate_size"},
    **EXPERTS,
    "dense_intermediate_size": 48, "expert_intermediate_size": 24, "shared_expert_intermediate_size": None,
    "hidden_act": "silu", "initializer_range": 0.02, "use_cache": False, "pad_token_id": EOS,
    "bos_token_id": None, "eos_token_id": EOS, "tie_word_embeddings": False, "rope_theta": 50000,
    "partial_rotary_factor": 1, "rope_scaling": None, "attention_bias": False, "attention_dropout": 0.0,
    "clip_qkv": None, "output_router_logits": False, "router_aux_loss_coef": 0.01, "norm_topk_prob": None,
    "qk_layernorm": True, "moe_layer_freq": [1, 1], "moe_router_enable_expert_bias": None,
    "moe_router_score_function": None, "routed_scaling_factor": 1, "router_num_group": -2,
    "router_topk_group": -2,
}  # fmt: skip
LLADA2_CLASS: dict[str, Any] = {
    **HF,
    **EXPERTS,
    "hidden_act": "silu", "use_qkv_bias": False, "use_qk_norm": True, "use_bias": False, "norm_head": False,
    "tie_word_embeddings": False, "embedding_dropout": 0.1, "attention_dropout": 0.1, "output_dropout": 0.1,
    "initializer_range": 0.02, "rope_theta": 600000.0, "use_cache": True, "use_sliding_window": False,
    "sliding_window": 4096, "max_window_layers": 28, "rope_scaling": None, "pad_token_id": EOS,
    "num_shared_experts": 1, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5,
    "moe_intermediate_size": 24, "first_k_dense_replace": 1, "head_dim": None, "output_router_logits": False,
    "partial_rotary_factor": 0.5,
}  # fmt: skip
ROPE = {"rope_theta": 1e6, "rope_scaling": None}
SDAR_CLASS = {**HF, **ROPE, "head_dim": 8, "attention_bias": False, "block_size": 4}
QWEN3 = {**HF, "rope_theta": 1e6, "head_dim": 8, "tie_word_embeddings": True}
BD3LM_CLASS = {
    "block_size": 4, "vocab_size": 13, "model_length": 64, "cross_attn": True, "adaln": True,
    "attn_backend": "flex", "causal": False, "hidden_dim": 32, "cond_dim": 16, "n_blocks": 2, "n_heads": 4,
    "dropout": 0.1, "time_conditioning": False, "var_min": True, "sampling_eps_min": 1e-3,
    "sampling_eps_max": 0.999,
}  # fmt: skip


def written(
    model_type: str, base: type[PretrainedConfig] = PretrainedConfig, **fields: Any
) -> dict[str, Any]:
    """What transformers writes for a released class with these arguments."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers deprecates spellings that released classes use
        config = type("Released", (base,), {"model_type": model_type})(**fields)
        return json.loads(config.to_json_string())


def as_four(data: Mapping[str, Any]) -> dict[str, Any]:
    """The spelling of transformers 4: `rope_theta` and `rope_scaling`, `torch_dtype`."""
    rope = dict(data.get("rope_parameters") or {})
    theta = rope.pop("rope_theta", None)
    rest = {
        key: value for key, value in data.items() if key not in ("rope_parameters", "dtype", "layer_types")
    }
    return {"rope_theta": theta, "rope_scaling": None, "torch_dtype": "bfloat16", **rest}


def tokenizer_with(mask: str | None, *, declared: bool = True, eos: bool = True) -> PreTrainedTokenizerFast:
    """Characters, end of text, and a mask token of this spelling."""
    backend = Tokenizer(models.WordLevel({character: i for i, character in enumerate(TEXT)}))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
    if mask is not None:
        backend.add_special_tokens([AddedToken(mask, special=True, normalized=False)])
    options = {"eos_token": "<|endoftext|>"} if eos else {}
    options |= {"mask_token": mask} if mask is not None and declared else {}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **options)


def make_folder(
    folder: Path, data: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast, **ids: int
) -> Path:
    """A folder of these files; weights only of a tiny network. `ids` are for the shapes alone."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(data))
    tokenizer.save_pretrained(folder)
    family = find_family({**data, **ids}, "auto", "c")
    whole = {
        "mask_token_id": 1,
        "eos_token_id": 1,
        "block_size": 4,
        **{k: v for k, v in data.items() if v is not None},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = tensor_shapes(family, family.read_config(whole, "c"))
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


A2D = {
    "qwen3": (Qwen3Config, QWEN3),
    "qwen2": (Qwen2Config, {**HF, "rope_theta": 1e6}),
    "llama": (LlamaConfig, {**HF, "rope_theta": 5e5, "eos_token_id": [EOS, 9]}),
}
CASES = {
    "llada_moe": (written("llada", **LLADA_MOE_CLASS), "<|mask|>", None),
    "dllm's llada_moe": (written("lladamoe", **LLADA_MOE_CLASS), "<|mask|>", None),
    "llada2": (written("llada2_moe", **LLADA2_CLASS), "<|mask|>", 32),
    "dllm's llada2.1": (written("llada21_moe", **LLADA2_CLASS), "<|mask|>", 32),
    "dream": (written("Dream", **HF, **ROPE, mask_token_id=None, pad_token_id=EOS), "<|mask|>", None),
    "sdar": (written("sdar", **SDAR_CLASS), "<|MASK|>", 4),
    "sdar, other spelling": (written("sdar", **SDAR_CLASS), "<MASK>", 4),
    "bd3lm": (written("bd3lm", **BD3LM_CLASS), "[MASK]", 4),
    **{
        f"a2d-{name}": (written(f"a2d-{name}", base, **fields), "<|mask|>", None)
        for name, (base, fields) in A2D.items()
    },
}


@pytest.mark.filterwarnings("ignore::rl4dlm.errors.ModelWarning")
@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_a_folder_as_its_class_writes_it_opens(name, declared, version, tmp_path):
    data, mask, block_length = CASES[name]
    data = as_four(data) if version == 4 else data
    assert "mask_token_id" not in data or data["mask_token_id"] is None
    folder = make_folder(tmp_path / "m", data, tokenizer_with(mask, declared=declared))
    loaded = rl4dlm_models.load(folder)
    spec = loaded.spec
    assert (spec.mask_id, spec.eos_id, spec.block_length) == (MASK, EOS, block_length)
    assert set(spec.stop_ids) == ({EOS, 9} if name == "a2d-llama" else {EOS})
    assert torch.isfinite(loaded.module(IDS)[..., :MASK]).all()
    # what was found is written, so that the export needs neither the tokenizer's word nor a setting
    saved = rl4dlm_models.save(loaded, tmp_path / "saved", loaded.tokenizer)
    again = rl4dlm_models.load(saved)
    assert again.spec == spec and torch.equal(again.module(IDS), loaded.module(IDS))
    assert json.loads((saved / "config.json").read_text())["mask_token_id"] == MASK


def test_both_versions_of_transformers_say_the_same_network():
    for name, (data, _, _) in CASES.items():
        family = find_family(data, "auto", name)
        ids = {"mask_token_id": MASK, "eos_token_id": EOS}
        five, four = (family.read_config({**d, **ids}, name) for d in (data, as_four(data)))
        assert {**vars(five), "published": 0} == {**vars(four), "published": 0}


@pytest.mark.parametrize("name", A2D)
def test_a_checkpoint_trained_in_blocks_takes_its_block_length_from_the_recipe(name, tmp_path):
    data, mask, _ = CASES[f"a2d-{name}"]
    folder = make_folder(tmp_path / "m", data, tokenizer_with(mask))
    loaded = rl4dlm_models.load(folder, block_length=2)
    assert (loaded.spec.attention, loaded.spec.block_length) == ("block_causal", 2)
    assert rl4dlm_models.load_tokenizer(folder, block_length=32)[1].block_length == 32
    with pytest.warns(
        ModelWarning, match="attends in blocks, so every token sees.*Fix: .*set model.block_length"
    ):
        full = rl4dlm_models.load(folder)
    assert full.spec.attention == "full"
    assert (full.module(IDS) - loaded.module(IDS))[..., :MASK].abs().max() > 1e-3
    saved = rl4dlm_models.save(loaded, tmp_path / "saved", loaded.tokenizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ModelWarning)
        assert rl4dlm_models.load(saved).spec == loaded.spec
    with pytest.raises(ModelError, match="block length is 2, and the recipe says model.block_length = 4"):
        rl4dlm_models.load(saved, block_length=4)


@pytest.mark.parametrize("key", ["block_size", "block_length", "bd_size"])
def test_a_block_length_in_any_spelling_is_read(key, tmp_path):
    data = {**CASES["a2d-qwen3"][0], key: 4}
    folder = make_folder(tmp_path / "m", data, tokenizer_with("<|mask|>"))
    assert rl4dlm_models.load(folder).spec.block_length == 4


def test_a_released_family_without_its_block_length_names_the_setting(tmp_path):
    data = {key: value for key, value in CASES["sdar"][0].items() if key != "block_size"}
    folder = make_folder(tmp_path / "m", data, tokenizer_with("<|MASK|>"))
    with pytest.raises(ModelError, match="required key 'block_size' is missing. Fix: set model.block_length"):
        rl4dlm_models.load(folder)
    loaded = rl4dlm_models.load(folder, block_length=8)
    saved = rl4dlm_models.save(loaded, tmp_path / "saved", loaded.tokenizer)
    assert json.loads((saved / "config.json").read_text())["block_size"] == 8
    assert rl4dlm_models.load(saved).spec.block_length == 8


def test_a_mask_that_nothing_says_is_asked_for_and_may_be_a_token_or_an_id(tmp_path):
    data = CASES["sdar"][0]
    folder = make_folder(tmp_path / "m", data, tokenizer_with("<|hidden|>", declared=False))
    with pytest.raises(
        ModelError, match=r"m/config.json: neither this file nor .* Fix: set model.mask_token"
    ):
        rl4dlm_models.load(folder)
    for setting in ("<|hidden|>", str(MASK)):
        assert rl4dlm_models.load(folder, mask_token=setting).spec.mask_id == MASK
    with pytest.raises(
        ModelError, match="model.mask_token = '<|mask|>' is no token of the folder's tokenizer"
    ):
        rl4dlm_models.load(folder, mask_token="<|mask|>")
    with pytest.raises(ModelError, match="mask_token_id = 99 lies beyond the 16 rows"):
        rl4dlm_models.load(folder, mask_token="99")


def test_a_setting_that_contradicts_config_json_is_refused(tmp_path):
    data = {**CASES["sdar"][0], "mask_token_id": MASK}
    folder = make_folder(tmp_path / "m", data, tokenizer_with("<|MASK|>"))
    assert rl4dlm_models.load(folder, mask_token="<|MASK|>").spec.mask_id == MASK
    with pytest.raises(ModelError, match="mask_token_id = 12, and the recipe says model.mask_token = '3'"):
        rl4dlm_models.load(folder, mask_token="3")


def test_two_spellings_of_the_mask_in_one_vocabulary_are_asked_about(tmp_path):
    tokenizer = tokenizer_with("<mask>", declared=False)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[MASK]"]})
    folder = make_folder(tmp_path / "m", CASES["sdar"][0], tokenizer)
    with pytest.raises(
        ModelError, match="has several mask tokens and declares none. Fix: set model.mask_token"
    ):
        rl4dlm_models.load(folder)
    assert rl4dlm_models.load(folder, mask_token="[MASK]").spec.mask_id == MASK + 1


@pytest.mark.parametrize(
    ("data", "mask", "eos"),
    [
        ({**LLADA_MOE, "mask_token_id": None}, 156895, 156892),
        ({**LLADA2_MINI, "mask_token_id": None, "eos_token_id": None}, 156895, 156892),
        ({**DREAM_7B, "mask_token_id": None}, 151666, 151643),
        ({**SDAR_8B, "mask_token_id": None, "eos_token_id": None, "pad_token_id": None}, 151669, 151643),
        ({**LLADA_8B, "mask_token_id": None}, 126336, 126081),
        (MDLM_OWT, 50257, 50256),
    ],
)
def test_a_released_model_has_its_released_ids_where_no_file_says_them(data, mask, eos, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(data))
    tokenizer_with(None, eos=False).save_pretrained(tmp_path)
    _, spec = rl4dlm_models.load_tokenizer(tmp_path)
    assert (spec.mask_id, spec.eos_id) == (mask, eos)


def test_the_end_of_text_may_be_in_the_generation_configuration_alone(tmp_path):
    data = {**CASES["sdar"][0], "eos_token_id": None}
    folder = make_folder(tmp_path / "m", data, tokenizer_with("<|MASK|>", eos=False))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [9, EOS]}))
    spec = rl4dlm_models.load(folder).spec
    assert spec.eos_id == 9 and {9, EOS} <= set(spec.stop_ids)


def test_a_conversion_without_a_mask_gets_one_and_says_so(tmp_path):
    """What dllm's conversion writes: the autoregressive tokenizer, and no mask in it."""
    for rows in (ROWS, 12):  # with a row to spare, and none
        data = {**CASES["a2d-qwen3"][0], "vocab_size": rows}
        folder = make_folder(tmp_path / str(rows), data, tokenizer_with(None))
        with pytest.warns(ModelWarning, match="<|mask|> was added with id 12.*Fix: set model.mask_token"):
            loaded = rl4dlm_models.load(folder, block_length=4)
        assert loaded.tokenizer.mask_token_id == loaded.spec.mask_id == 12
        assert loaded.spec.vocab_size == max(rows, 13)
        saved = rl4dlm_models.save(loaded, tmp_path / f"saved{rows}", loaded.tokenizer)
        again = rl4dlm_models.load(saved)
        assert again.spec == loaded.spec and torch.equal(again.module(IDS), loaded.module(IDS))


@pytest.mark.filterwarnings("ignore::rl4dlm.errors.ModelWarning")
def test_whether_the_head_is_tied_is_read_off_the_files_where_nothing_says_it(tmp_path):
    data = {**CASES["a2d-qwen3"][0], "mask_token_id": MASK}
    tied = make_folder(tmp_path / "tied", data, tokenizer_with("<|mask|>"))
    untied = make_folder(
        tmp_path / "untied", {**data, "tie_word_embeddings": False}, tokenizer_with("<|mask|>")
    )
    for folder, expected in ((tied, True), (untied, False)):
        silent = {key: value for key, value in data.items() if key != "tie_word_embeddings"}
        (folder / "config.json").write_text(json.dumps(silent))
        loaded = rl4dlm_models.load(folder)
        module = loaded.module
        assert (module.lm_head.weight is module.model.embed_tokens.weight) == expected
        count = sum(parameter.numel() for parameter in module.parameters())
        assert rl4dlm_models.inspect(folder).num_parameters == count
        again = rl4dlm_models.load(rl4dlm_models.save(loaded, folder / "again", loaded.tokenizer))
        assert torch.equal(again.module(IDS), module(IDS))


@pytest.mark.filterwarnings("ignore::rl4dlm.errors.ModelWarning")
def test_an_export_names_no_code_that_nobody_can_reach_and_every_end_of_text(tmp_path):
    code = {"AutoConfig": "modeling_llama.A2DLlamaConfig", "AutoModel": "me/code--modeling_llama.A2DLlama"}
    data = {**CASES["a2d-llama"][0], "auto_map": code, "_name_or_path": str(tmp_path)}
    loaded = rl4dlm_models.load(make_folder(tmp_path / "m", data, tokenizer_with("<|mask|>")))
    saved = rl4dlm_models.save(loaded, tmp_path / "saved", loaded.tokenizer)
    config = json.loads((saved / "config.json").read_text())
    assert config["auto_map"] == {"AutoModel": code["AutoModel"]} and str(tmp_path) not in json.dumps(config)
    generation = json.loads((saved / "generation_config.json").read_text())
    assert generation["eos_token_id"] == config["eos_token_id"] == [EOS, 9]


def test_numbers_may_be_written_as_other_writers_of_json_do():
    plain = find_family(SDAR_8B, "auto", "c").read_config(SDAR_8B, "c")
    floats = {
        k: float(v) if isinstance(v, int) and not isinstance(v, bool) else v for k, v in SDAR_8B.items()
    }
    listed = {**floats, "eos_token_id": [151643.0, 151645], "num_key_value_heads": 8, "pad_token_id": -1}
    config = find_family(listed, "auto", "c").read_config(listed, "c")
    assert config.eos_token_ids == (151643, 151645) and isinstance(config.hidden_size, int)
    expected = {**vars(plain), "published": 0, "eos_token_ids": 0}
    assert {**vars(config), "published": 0, "eos_token_ids": 0} == expected


def test_llada_may_leave_to_its_class_what_follows_from_other_fields():
    given = {**LLADA_8B, "n_kv_heads": None, "embedding_size": None, "mlp_hidden_size": None, "mlp_ratio": 3}
    config = find_family(given, "auto", "c").read_config(given, "c")
    assert (config.num_key_value_heads, config.vocab_size, config.intermediate_size) == (32, 126464, 12288)


def test_llada_in_the_words_of_transformers_is_the_same_network():
    renamed = {
        "d_model": "hidden_size", "n_layers": "num_hidden_layers", "n_heads": "num_attention_heads",
        "n_kv_heads": "num_key_value_heads", "mlp_hidden_size": "intermediate_size",
        "max_sequence_length": "max_position_embeddings",
    }  # fmt: skip
    data = {renamed.get(key, key): value for key, value in LLADA_8B.items()}
    family = find_family(data, "auto", "c")
    ours, theirs = family.read_config(data, "c"), family.read_config(LLADA_8B, "c")
    assert {**vars(ours), "published": 0} == {**vars(theirs), "published": 0}


def test_a_single_expert_of_llada2_keeps_its_weight_and_one_of_sdar_does_not():
    for data, renormalised in ((LLADA2_MINI, False), (SDAR_30B, True)):
        data = {**data, "num_experts_per_tok": 1}
        config = find_family(data, "auto", "c").read_config(data, "c")
        assert config.experts is not None and config.experts.renormalise is renormalised


def test_two_spellings_that_disagree_are_refused():
    data = {**SDAR_8B, "rope_parameters": {"rope_theta": 10.0, "rope_type": "default"}}
    with pytest.raises(
        ModelError, match="rope_theta = 1000000 contradicts rope_parameters.rope_theta = 10.0"
    ):
        find_family(data, "auto", "c").read_config(data, "c")


def test_a_key_that_nobody_knows_is_named_and_one_that_is_off_is_not():
    data = {**SDAR_8B, "gated_attention": True, "new_feature": 3, "other": False, "more": None, "note": ""}
    with pytest.warns(ModelWarning, match="^c: gated_attention, new_feature: rl4dlm does not know.*Fix:"):
        find_family(data, "auto", "c").read_config(data, "c")


def test_configurations_as_published_are_read_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error", ModelWarning)
        for name, (data, _, _) in CASES.items():
            for spelled in (data, as_four(data)):
                whole = {**spelled, "mask_token_id": MASK, "eos_token_id": EOS}
                find_family(whole, "auto", name).read_config(whole, name)
        engine = {"debug": False, "ep_size": 1, "micro_forward": False, "use_deepep": False, "top_k": 50}
        find_family(SDAR_8B, "auto", "c").read_config({**SDAR_8B, **engine}, "c")
