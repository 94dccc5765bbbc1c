"""Published configurations at full size, on the meta device: counts, names, facts; no weight exists."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from published_configs import (
    A2D_QWEN3,
    BD3LM_OWT,
    DREAM_7B,
    LLADA2_MINI,
    LLADA_8B,
    LLADA_MOE,
    MDLM_OWT,
    SDAR_8B,
    SDAR_30B,
    TRADO_4B,
)

from rl4dlm.errors import ModelError
from rl4dlm.models import parameter_count
from rl4dlm.models.families import find_family, tensor_shapes


@functools.cache
def _shapes(text: str) -> dict[str, tuple[int, ...]]:
    data = json.loads(text)
    family = find_family(data, "auto", "config.json")
    return tensor_shapes(family, family.read_config(data, "config.json"))


def shapes(data: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes; building tens of thousands of modules takes seconds, so each is built once."""
    return _shapes(json.dumps(data))


def layers(data: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The same configuration with fewer layers."""
    frequencies = {"moe_layer_freq": [1] * number} if "moe_layer_freq" in data else {}
    return {**data, "num_hidden_layers": number, **frequencies}


def count(data: Mapping[str, Any]) -> int:
    """Parameters, without what is stored and not trained; of a mixture from two and three of its layers."""
    if "num_experts" in data and data["num_hidden_layers"] > 3:
        two, three = count(layers(data, 2)), count(layers(data, 3))
        return two + (data["num_hidden_layers"] - 2) * (three - two)
    buffers = ("inv_freq", "expert_bias", "sampling_eps_min", "sampling_eps_max")
    return sum(math.prod(shape) for name, shape in shapes(data).items() if not name.endswith(buffers))


# Counts from the published indices and the arithmetic of the specification (models 1); those of the Qwen3
# sizes from Qwen's own model cards: 4.02, 0.596 and 30.5 billion.
COUNTS = {
    "llada": (LLADA_8B, "llada", 8_015_581_184),
    "dream": (DREAM_7B, "dream", 7_615_616_512),
    "sdar": (SDAR_8B, "sdar", 8_190_735_360),
    "trado-4b": (TRADO_4B, "sdar", 4_022_468_096),
    "sdar-30b": (SDAR_30B, "sdar", 30_532_122_624),
    "a2d": (A2D_QWEN3, "a2d", 596_049_920),
}


@pytest.mark.parametrize("name", COUNTS)
def test_a_published_model_has_its_published_number_of_parameters(name):
    data, family, expected = COUNTS[name]
    assert find_family(data, "auto", "config.json").name == family
    assert count(data) == expected


def test_the_count_that_a_dry_run_prints_leaves_out_what_is_not_trained():
    assert (
        parameter_count(BD3LM_OWT) == count(BD3LM_OWT) == sum(map(math.prod, shapes(BD3LM_OWT).values())) - 34
    )


# 7.36 billion and 16.256 billion (specs: models 1); 110 million without the two matrices over the vocabulary,
# which have 38.6 million each.
@pytest.mark.parametrize(
    ("data", "family", "about"),
    [
        (LLADA_MOE, "llada_moe", 7.36e9),
        (LLADA2_MINI, "llada2", 16.256e9),
        (MDLM_OWT, "mdlm", 170e6),
        (BD3LM_OWT, "bd3lm", 170e6),
    ],
)
def test_a_mixture_or_a_dit_has_about_its_published_number_of_parameters(data, family, about):
    assert find_family(data, "auto", "config.json").name == family
    assert count(data) == pytest.approx(about, rel=2e-3 if about > 1e9 else 0.02)


def test_tensors_have_their_published_number_names_and_shapes():
    dream, sdar = shapes(DREAM_7B), shapes(SDAR_8B)
    assert len(shapes(LLADA_8B)) == 32 * 9 + 3 and len(dream) == 28 * 12 + 3 and len(sdar) == 36 * 11 + 3
    assert dream["model.layers.27.self_attn.k_proj.bias"] == (512,)
    assert dream["lm_head.weight"] == (152064, 3584)
    assert sdar["model.layers.0.self_attn.q_norm.weight"] == (128,)
    assert sdar["model.layers.0.self_attn.k_proj.weight"] == (1024, 4096)
    assert shapes(TRADO_4B)["model.layers.0.self_attn.o_proj.weight"] == (2560, 4096)


def test_mixtures_have_a_tensor_per_expert_as_published():
    moe, mini, sdar = (shapes(layers(data, 2)) for data in (LLADA_MOE, LLADA2_MINI, SDAR_30B))
    assert moe["model.layers.1.mlp.experts.63.down_proj.weight"] == (2048, 1024)
    assert moe["model.layers.0.mlp.gate.weight"] == (64, 2048)
    assert mini["model.word_embeddings.weight"] == (157184, 2048)
    assert mini["model.layers.0.mlp.down_proj.weight"] == (2048, 5120)
    assert mini["model.layers.1.attention.query_key_value.weight"] == (3072, 2048)
    assert mini["model.layers.1.mlp.gate.expert_bias"] == (256,)
    assert mini["model.layers.1.mlp.shared_experts.up_proj.weight"] == (512, 2048)
    assert "model.layers.0.mlp.gate.weight" not in mini
    assert sdar["model.layers.1.mlp.experts.127.gate_proj.weight"] == (768, 2048)


def test_research_models_have_the_names_of_their_published_wrapper():
    mdlm, bd3lm = shapes(MDLM_OWT), shapes(BD3LM_OWT)
    assert mdlm["backbone.vocab_embed.embedding"] == (50258, 768)
    assert mdlm["backbone.sigma_map.mlp.0.weight"] == (128, 256)
    assert mdlm["backbone.rotary_emb.inv_freq"] == (32,)
    assert mdlm["backbone.blocks.11.adaLN_modulation.weight"] == (6 * 768, 128)
    assert mdlm["backbone.output_layer.linear.bias"] == (50258,)
    assert bd3lm["sampling_eps_min"] == () and "sampling_eps_min" not in mdlm
    plain = shapes({**BD3LM_OWT, "adaln": False})
    assert not [name for name in plain if "adaLN" in name or "sigma_map" in name]


def test_special_ids_and_attention_are_read_off_the_configuration():
    def facts(data: Mapping[str, Any]) -> tuple[Any, ...]:
        family = find_family(data, "auto", "config.json")
        config = family.read_config(data, "config.json")
        return config.mask_token_id, config.eos_token_id, config.block_length, config.logit_shift

    assert facts(LLADA_8B) == (126336, 126081, None, 0)
    assert facts(DREAM_7B) == (151666, 151643, None, 1)
    assert facts(SDAR_8B) == (151669, 151643, 4, 0)
    assert facts(LLADA_MOE) == (156895, 156892, None, 0)
    assert facts(LLADA2_MINI) == (156895, 156892, 32, 0)
    assert facts(MDLM_OWT) == (50257, 50256, None, 0)
    assert facts(BD3LM_OWT) == (50257, 50256, 4, 0)
    assert facts(A2D_QWEN3) == (151669, 151643, None, 0)


@pytest.mark.parametrize(
    ("data", "key", "value"),
    [
        (DREAM_7B, "hidden_act", "gelu"),
        (DREAM_7B, "use_sliding_window", True),
        (DREAM_7B, "num_key_value_heads", 3),
        (DREAM_7B, "num_attention_heads", 27),
        (DREAM_7B, "rope_scaling", {"type": "dynamic", "factor": 2.0}),
        (DREAM_7B, "mask_token_id", 152064),
        (DREAM_7B, "eos_token_id", "x"),
        (SDAR_8B, "block_size", 0),
        (SDAR_8B, "head_dim", 0),
        (SDAR_8B, "attention_dropout", 0.1),
        (SDAR_30B, "decoder_sparse_step", 2),
        (SDAR_30B, "norm_topk_prob", 1),
        (SDAR_30B, "num_experts_per_tok", 129),
        (SDAR_30B, "num_experts", 2**40),
        (SDAR_8B, "num_hidden_layers", 10**9),
        (SDAR_8B, "attn_logit_softcapping", 30.0),
        (SDAR_8B, "quantization_config", {"quant_method": "gptq", "bits": 4}),
        (SDAR_8B, "num_experts", 8),
        (SDAR_8B, "layer_types", ["full_attention"] * 35 + ["sliding_attention"]),
        (SDAR_8B, "rope_scaling", {"rope_type": "linear"}),
        (SDAR_8B, "rope_scaling", {"rope_type": "yarn", "factor": -2}),
        (SDAR_8B, "partial_rotary_factor", 0.5),
        (DREAM_7B, "mlp_bias", True),
        (LLADA_8B, "rope_scaling", {"type": "linear", "factor": 2.0}),
        (LLADA_MOE, "moe_router_enable_expert_bias", True),
        (LLADA2_MINI, "topk_group", 9),
        (LLADA2_MINI, "num_experts_per_tok", 129),
        (LLADA2_MINI, "use_bias", True),
        (LLADA2_MINI, "norm_head", True),
        (LLADA_MOE, "partial_rotary_factor", -1),
        (LLADA_MOE, "shared_expert_intermediate_size", 8),
        (LLADA_MOE, "moe_layer_freq", [0] * 16),
        (LLADA2_MINI, "score_function", "softmax"),
        (LLADA2_MINI, "n_group", 7),
        (LLADA2_MINI, "use_qk_norm", False),
        (MDLM_OWT, "time_conditioning", True),
        (MDLM_OWT, "n_heads", 5),
        (BD3LM_OWT, "causal", True),
        (BD3LM_OWT, "adaln", 1),
        (BD3LM_OWT, "block_size", -4),
    ],
)
def test_a_value_of_another_architecture_is_refused_by_name(data, key, value):
    family = find_family(data, "auto", "config.json")
    with pytest.raises(ModelError, match=rf"some/config.json: {key} = .*Fix:"):
        family.read_config({**data, key: value}, "some/config.json")


REQUIRED = {
    "dream": (
        DREAM_7B,
        ["hidden_size", "intermediate_size", "num_hidden_layers", "rms_norm_eps", "vocab_size"],
    ),
    "sdar": (SDAR_8B, ["block_size", "max_position_embeddings", "mask_token_id", "rope_theta"]),
    "llada_moe": (LLADA_MOE, ["expert_intermediate_size", "rope_theta", "num_experts_per_tok"]),
    "llada2": (LLADA2_MINI, ["moe_intermediate_size", "num_experts", "rms_norm_eps", "rope_theta"]),
    "bd3lm": (BD3LM_OWT, ["block_size", "adaln", "var_min", "cond_dim"]),
}


@pytest.mark.parametrize(
    ("family", "key"), [(name, key) for name, (_, keys) in REQUIRED.items() for key in keys]
)
def test_a_field_that_shapes_the_network_must_be_there(family, key):
    data = {name: value for name, value in REQUIRED[family][0].items() if name != key}
    with pytest.raises(ModelError, match=f"some/config.json: required key '{key}' is missing.*Fix:"):
        find_family(data, "auto", "config.json").read_config(data, "some/config.json")


def test_rope_may_be_written_as_newer_versions_of_transformers_do():
    data = {key: value for key, value in SDAR_8B.items() if key not in ("rope_theta", "rope_scaling")}
    data["rope_parameters"] = {"rope_theta": 1000000, "rope_type": "default"}
    config = find_family(data, "auto", "c").read_config(data, "c")
    assert config.rope == {"rope_theta": 1e6, "rope_type": "default"}
    assert torch.Size(shapes(data)["lm_head.weight"]) == torch.Size([151936, 4096])
