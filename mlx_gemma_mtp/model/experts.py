"""The experts of a mixture-of-experts layer, and the ways to compute them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast, get_args

import mlx.core as mx
import mlx.nn as nn

from mlx_gemma_mtp.device import backend
from mlx_gemma_mtp.model.config import TargetConfig
from mlx_gemma_mtp.model.layers import ON_METAL, gelu_tanh

# pairs: each (token, expert) pair reads its expert. sorted: pairs are sorted by expert first, so
# that a kernel may read an expert once for several. padded: sorted, and the last pair is repeated
# until there are enough for MLX to use that kernel. all: every expert computes every token, with
# weight zero for tokens that did not choose it. tiles: tiles of rows for one expert each.
Way = Literal["pairs", "sorted", "padded", "all", "tiles"]

TILE_HEIGHT = 64

# Metal has a fast gather_mm kernel for sorted rows. CUDA's is not measured.
SORTED_GATHER_MM = ON_METAL


def grouped_from(num_experts: int) -> int:
    """Return from how many sorted pairs on Metal reads quantized experts once for several of them.

    The condition of GatherQMM::eval_gpu in MLX 0.32.4 (backend/metal/quantized.cpp).
    """
    return max(16, 4 * num_experts)


@dataclass(frozen=True)
class Ways:
    """The way to compute experts, by the number of tokens."""

    starts: tuple[tuple[int, Way], ...]  # ascending; each is used from that many tokens on

    def __getitem__(self, num_tokens: int) -> Way:
        return [way for start, way in self.starts if start <= num_tokens][-1]

    def measured(self, ways: Mapping[int, str]) -> Ways:
        """Return these with other ways up to the largest number of tokens in `ways`.

        Numbers in between use the way of the next smaller one. Raises ValueError for an unknown
        way.
        """
        if unknown := set(ways.values()) - set(get_args(Way)):
            raise ValueError(f"unknown way to compute experts: {min(unknown)!r}")
        if not ways:
            return self
        beyond = max(ways) + 1
        starts = {1: ways[min(ways)], **dict(sorted(ways.items())), beyond: self[beyond]}
        later = [(start, way) for start, way in self.starts if start > beyond]
        return Ways((*cast(dict[int, Way], starts).items(), *later))


def default_ways(config: TargetConfig) -> Ways:
    """Return the ways to start with, before any are measured on this machine: a rough rule.

    A sort costs more than it saves for fewer than 64 pairs. CUDA has no kernel that shares the
    reads of chosen experts. One layer of 26B-A4B in bfloat16 on an H100: all experts take 590 to
    640 us for 6 to 96 tokens; chosen pairs take 332 us for 8 tokens, 584 us for 16, and more with
    each further one. On an H200 tiles take 1,348 us for 512 tokens and 2,597 for 2,048, and all
    experts 1,372 and 5,026; in 4 bits 1,633 and 3,173 us, and 5,880 and 22,209.
    """
    if not config.num_experts:
        return Ways(((1, "pairs"),))
    ways: dict[int, Way] = {1: "pairs", -(-64 // config.top_k_experts): "sorted"}
    if backend() == "cuda":
        ways |= {16: "all", 512: "tiles"}
    return Ways(tuple(sorted(ways.items())))


def num_computed(config: TargetConfig, way: Way, num_tokens: int) -> int:
    """Return how many rows all experts compute together; 0 without experts."""
    if not config.num_experts:
        return 0
    num_pairs = num_tokens * config.top_k_experts
    if way == "all":
        return num_tokens * config.num_experts
    if way == "tiles":
        return num_tiles(num_pairs, config.num_experts, TILE_HEIGHT) * TILE_HEIGHT
    return max(num_pairs, grouped_from(config.num_experts)) if way == "padded" else num_pairs


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

    def __call__(self, x: mx.array, experts: mx.array, shares: mx.array, way: Way) -> mx.array:
        """The chosen experts' outputs, summed by shares: x [N, H], both [N, k] -> [N, H]."""
        if way == "all":
            return self._through_all(x, experts, shares)
        if way == "tiles":
            out = self._in_tiles(x, experts)
        elif way == "pairs":
            out = self._in_pairs(x, experts)
        else:
            out = self._in_order(x, experts, padded=way == "padded")
        return (out.reshape(*experts.shape, -1) * shares[..., None]).sum(axis=1)

    def _through_all(self, x: mx.array, experts: mx.array, shares: mx.array) -> mx.array:
        num_experts = self.down_proj.weight.shape[0]
        every = mx.zeros((len(x), num_experts), shares.dtype)
        every = mx.put_along_axis(every, experts, shares, axis=1)  # [N, experts]
        gate, up = self._gate_and_up(lambda part: part.all(x[None]))  # [experts, N, width]
        out = self.down_proj.all(gelu_tanh(gate) * up * every.T[..., None])  # [experts, N, H]
        # A product sums over the experts faster than a reduction down the columns.
        ones = mx.array([[1.0] * num_experts], out.dtype)
        return (ones @ out.reshape(num_experts, -1)).reshape(x.shape)

    def _in_pairs(self, x: mx.array, experts: mx.array) -> mx.array:
        """The outputs of all pairs [N k, 1, H], one by one."""
        num_tokens, num_chosen = experts.shape
        chosen, rows = experts.flatten(), x[:, None]  # [N k] and [N, 1, H]
        # Constants: they cost a compiled round nothing.
        tokens = mx.array([n for n in range(num_tokens) for _ in range(num_chosen)], mx.uint32)
        pairs = mx.array([*range(chosen.size)], mx.uint32)
        # gate, up: [N k, 1, width]
        gate, up = self._gate_and_up(lambda part: part(rows, chosen, False, tokens))
        return self.down_proj(gelu_tanh(gate) * up, chosen, False, pairs)

    def _in_order(self, x: mx.array, experts: mx.array, padded: bool) -> mx.array:
        """The outputs of all pairs [N k, 1, H], computed in the order of their experts."""
        chosen, num_pairs = experts.flatten(), experts.size
        order = whole = mx.argsort(chosen)
        missing = grouped_from(len(self.down_proj.weight)) - num_pairs
        if padded and missing > 0:  # the last pair again: its expert is read anyway
            whole = order[mx.array([*range(num_pairs), *[num_pairs - 1] * missing], mx.uint32)]
        # Gathered with all three axes: kernels for sorted rows mistake a row of x[...][:, None]
        # for a column, and return wrong sums (ml-explore/mlx#4253).
        rows, chosen = x[:, None][whole // experts.shape[1]], chosen[whole]
        gate, up = self._gate_and_up(lambda part: part(rows, chosen, True, None))
        out = self.down_proj(gelu_tanh(gate) * up, chosen, True, None)
        return out[mx.argsort(order)]

    def _in_tiles(self, x: mx.array, experts: mx.array) -> mx.array:
        """The outputs of all pairs [N, k, H], from tiles of rows for one expert each."""
        tiles = in_tiles(experts, len(self.down_proj.weight), TILE_HEIGHT)
        rows = x[tiles.tokens]  # [tiles, height, H]
        gate, up = self._gate_and_up(lambda part: part(rows, tiles.experts, False, None))
        out = self.down_proj(gelu_tanh(gate) * up, tiles.experts, False, None)
        return out.reshape(-1, x.shape[-1])[tiles.places]


class Tiles(NamedTuple):
    """(token, expert) pairs by expert, in tiles of rows that all go to one expert."""

    tokens: mx.array  # int32 [tiles, height]: the token in each row; any in a row without a pair
    experts: mx.array  # uint32 [tiles]
    places: mx.array  # int32 [N, k]: the row of each pair, counted through all tiles


def num_tiles(num_pairs: int, num_experts: int, height: int) -> int:
    """Return how many tiles the most uneven choice of experts needs."""
    num_used = min(num_experts, num_pairs)
    return num_used + (num_pairs - num_used) // height


def in_tiles(experts: mx.array, num_experts: int, height: int) -> Tiles:
    """Sort the pairs of tokens and their experts [N, k] into tiles of `height` rows.

    The last tiles may be empty.
    """
    num_pairs, num_chosen = experts.size, experts.shape[1]
    total = num_tiles(num_pairs, num_experts, height)
    pairs = experts.flatten()
    order = mx.argsort(pairs)
    counts = mx.zeros((num_experts,), mx.int32).at[pairs].add(1)
    ends = mx.cumsum((counts + height - 1) // height)  # of the tiles of each expert
    first_rows = height * (ends - (counts + height - 1) // height)
    skipped = first_rows - (mx.cumsum(counts) - counts)  # rows without a pair before each expert
    places = mx.arange(num_pairs) + skipped[pairs[order]]  # of the sorted pairs
    tokens = mx.zeros((total * height,), mx.int32)
    tokens = mx.put_along_axis(tokens, places, (order // num_chosen).astype(mx.int32), axis=0)
    of_tile = (mx.arange(total)[:, None] >= ends).sum(axis=1)
    return Tiles(
        tokens.reshape(total, height),
        mx.minimum(of_tile, num_experts - 1).astype(mx.uint32),
        mx.put_along_axis(mx.zeros_like(places), order, places, axis=0).reshape(experts.shape),
    )
