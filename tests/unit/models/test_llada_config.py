"""The strict reader of published configurations, and the published shapes of LLaDA-8B."""

from __future__ import annotations

import pytest
import torch
from published_configs import LLADA_8B

from rl4dlm.errors import ModelError
from rl4dlm.models import parameter_count
from rl4dlm.models.families import FAMILIES, find_family, parameter_shapes
from rl4dlm.models.network_config import made_config, read_config
from rl4dlm.recipe.sections import ModelInit


def test_the_published_configuration_has_the_published_parameter_count():
    assert parameter_count(LLADA_8B) == 8_015_581_184


def test_tensor_names_and_shapes_are_those_of_the_published_checkpoint():
    family = FAMILIES["llada"]
    shapes = parameter_shapes(family, family.read_config(LLADA_8B, "8B"))
    block = {
        "attn_norm.weight": (4096,),
        "ff_norm.weight": (4096,),
        "q_proj.weight": (4096, 4096),
        "k_proj.weight": (4096, 4096),
        "v_proj.weight": (4096, 4096),
        "attn_out.weight": (4096, 4096),
        "ff_proj.weight": (12288, 4096),
        "up_proj.weight": (12288, 4096),
        "ff_out.weight": (4096, 12288),
    }
    expected = {
        "model.transformer.wte.weight": (126464, 4096),
        "model.transformer.ln_f.weight": (4096,),
        "model.transformer.ff_out.weight": (126464, 4096),
        **{f"model.transformer.blocks.{i}.{k}": shape for i in range(32) for k, shape in block.items()},
    }
    assert len(shapes) == 291
    assert shapes == expected


def test_fewer_key_value_heads_shrink_their_projections():
    family = FAMILIES["llada"]
    shapes = parameter_shapes(family, family.read_config({**LLADA_8B, "n_kv_heads": 8}, "8B"))
    assert shapes["model.transformer.blocks.0.k_proj.weight"] == (1024, 4096)  # 8 heads of 128
    assert shapes["model.transformer.blocks.0.q_proj.weight"] == (4096, 4096)


def test_a_tied_head_is_counted_once():
    tied = parameter_count({**LLADA_8B, "weight_tying": True})
    assert tied == 8_015_581_184 - 126464 * 4096


def test_the_configuration_offers_the_usual_hugging_face_names():
    config = read_config("llada", LLADA_8B, "config.json")
    assert (config.hidden_size, config.num_hidden_layers, config.intermediate_size) == (4096, 32, 12288)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (32, 32, 128)
    assert config.max_position_embeddings == 4096
    assert config.to_dict() == LLADA_8B


REQUIRED = sorted(
    set(LLADA_8B)
    - {"model_type", "architectures", "mlp_ratio", "attention_layer_norm_with_affine", "alibi_bias_max"}
    - {"multi_query_attention", "init_fn", "init_std", "init_cutoff_factor", "init_device", "precision"}
    - {"flash_attention", "use_cache", "transformers_version"}
    # what the released class takes where they are absent or null
    - {"n_kv_heads", "embedding_size", "mlp_hidden_size", "pad_token_id"}
)


@pytest.mark.parametrize("key", REQUIRED)
def test_every_field_that_shapes_the_network_must_be_there(key):
    data = {k: v for k, v in LLADA_8B.items() if k != key}
    with pytest.raises(ModelError, match=f"some/config.json: required key '{key}' is missing.*Fix:"):
        read_config("llada", data, "some/config.json")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("alibi", True),
        ("layer_norm_type", "default"),
        ("block_type", "sequential"),
        ("block_group_size", 2),
        ("activation_type", "swiglu"),
        ("rope", False),
        ("rope_full_precision", False),
        ("include_bias", True),
        ("include_qkv_bias", True),
        ("attention_layer_norm", True),
        ("scale_logits", True),
        ("residual_dropout", 0.1),
        ("multi_query_attention", True),
        ("num_experts", 64),
        ("d_model", 4096.5),
        ("d_model", 2**40),
        ("n_layers", 10**9),
        ("embedding_size", 10**12),
        ("d_model", "4096"),
        ("n_layers", 0),
        ("n_layers", True),
        ("n_heads", 31),
        ("n_heads", 4096),
        ("n_kv_heads", 5),
        ("rope_theta", -1),
        ("rms_norm_eps", float("inf")),
        ("rms_norm_eps", float("nan")),
        ("weight_tying", 0),
        ("mask_token_id", 126464),
        ("eos_token_id", -1),
        ("vocab_size", 126465),
    ],
)
def test_an_unsupported_value_is_refused_by_name(key, value):
    with pytest.raises(ModelError, match=rf"some/config.json: {key} = .*Fix:"):
        read_config("llada", {**LLADA_8B, key: value}, "some/config.json")


def test_an_unknown_or_contradicting_family_is_refused():
    with pytest.raises(ModelError, match=r"model_type = 'gpt2' is not a family.*llada"):
        find_family({"model_type": "gpt2"}, "auto", "config.json")
    with pytest.raises(ModelError, match="model_type = None"):
        find_family({}, "llada", "config.json")
    with pytest.raises(ModelError, match="the recipe says model.family = 'dream'"):
        find_family(LLADA_8B, "dream", "config.json")
    assert find_family(LLADA_8B, "auto", "config.json") is FAMILIES["llada"]


def test_a_made_configuration_has_every_published_field():
    init = ModelInit(d_model=64, n_heads=2)
    config = made_config("llada", init, vocab_size=30, mask_id=27, eos_id=28, pad_id=28)
    assert set(config.to_dict()) == set(LLADA_8B) - {"transformers_version"}
    assert config.head_dim == 32 and config.vocab_size == 30


def test_sizes_that_do_not_fit_are_refused_in_the_words_of_the_recipe():
    with pytest.raises(ModelError, match="model.init: n_heads = 5 does not split d_model = 64"):
        made_config(
            "llada", ModelInit(d_model=64, n_heads=5), vocab_size=30, mask_id=27, eos_id=28, pad_id=28
        )


def test_initial_weights_have_the_published_spread():
    family = FAMILIES["llada"]
    init = ModelInit(d_model=64, n_layers=2, n_heads=2, mlp_hidden_size=256)
    module = family.build(made_config("llada", init, vocab_size=512, mask_id=27, eos_id=28, pad_id=28))
    family.initialise(module, torch.Generator().manual_seed(0))
    std = {name: parameter.std().item() for name, parameter in module.named_parameters()}
    # 1 / sqrt(inputs); outputs of layer l = 1, 2 further divided by sqrt(2 l)
    expected = {
        "wte": 64**-0.5,
        "blocks.0.up_proj": 64**-0.5,
        "blocks.0.attn_out": (2 * 64) ** -0.5,
        "blocks.1.attn_out": (4 * 64) ** -0.5,
        "blocks.1.ff_out": (4 * 256) ** -0.5,
        "ff_out": 64**-0.5,
    }
    for name, value in expected.items():
        assert std[f"model.transformer.{name}.weight"] == pytest.approx(value, rel=0.05)
    assert torch.equal(module.model.transformer["ln_f"].weight, torch.ones(64))
