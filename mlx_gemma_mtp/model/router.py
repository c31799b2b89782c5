"""The router of a mixture-of-experts layer: it chooses the experts of each token."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from mlx_gemma_mtp.model.config import TargetConfig


class ExpertRouter(nn.Module):
    """Chooses the experts of each token and their shares of the output."""

    def __init__(self, config: TargetConfig) -> None:
        super().__init__()
        self._top_k = config.top_k_experts
        self._root_size = config.hidden_size**-0.5
        self.proj = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.scale = mx.ones((config.hidden_size,))
        self.per_expert_scale = mx.ones((config.num_experts,))

    def __call__(self, normed: mx.array) -> tuple[mx.array, mx.array]:
        """normed [N, H], by `rms_norm` -> experts [N, k] and their shares [N, k], in its dtype.

        The softmax over the chosen scores alone equals that over all, scaled to sum to one.
        """
        scores = self.proj(normed * self.scale * self._root_size).astype(mx.float32)
        experts = mx.argpartition(scores, -self._top_k, axis=-1)[:, -self._top_k :]
        experts = mx.contiguous(experts)
        chosen = mx.take_along_axis(scores, experts, axis=-1)
        shares = mx.softmax(chosen, axis=-1) * self.per_expert_scale[experts]
        return experts, shares.astype(normed.dtype)
