"""The drafter's chain, at every position of a text at once, as it runs while speculating.

At query row i the newest token is i + 1; the drafter sees the target's keys and values up to i, and
all its steps stand at position i. Step 1 reads the target's hidden state of row i, every later
step the drafter's own post-projected state. Feeding the text's tokens as drafts is exact: a draft
matters only while all before it were right.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import Gemma4AssistantForCausalLM, Gemma4ForCausalLM


class Reading(NamedTuple):
    """What a target's pass over a text leaves for the drafter."""

    hidden: Tensor  # [B, T, H], after the final norm
    shared_kv: Mapping[str, tuple[Tensor, Tensor]]  # of the last layer of each type


def read(
    target: Gemma4ForCausalLM, tokens: Tensor, positions: Tensor, masks: dict[str, Tensor]
) -> Reading:
    output = target.model(
        input_ids=tokens,
        attention_mask=masks,
        position_ids=positions,
        use_cache=False,
        return_shared_kv_states=True,
    )
    return Reading(output.last_hidden_state, output.shared_kv_states)


def head(target: Gemma4ForCausalLM, hidden: Tensor) -> Tensor:
    """The target's logits in float32, soft cap included."""
    cap = target.config.final_logit_softcapping
    return torch.tanh(target.lm_head(hidden).float() / cap) * cap


def draft_hidden(
    drafter: Gemma4AssistantForCausalLM,
    target: Gemma4ForCausalLM,
    reading: Reading,
    tokens: Tensor,
    positions: Tensor,
    masks: dict[str, Tensor],
    num_steps: int,
) -> Iterator[Tensor]:
    """For each step j = 1..num_steps hidden states [B, T, h]: row i drafts token i + 1 + j."""
    state = reading.hidden
    for step in range(1, num_steps + 1):
        newest = target.model.embed_tokens(tokens.roll(-step, dims=1))
        inputs = drafter.pre_projection(torch.cat([newest.to(state.dtype), state], dim=-1))
        hidden = drafter.model(
            inputs_embeds=inputs,
            attention_mask=masks,
            position_ids=positions,
            shared_kv_states=reading.shared_kv,
            use_cache=False,
        ).last_hidden_state
        yield hidden
        state = drafter.post_projection(hidden)
