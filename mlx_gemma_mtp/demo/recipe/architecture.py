"""The shapes of the demo pair: a small mixture of experts like Gemma 4 26B-A4B, and its drafter.

Transformers' own classes, with two choices of ours that matter only in training: the initial
values, and a way to run the experts that never asks the GPU for a count. Knows no data.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    Gemma4AssistantConfig,
    Gemma4AssistantForCausalLM,
    Gemma4ForCausalLM,
    Gemma4TextConfig,
    GenerationConfig,
)
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

WINDOW = 128
# Equal in both, since the drafter reads the target's keys and values.
ATTENTION = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "num_global_key_value_heads": 2,
    "head_dim": 32,
    "global_head_dim": 64,
    "attention_k_eq_v": True,
    "sliding_window": WINDOW,
    "max_position_embeddings": 4096,
    "hidden_size_per_layer_input": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
END_TOKENS = [1, 106, 50]


def build_target(vocabulary_size: int) -> Gemma4ForCausalLM:
    config = Gemma4TextConfig(
        vocab_size=vocabulary_size,
        vocab_size_per_layer_input=vocabulary_size,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=6,
        layer_types=["sliding_attention"] * 5 + ["full_attention"],
        enable_moe_block=True,
        num_experts=16,
        top_k_experts=4,
        moe_intermediate_size=64,
        final_logit_softcapping=30.0,
        **ATTENTION,
    )
    target = Gemma4ForCausalLM(config)
    _prepare(target)
    target.generation_config = GenerationConfig(
        bos_token_id=2,
        eos_token_id=END_TOKENS,
        pad_token_id=0,
        do_sample=True,
        temperature=1.0,
        top_k=64,
        top_p=0.95,
    )
    return target


def build_drafter(target: Gemma4ForCausalLM) -> Gemma4AssistantForCausalLM:
    text = Gemma4TextConfig(
        vocab_size=target.config.vocab_size,
        vocab_size_per_layer_input=0,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_kv_shared_layers=4,
        layer_types=["sliding_attention"] * 3 + ["full_attention"],
        **ATTENTION,
    )
    config = Gemma4AssistantConfig(
        text_config=text,
        backbone_hidden_size=target.config.hidden_size,
        use_ordered_embeddings=False,
    )
    drafter = Gemma4AssistantForCausalLM(config)
    _prepare(drafter)
    return drafter


@torch.no_grad()
def _prepare(model: nn.Module) -> None:
    """Start attention and routing at a useful temperature.

    Gemma 4 has no 1/sqrt(head_dim) in its attention and divides router inputs by sqrt(hidden), so
    the weights have to carry these scales.
    """
    for name, parameter in model.named_parameters():
        if name.endswith("q_norm.weight"):
            parameter.fill_(parameter.numel() ** -0.5)
        elif name.endswith("router.scale"):
            parameter.fill_(parameter.numel() ** 0.5)


def every_expert(experts: nn.Module, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """All experts on all tokens in two matrix products; those that were not chosen get weight zero.

    Four times the arithmetic of the chosen ones alone, which is little while experts are narrow; in
    return nothing is sorted, gathered or counted on the host.
    """
    num_experts, _, hidden_size = experts.gate_up_proj.shape
    share = hidden.new_zeros(len(hidden), num_experts).scatter(1, chosen, weights.to(hidden.dtype))
    gate_up = functional.linear(hidden, experts.gate_up_proj.flatten(0, 1))
    gate, up = gate_up.unflatten(-1, (num_experts, -1)).chunk(2, dim=-1)
    inner = experts.act_fn(gate) * up * share[..., None]  # [tokens, experts, moe_intermediate]
    down = experts.down_proj.transpose(0, 1).reshape(hidden_size, -1)
    return functional.linear(inner.flatten(1), down).to(hidden.dtype)


def use_every_expert(target: Gemma4ForCausalLM) -> None:
    """Run the experts with `every_expert`. The choice is not saved with the model."""
    ALL_EXPERTS_FUNCTIONS.register("every_expert", every_expert)
    target.config._experts_implementation = "every_expert"
