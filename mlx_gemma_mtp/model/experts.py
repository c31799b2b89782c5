"""The experts of a mixture-of-experts layer, and the router that chooses them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlx_gemma_mtp.device import backend
from mlx_gemma_mtp.model.config import TargetConfig
from mlx_gemma_mtp.model.layers import ON_METAL, gelu_tanh

# From this many (token, expert) pairs on they are sorted by expert, so that one read of an expert's
# weights serves all of its tokens. For fewer the sort costs more than it saves.
SORT_EXPERTS_FROM = 64

# Metal has a fast gather_mm kernel for sorted rows. CUDA's is not measured for the few pairs that
# are computed one by one there.
SORTED_GATHER_MM = ON_METAL

# From this many tokens on, every expert computes every token, with weight zero for tokens that did
# not choose it. That is cheapest on CUDA, which has no kernel that shares the reads of chosen
# experts. One layer of 26B-A4B in bfloat16 on an H100: 590 to 640 us for 6 to 96 tokens; chosen
# pairs take 332 us for 8 tokens, 584 us for 16, and more with each further one.
ALL_EXPERTS_FROM = 16 if backend() == "cuda" else None

# From this many tokens on, experts on CUDA get their tokens in tiles of TILE_HEIGHT rows, so that a
# read of an expert serves a tile. One layer of 26B-A4B in bfloat16 on an H200 takes 1,348 us for
# 512 tokens and 2,597 for 2,048; every expert for every token takes 1,372 and 5,026. In 4 bits
# 1,633 and 3,173 us, and 5,880 and 22,209.
TILES_FROM = 512 if backend() == "cuda" else None
TILE_HEIGHT = 64

Way = Literal["chosen", "all", "tiles"]


class ExpertLinear(nn.Module):
    """One linear map per expert, weight [experts, out, in]; each input goes to its expert."""

    def __init__(self, num_experts: int, in_dims: int, out_dims: int) -> None:
        super().__init__()
        self.weight = mx.zeros((num_experts, out_dims, in_dims))

    def __call__(
        self, x: mx.array, experts: mx.array, in_order: bool, rows: mx.array | None
    ) -> mx.array:
        """Entries of x [N, R, in] through experts [M]: [M, R, out].

        rows [M]: the entry of x for each expert; None: entry m for expert m, and M = N.
        in_order: experts are sorted.
        """
        return mx.gather_mm(
            x,
            self.weight.swapaxes(-1, -2),
            lhs_indices=rows,
            rhs_indices=experts,
            sorted_indices=in_order and SORTED_GATHER_MM,
        )

    def all(self, x: mx.array) -> mx.array:
        """x [experts, N, in], or [1, N, in] if all experts get the same -> [experts, N, out]."""
        return x @ self.weight.swapaxes(-1, -2)

    def to_quantized(
        self, group_size: int = 64, bits: int = 4, mode: str = "affine", **_: object
    ) -> QuantizedExpertLinear:
        """The same map with quantized weights; `mlx.nn.quantize` calls this."""
        return QuantizedExpertLinear(self.weight, group_size, bits, mode)


class QuantizedExpertLinear(nn.Module):
    """ExpertLinear with MLX-quantized weights."""

    def __init__(self, weight: mx.array, group_size: int, bits: int, mode: str) -> None:
        super().__init__()
        self.group_size, self.bits, self.mode = group_size, bits, mode
        self.weight, self.scales, *biases = mx.quantize(weight, group_size, bits, mode)
        self.biases = biases[0] if biases else None
        self.freeze()

    def __call__(
        self, x: mx.array, experts: mx.array, in_order: bool, rows: mx.array | None
    ) -> mx.array:
        """See ExpertLinear."""
        return mx.gather_qmm(
            x,
            self.weight,
            self.scales,
            self.biases,
            lhs_indices=rows,
            rhs_indices=experts,
            transpose=True,
            group_size=self.group_size,
            bits=self.bits,
            mode=self.mode,
            sorted_indices=in_order,
        )

    def all(self, x: mx.array) -> mx.array:
        """See ExpertLinear.all."""
        return mx.quantized_matmul(
            mx.broadcast_to(x, (len(self.weight), *x.shape[1:])),
            self.weight,
            self.scales,
            self.biases,
            transpose=True,
            group_size=self.group_size,
            bits=self.bits,
            mode=self.mode,
        )


class Experts(nn.Module):
    """One gated feed-forward block per expert."""

    def __init__(self, config: TargetConfig) -> None:
        super().__init__()
        width = config.moe_intermediate_size
        self.gate_up_proj = ExpertLinear(config.num_experts, config.hidden_size, 2 * width)
        self.down_proj = ExpertLinear(config.num_experts, width, config.hidden_size)

    def split_gate_up(self) -> None:
        """Replace the gate and up map by one map each, for weights in different formats.

        They are not filled. Each layer then reads its input twice and runs one more kernel.
        """
        num_experts, out_dims, in_dims = self.gate_up_proj.weight.shape
        del self.gate_up_proj
        self.gate_proj = ExpertLinear(num_experts, in_dims, out_dims // 2)
        self.up_proj = ExpertLinear(num_experts, in_dims, out_dims // 2)

    def _gate_and_up(self, through: Callable[[nn.Module], mx.array]) -> tuple[mx.array, mx.array]:
        """Return the outputs of the gate and the up map, given how to call a map."""
        if "gate_up_proj" in self:
            gate, up = mx.split(through(self.gate_up_proj), 2, axis=-1)
            return gate, up
        return through(self.gate_proj), through(self.up_proj)

    def __call__(
        self, x: mx.array, experts: mx.array, shares: mx.array, way: Way | None = None
    ) -> mx.array:
        """The chosen experts' outputs, summed by shares: x [N, H], both [N, k] -> [N, H].

        way: how to compute them; None: the fastest for this many tokens.
        """
        through = {
            "chosen": self._through_chosen,
            "all": self._through_all,
            "tiles": self._through_tiles,
        }
        return through[way or self._fastest(len(x))](x, experts, shares)

    def _fastest(self, num_tokens: int) -> Way:
        if TILES_FROM is not None and num_tokens >= TILES_FROM:
            return "tiles"
        many = ALL_EXPERTS_FROM is not None and num_tokens >= ALL_EXPERTS_FROM
        return "all" if many else "chosen"

    def _through_all(self, x: mx.array, experts: mx.array, shares: mx.array) -> mx.array:
        num_experts = self.down_proj.weight.shape[0]
        every = mx.zeros((len(x), num_experts), shares.dtype)
        every = mx.put_along_axis(every, experts, shares, axis=1)  # [N, experts]
        gate, up = self._gate_and_up(lambda part: part.all(x[None]))  # [experts, N, width]
        out = self.down_proj.all(gelu_tanh(gate) * up * every.T[..., None])  # [experts, N, H]
        # A product sums over the experts faster than a reduction down the columns.
        ones = mx.array([[1.0] * num_experts], out.dtype)
        return (ones @ out.reshape(num_experts, -1)).reshape(x.shape)

    def _through_chosen(self, x: mx.array, experts: mx.array, shares: mx.array) -> mx.array:
        num_tokens, num_chosen = experts.shape
        chosen, tokens = experts.flatten(), None  # [N k]
        in_order = chosen.size >= SORT_EXPERTS_FROM
        rows = x[:, None]  # [N, 1, H]
        if in_order:
            order = mx.argsort(chosen)
            # Gathered with all three axes: kernels for sorted rows mistake a row of x[...][:, None]
            # for a column, and return wrong sums (ml-explore/mlx#4253).
            rows, chosen = rows[order // num_chosen], chosen[order]  # [N k, 1, H]
        else:  # a constant: costs a compiled round nothing
            tokens = mx.array([n for n in range(num_tokens) for _ in range(num_chosen)], mx.uint32)
        # gate, up: [N k, 1, width]
        gate, up = self._gate_and_up(lambda part: part(rows, chosen, in_order, tokens))
        pairs = None if in_order else mx.array([*range(chosen.size)], mx.uint32)
        out = self.down_proj(gelu_tanh(gate) * up, chosen, in_order, pairs)[:, 0]
        if in_order:
            out = out[mx.argsort(order)]
        return (out.reshape(num_tokens, num_chosen, -1) * shares[..., None]).sum(axis=1)

    def _through_tiles(self, x: mx.array, experts: mx.array, shares: mx.array) -> mx.array:
        tiles = in_tiles(experts, self.down_proj.weight.shape[0], TILE_HEIGHT)
        rows = x[tiles.tokens]  # [tiles, height, H]
        gate, up = self._gate_and_up(lambda part: part(rows, tiles.experts, False, None))
        out = self.down_proj(gelu_tanh(gate) * up, tiles.experts, False, None)
        out = out.reshape(-1, x.shape[-1])[tiles.places]  # [N, k, H]
        return (out * shares[..., None]).sum(axis=1)


class Tiles(NamedTuple):
    """(token, expert) pairs by expert, in tiles of rows that all go to one expert."""

    tokens: mx.array  # int32 [tiles, height]: the token in each row; any in a row without a pair
    experts: mx.array  # uint32 [tiles]
    places: mx.array  # int32 [N, k]: the row of each pair, counted through all tiles


def in_tiles(experts: mx.array, num_experts: int, height: int) -> Tiles:
    """Sort the pairs of tokens and their experts [N, k] into tiles of `height` rows.

    There are as many tiles as the most uneven choice would need, whatever the choice: the last ones
    may be empty.
    """
    num_pairs, num_chosen = experts.size, experts.shape[1]
    num_used = min(num_experts, num_pairs)
    num_tiles = num_used + (num_pairs - num_used) // height
    pairs = experts.flatten()
    order = mx.argsort(pairs)
    counts = mx.zeros((num_experts,), mx.int32).at[pairs].add(1)
    ends = mx.cumsum((counts + height - 1) // height)  # of the tiles of each expert
    first_rows = height * (ends - (counts + height - 1) // height)
    skipped = first_rows - (mx.cumsum(counts) - counts)  # rows without a pair before each expert
    places = mx.arange(num_pairs) + skipped[pairs[order]]  # of the sorted pairs
    tokens = mx.zeros((num_tiles * height,), mx.int32)
    tokens = mx.put_along_axis(tokens, places, (order // num_chosen).astype(mx.int32), axis=0)
    of_tile = (mx.arange(num_tiles)[:, None] >= ends).sum(axis=1)
    return Tiles(
        tokens.reshape(num_tiles, height),
        mx.minimum(of_tile, num_experts - 1).astype(mx.uint32),
        mx.put_along_axis(mx.zeros_like(places), order, places, axis=0).reshape(experts.shape),
    )


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
