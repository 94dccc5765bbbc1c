"""Model families behind the `Denoiser` contract, their folders, tokenizers and adapters.

Every quirk of a model ends here.
"""

from __future__ import annotations

from rl4dlm.models.card import model_card
from rl4dlm.models.decoder import Decoder
from rl4dlm.models.families import FAMILIES, parameter_count
from rl4dlm.models.hub import push, require_pushable
from rl4dlm.models.llada import LLaDA
from rl4dlm.models.loading import (
    LoadedModel,
    ModelFacts,
    create,
    denoiser,
    describe,
    inspect,
    load,
    load_tokenizer,
    options_of,
    plan,
)
from rl4dlm.models.lora import (
    add_lora,
    has_adapters,
    load_trainable_state,
    merge_into,
    merged_state_dict,
    reference,
    save_adapter,
    trainable_state,
)
from rl4dlm.models.network_config import NetworkConfig
from rl4dlm.models.quantise import require_quantisable
from rl4dlm.models.saving import save
from rl4dlm.models.tokenizers import CHAT_TEMPLATE, build_bpe_tokenizer, build_char_tokenizer, encode
from rl4dlm.models.unmask_policy import (
    UnmaskNet,
    UnmaskNetConfig,
    load_policy,
    new_policy,
    open_policy,
    policy_net,
    save_policy,
)
from rl4dlm.models.value_head import ValueModel, load_value_model

__all__ = [
    "CHAT_TEMPLATE",
    "FAMILIES",
    "Decoder",
    "LLaDA",
    "LoadedModel",
    "ModelFacts",
    "NetworkConfig",
    "UnmaskNet",
    "UnmaskNetConfig",
    "ValueModel",
    "add_lora",
    "build_bpe_tokenizer",
    "build_char_tokenizer",
    "create",
    "denoiser",
    "describe",
    "encode",
    "has_adapters",
    "inspect",
    "load",
    "load_policy",
    "load_tokenizer",
    "load_trainable_state",
    "load_value_model",
    "merge_into",
    "merged_state_dict",
    "model_card",
    "new_policy",
    "open_policy",
    "options_of",
    "parameter_count",
    "plan",
    "policy_net",
    "push",
    "reference",
    "require_pushable",
    "require_quantisable",
    "save",
    "save_adapter",
    "save_policy",
    "trainable_state",
]
