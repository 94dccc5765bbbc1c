"""Mixtures of experts against transformers, and LLaDA2 against its equations, token by token."""

from __future__ import annotations

import math

import pytest
import torch
from family_toys import make_family
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from rl4dlm.errors import RecipeError
from rl4dlm.models import describe
from rl4dlm.models.decoder import Decoder
from rl4dlm.models.moe import ExpertsConfig, Router, SparseMLP
from rl4dlm.models.network_config import NetworkConfig, read_config
from rl4dlm.recipe.sections import RolloutConfig
from rl4dlm.run.preflight import check_graphs

IDS = torch.tensor([[3, 1, 13, 4, 13, 5, 9, 2, 13, 6, 13, 3]])


def theirs(config: NetworkConfig, weights: dict[str, Tensor]) -> torch.nn.Module:
    """transformers' Qwen3-MoE with these weights; it keeps all experts of a layer in two tensors."""
    experts = config.experts
    assert experts is not None
    published = AutoConfig.for_model(
        "qwen3_moe",
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        rms_norm_eps=config.rms_norm_eps,
        vocab_size=config.vocab_size,
        tie_word_embeddings=False,
        rope_parameters=dict(config.rope),
        num_experts=experts.num_experts,
        num_experts_per_tok=experts.num_chosen,
        moe_intermediate_size=experts.width,
        norm_topk_prob=experts.renormalise,
    )
    published._attn_implementation = "sdpa"
    model = AutoModelForCausalLM.from_config(published).eval()
    state = {name: tensor for name, tensor in weights.items() if ".experts." not in name}
    for layer in range(config.num_hidden_layers):
        at = f"model.layers.{layer}.mlp.experts"
        parts = [
            [weights[f"{at}.{j}.{part}_proj.weight"] for j in range(experts.num_experts)]
            for part in ("gate", "up", "down")
        ]
        gate_up = [torch.cat(pair) for pair in zip(parts[0], parts[1], strict=True)]
        state[f"{at}.gate_up_proj"] = torch.stack(gate_up)
        state[f"{at}.down_proj"] = torch.stack(parts[2])
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("family", ["llada_moe", "sdar"])
def test_a_softmax_mixture_is_qwen3_moe_whether_it_renormalises_or_not(family):
    if family == "llada_moe":
        module = make_family("llada_moe", None, num_experts=6, num_experts_per_tok=3).module
        visible = torch.ones(1, 1, 12, 12, dtype=torch.bool)
    else:
        module = _sdar_moe()
        block = torch.arange(12) // 4
        visible = (block[None, :] <= block[:, None])[None, None]
    config = module.config
    assert config.experts.renormalise == (family == "sdar")
    model = theirs(config, {name: p.detach() for name, p in module.named_parameters()})
    with torch.no_grad():
        expected = model(input_ids=IDS, attention_mask=visible, use_cache=False).logits
        torch.testing.assert_close(module(IDS)[..., :13], expected[..., :13], rtol=0, atol=5e-6)


