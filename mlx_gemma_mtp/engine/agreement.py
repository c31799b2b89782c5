"""Which passes of a target give a token the same bits: by comparing them.

Knows nothing of time, except through `over`, which says when to stop.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from itertools import product
from typing import cast

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_gemma_mtp.decode.table import PassClass
from mlx_gemma_mtp.engine.passes import MOST_ROWS, Bits, Passes, Shaped, digests
from mlx_gemma_mtp.model.cache import KVCache, capacity_for
from mlx_gemma_mtp.model.experts import Experts
from mlx_gemma_mtp.model.target import Target

# What is compared, the most useful first.
BATCHES = (MOST_ROWS, 1, 2)
CAPACITIES = (256, 4096)
# Positions of a row: the first of these, and then ascending. Those before a token in its row are
# computed by another pass if it has fewer.
PLACES = 8
FEW_POSITIONS = (PLACES, 1)
POSITIONS = (PLACES, 1, 2, 4, 6, 9, 16)
WIDTHS = (16, 8, 2, 32, 1, 64, 4, 12, 6, 24, 3, 33, 13, 7, 48, 5, 10, 20)

Over = Callable[[], bool]


def agree(one: Bits, other: Bits) -> bool:
    """True if all tokens that both have got the same bits."""
    return all(other[token] == bits for token, bits in one.items() if token in other)


def runs(found: Mapping[int, Bits | None]) -> list[tuple[int, int]]:
    """Return the largest ranges of these sizes that all agree; one without bits is in none."""
    ranges, run = list[tuple[int, int]](), dict[int, Bits]()
    for size, bits in sorted(found.items()):
        if bits is None or not all(agree(bits, other) for other in run.values()):
            run = {}
        if bits is None:
            continue
        if run:
            ranges.pop()
        run[size] = bits
        ranges.append((min(run), size))
    return ranges


def find_classes(passes: Passes, over: Over) -> Generator[None, None, tuple[PassClass, ...]]:
    """Return the passes that agree, whatever the batch and the capacity; nothing if none do.

    A class of some width has passes of fewer tokens, which experts compute without the padding: so
    it ends where the ways to compute experts do not agree.
    """
    batches = list[Bits]()
    for batch in BATCHES:
        shaped = Shaped([2, *[0] * (batch - 1)], 2, PLACES)
        batches.append(passes.bits(passes.near(batch), shaped))
        yield
        if over() or not agree(batches[0], batches[-1]):
            return ()
    positions = yield from _positions(passes, FEW_POSITIONS, PLACES, lambda: False)
    most_tokens = yield from _most_tokens(passes.target)
    widths, near = dict[int, Bits | None](), passes.near(MOST_ROWS)
    for width in WIDTHS:
        if over():
            break
        if width <= most_tokens:
            widths[width] = passes.bits(near, Shaped.narrow(width))
            yield
    more = yield from _positions(passes, POSITIONS, max(POSITIONS), over)
    if len(more) > len(positions):
        positions = more
    return tuple(PassClass(*w, *p) for w, p in product(runs(widths), runs(positions)))


def _positions(
    passes: Passes, counts: Sequence[int], width: int, over: Over
) -> Generator[None, None, dict[int, Bits | None]]:
    """Return what tokens get by the positions of a pass; None if that depends on the capacity."""
    found = list[dict[int, Bits]]()
    for capacity in CAPACITIES:
        cache, own = passes.far(capacity), dict[int, Bits]()
        for count in counts:
            if over():
                break
            shaped = Shaped([count], count, width)
            own[count] = passes.bits(cache, shaped, max(0, PLACES - count))
            yield
        found.append(own)
    few, many = found
    return {
        count: bits if agree(bits, many[count]) else None
        for count, bits in few.items()
        if count in many
    }


def agreeing_chunks(
    target: Target, sizes: Sequence[int], over: Callable[[int], bool]
) -> Generator[None, None, tuple[int, ...]]:
    """Return most of the sizes that agree: of passes over a prompt, the last one padded.

    sizes: multiples of each other, ascending. over(tokens): True if there is no time to read them.
    """
    groups, length = list[list[int]](), -sizes[0] // 2
    for size in sizes:
        if over((len(groups) + 1) * size):
            break
        tokens = mx.random.randint(0, target.config.vocab_size, (1, size), key=mx.random.key(size))
        whole = yield from _read(target, tokens, length + size, size)
        for group in groups:
            if (yield from _read(target, tokens, length + size, group[-1])) == whole:
                group.append(size)
                break
        else:
            groups.append([size])
    most: list[int] = max(groups, key=len, default=[])
    return tuple(most)


def _most_tokens(target: Target) -> Generator[None, None, int]:
    """Return up to how many tokens the ways to compute experts agree with those for fewer.

    One layer stands for all whose experts have the same format.
    """
    layers, most = target.layers if target.config.num_experts else [], max(WIDTHS)
    x = mx.random.normal((most, target.config.hidden_size), key=mx.random.key(0))
    x = x.astype(target.dtype)
    for layer in {_format(layer.experts): layer for layer in layers}.values():
        chosen, shares = layer.router(x)
        found = list[list[int]]()
        for count in sorted(width for width in WIDTHS if width <= most):
            way = target.ways[count]
            out = layer.experts(x[:count], chosen[:count], shares[:count], way)
            found.append(cast(list[int], digests(out).tolist()))
            yield
            if any(bits != found[-1][: len(bits)] for bits in found):
                most = max((width for width in WIDTHS if width < count), default=0)
                break
    return most


def _format(experts: Experts) -> tuple[tuple[str, tuple[int, ...], mx.Dtype], ...]:
    weights = dict(tree_flatten(experts.parameters())).items()
    return tuple((name, array.shape, array.dtype) for name, array in weights)


def _read(
    target: Target, tokens: mx.array, length: int, chunk: int
) -> Generator[None, None, list[int]]:
    """Return digests of the state after `length` of these tokens [1, S], and of the cache."""
    config, size = target.config, tokens.shape[1]
    padding = size - length - config.sliding_window
    cache = KVCache.empty(
        config,
        1,
        capacity=capacity_for(size),
        most=min(length, config.sliding_window) + padding,
        dtype=target.dtype,
    )
    hidden = mx.zeros((1, 1, config.hidden_size), target.dtype)
    for start in range(0, size, chunk):
        read = min(chunk, length - start)
        hidden = target.read(tokens[:, start : start + chunk], cache, start, [read])
        cache.offset = cache.offset + read
        mx.eval(hidden, cache.buffers)
        yield
    parts = [hidden[0], target.logits(hidden)[0]]
    parts += [buffer.reshape(1, -1) for buffer in (*cache.keys, *cache.values)]
    return cast(list[int], mx.concatenate([digests(part) for part in parts]).tolist())
