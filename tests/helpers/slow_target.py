"""A target whose passes take a known time, on its own clock, and may differ in the last bit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from helpers.fake_target import CONFIG
from mlx_gemma_mtp.model.cache import KVCache
from mlx_gemma_mtp.model.experts import default_ways
from mlx_gemma_mtp.model.layer_config import KINDS, LayerKind
from mlx_gemma_mtp.model.packing import Packing
from mlx_gemma_mtp.model.prompt import prompt_reach


class Clock:
    """Time passes when somebody says so, and with each look if `look` is set."""

    now = look = 0.0

    def __call__(self) -> float:
        self.now += self.look
        return self.now


@dataclasses.dataclass
class Pass:
    """What the bits of a pass may depend on."""

    batch: int
    positions: int
    width: int
    capacity: int


class Layer:
    """Experts that take their time. They have other bits with `all`, and from `odd_from` tokens."""

    def __init__(
        self,
        clock: Clock,
        seconds: Callable[[str, int], float],
        bits: int = 4,
        odd_from: float = math.inf,
    ) -> None:
        self._clock, self._seconds, self._bits, self._odd_from = clock, seconds, bits, odd_from
        self.experts = self

    def parameters(self) -> dict[str, mx.array]:
        return {"weight": mx.zeros((self._bits,))}

    def router(self, x: mx.array) -> tuple[mx.array, mx.array]:
        return mx.zeros((len(x), 2), mx.uint32), mx.ones((len(x), 2))

    def __call__(self, x: mx.array, chosen: mx.array, shares: mx.array, way: str) -> mx.array:
        assert len(x) == len(chosen) == len(shares)
        self._clock.now += self._seconds(way, len(x))
        return x + (1.0 if way == "all" or len(x) >= self._odd_from else 0.0)


class SlowTarget:
    """A target whose passes take a time that is known, and may differ in the last bit.

    seconds: of a pass of this many tokens. quirk: added to the states of a pass. kept_quirk: to
    its keys. read_quirk, read_kept_quirk: the same of a pass over this many tokens of a prompt.
    experts: seconds of those of a layer, alone, by way and tokens; None: a dense model. in_pass:
    what they add to a whole pass.
    """

    dtype = mx.float32

    def __init__(
        self,
        seconds: Callable[[int], float] = lambda _: 0.001,
        quirk: Callable[[Pass], float] = lambda _: 0,
        kept_quirk: Callable[[Pass], float] = lambda _: 0,
        read_quirk: Callable[[int], float] = lambda _: 0,
        read_kept_quirk: Callable[[int], float] = lambda _: 0,
        experts: Callable[[str, int], float] | None = None,
        in_pass: Callable[[str, int], float] = lambda way, tokens: 0.0,
    ) -> None:
        self.clock = Clock()
        sizes = {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 1}
        self.config = dataclasses.replace(CONFIG, **sizes) if experts else CONFIG
        self.ways = self.before = default_ways(self.config)
        self.layers = [Layer(self.clock, experts)] * 6 if experts else []
        self.used: list[str] = []
        self._seconds, self._in_pass, self._quirk = seconds, in_pass, quirk
        self._kept_quirk = kept_quirk
        self._read_quirk, self._read_kept_quirk = read_quirk, read_kept_quirk

    def set_ways(self, ways: dict[int, str]) -> None:
        self.ways = default_ways(self.config).measured(ways)

    def parameters(self) -> dict[str, Any]:
        return {}

    def logits(self, hidden: mx.array) -> mx.array:
        return hidden * mx.arange(1.0, 5.0)

    def __call__(
        self, tokens: mx.array, cache: KVCache, packing: Packing | None = None
    ) -> mx.array:
        batch, positions = tokens.shape
        width = tokens.size if packing is None else packing.rows.size
        shape = Pass(batch, positions, width, cache.capacity("full_attention"))
        self.clock.now += self._seconds(width) + self._in_pass(self.ways[width], width)
        self.used.append(self.ways[width])
        reaches = {kind: cache.reach(kind, positions) for kind in KINDS}
        self._write(tokens + self._kept_quirk(shape), cache, reaches)
        hidden = tokens[..., None] + mx.array(self._quirk(shape))
        return hidden if packing is None else packing.pack(hidden)

    def read(
        self, tokens: mx.array, cache: KVCache, start: int, lengths: Sequence[int], least: int = 1
    ) -> mx.array:
        size = tokens.shape[1]
        self.clock.now += self._seconds(size)
        reaches = {kind: prompt_reach(cache, kind, size, start) for kind in KINDS}
        self._write(tokens + self._read_kept_quirk(size), cache, reaches)
        hidden = tokens[..., None] + mx.array(self._read_quirk(size))
        return mx.take_along_axis(hidden, mx.array(lengths)[:, None, None] - 1, axis=1)

    def _write(self, tokens: mx.array, cache: KVCache, reaches: dict[LayerKind, Any]) -> None:
        for index, layer in enumerate(self.config.layers):
            k = mx.repeat(tokens[:, None, :, None].astype(mx.float32), 2, axis=3)
            cache.write(index, k, 2 * k, reaches[layer.kind])