def _sdar_moe() -> Decoder:
    """SDAR's mixture, of which there is none from scratch."""
    data = {
        **make_family("sdar", 4).module.config.to_dict(),
        "model_type": "sdar_moe",
        "num_experts": 6,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 24,
        "norm_topk_prob": True,
    }
    module = Decoder(read_config("sdar", data, "test"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.2 if parameter.dim() == 1 else 0.0, 0.2, generator=generator)
    return module.eval()


def explicit_llada2(module: Decoder, ids: list[int]) -> Tensor:
    """One row, written out from the specification in float64: `[length, vocab]`."""
    config = module.config
    experts = config.experts
    weights = {name: t.detach().double() for name, t in module.state_dict().items()}
    heads, kv_heads, size, turned = config.num_attention_heads, config.num_key_value_heads, config.head_dim, 4
    length = len(ids)

    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps).sqrt() * weights[name]

    def rope(u: Tensor, position: int) -> Tensor:
        """Dimensions 0..3 of 8 turn, in two pairs (0, 2) and (1, 3)."""
        out = u.clone()
        for j in range(turned // 2):
            angle = position * config.rope["rope_theta"] ** (-2 * j / turned)
            one, two = u[j], u[j + turned // 2]
            out[j] = one * math.cos(angle) - two * math.sin(angle)
            out[j + turned // 2] = two * math.cos(angle) + one * math.sin(angle)
        return out

    def attention(x: Tensor, at: str) -> Tensor:
        rows = (x @ weights[f"{at}.query_key_value.weight"].T).reshape(length, heads + 2 * kv_heads, size)
        query = norm(rows[:, :heads], f"{at}.query_layernorm.weight")
        key = norm(rows[:, heads : heads + kv_heads], f"{at}.key_layernorm.weight")
        value = rows[:, heads + kv_heads :]
        mixed = torch.zeros(length, heads, size, dtype=torch.float64)
        for head in range(heads):
            shared = head // (heads // kv_heads)
            for i in range(length):
                seen = [j for j in range(length) if j // 4 <= i // 4]
                q = rope(query[i, head], i)
                logits = torch.stack([q @ rope(key[j, shared], j) for j in seen]) / math.sqrt(size)
                for share, j in zip(logits.softmax(0), seen, strict=True):
                    mixed[i, head] += share * value[j, shared]
        return mixed.reshape(length, -1) @ weights[f"{at}.dense.weight"].T

    def swiglu(x: Tensor, at: str) -> Tensor:
        gate, up = x @ weights[f"{at}.gate_proj.weight"].T, x @ weights[f"{at}.up_proj.weight"].T
        return (gate * gate.sigmoid() * up) @ weights[f"{at}.down_proj.weight"].T

    def mixture(x: Tensor, at: str) -> Tensor:
        score = (weights[f"{at}.gate.weight"] @ x).sigmoid()
        choice = (score + weights[f"{at}.gate.expert_bias"]).tolist()
        per_group = len(choice) // experts.num_groups
        groups = [range(g * per_group, (g + 1) * per_group) for g in range(experts.num_groups)]
        strength = [sum(sorted((choice[j] for j in group), reverse=True)[:2]) for group in groups]
        best = sorted(range(len(groups)), key=lambda g: -strength[g])[: experts.num_kept_groups]
        allowed = [j for g in best for j in groups[g]]
        chosen = sorted(allowed, key=lambda j: -choice[j])[: experts.num_chosen]
        total = sum(score[j] for j in chosen) + 1e-20
        routed = sum(score[j] / total * 2.5 * swiglu(x, f"{at}.experts.{j}") for j in chosen)
        return routed + swiglu(x, f"{at}.shared_experts")

    x = weights["model.word_embeddings.weight"][ids]
    for layer in range(config.num_hidden_layers):
        at = f"model.layers.{layer}"
        x = x + attention(norm(x, f"{at}.input_layernorm.weight"), f"{at}.attention")
        y = norm(x, f"{at}.post_attention_layernorm.weight")
        x = x + (swiglu(y, f"{at}.mlp") if layer == 0 else torch.stack([mixture(t, f"{at}.mlp") for t in y]))
    return norm(x, "model.norm.weight") @ weights["lm_head.weight"].T


def test_llada2_is_what_its_equations_say():
    module = make_family("llada2", 4, n_layers=3, num_experts=8, num_experts_per_tok=3).module
    generator = torch.Generator().manual_seed(5)
    for layer in module.model.layers[1:]:
        layer.mlp.gate.expert_bias.normal_(0.0, 0.2, generator=generator)
    with torch.no_grad():
        logits = module(IDS)[0, :, :13].double()
    torch.testing.assert_close(logits, explicit_llada2(module, IDS[0].tolist())[:, :13], rtol=0, atol=2e-5)


# Four experts in two groups, two kept of one group: the bias lifts the second group, whose scores are lower.
GROUPED = ExpertsConfig(4, 2, 8, renormalise=True, num_groups=2, num_kept_groups=1, scale=2.0)


def test_the_bias_of_a_router_steers_the_choice_and_not_the_weights():
    router = Router(1, GROUPED)
    router.weight.data = torch.tensor([[2.0], [1.0], [0.0], [-1.0]])
    x = torch.ones(1, 1)
    weights, chosen = router(x)
    assert chosen.tolist() == [[0, 1]]
    router.expert_bias += torch.tensor([0.0, 0.0, 0.9, 0.9])
    weights, chosen = router(x)
    assert chosen.tolist() == [[2, 3]]
    score = torch.tensor([0.0, -1.0]).sigmoid()  # without the bias
    torch.testing.assert_close(weights, 2.0 * score[None] / score.sum())


def test_a_cast_leaves_the_bias_of_a_router_in_float32():
    mixture = SparseMLP(8, GROUPED)
    mixture.gate.expert_bias += 1 / 3
    mixture.bfloat16()
    assert mixture.gate.expert_bias.dtype == torch.float32
    assert torch.equal(mixture.gate.expert_bias, torch.full((4,), 1 / 3))
    assert mixture.gate.weight.dtype == torch.bfloat16


def test_experts_without_tokens_run_only_where_gradients_are_kept(monkeypatch):
    mixture = SparseMLP(8, ExpertsConfig(4, 1, 8, renormalise=False))
    torch.nn.init.normal_(mixture.gate.weight)
    ran = []
    for index, expert in enumerate(mixture.experts):
        expert.register_forward_hook(lambda *_, index=index: ran.append(index))
    x = torch.randn(1, 1, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mixture(x)
    assert len(ran) == 1
    ran.clear()
    mixture(x).sum().backward()
    assert ran == [0, 1, 2, 3]
    assert all(expert.down_proj.weight.grad is not None for expert in mixture.experts)


@pytest.mark.parametrize(("family", "block_length"), [("llada_moe", None), ("llada2", 4)])
def test_layers_with_experts_cannot_be_recorded(family, block_length):
    facts = describe(make_family(family, block_length))
    check_graphs(RolloutConfig(), facts)
    with pytest.raises(RecipeError, match=r"rollout.cuda_graphs = true.*\n.*cuda_graphs=false"):
        check_graphs(RolloutConfig(cuda_graphs=True), facts)


def test_dense_layers_can_be_recorded():
    check_graphs(RolloutConfig(cuda_graphs=True), describe(make_family("sdar", 4)))
