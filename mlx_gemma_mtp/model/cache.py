"""The KV cache: two buffers for every layer that owns keys and values, B rows in each.

Row b's token at position p is in slot p of a full-attention layer, and in slot p mod capacity of a
sliding one. `offset` [B] counts the committed positions of each row. Rolling back means not
advancing the offset: slots beyond it are masked and later overwritten. So rows may accept different
numbers of drafts, and nothing is ever moved.

MLX updates a buffer in place only while nothing else refers to it: keep no view.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import mlx.core as mx

from mlx_gemma_mtp.model.config import DecoderConfig, TargetConfig
from mlx_gemma_mtp.model.layer_config import LayerKind
from mlx_gemma_mtp.model.layers import kv_dtype, laid_out

SLOT_STEP = 32  # capacities are multiples of this


class Reach(NamedTuple):
    """Where one forward of T positions writes and what its queries see, for one layer kind.

    slots: int32 [B, 1, W, 1], of the last W positions; earlier ones are not kept. mask: bool
    [B, 1, T, S], `laid_out` for the layers of that kind, over the keys and values that
    `KVCache.write` returns: the first S slots, or, with `earlier`, the contents of those slots
    before they are overwritten, and then the T positions.
    cuts: queries that attend together, and the keys that they may see.
    """

    slots: mx.array
    mask: mx.array
    earlier: mx.array | None = None  # int32 [E]
    cuts: tuple[tuple[slice, slice], ...] = ((slice(None), slice(None)),)


class Buffers(NamedTuple):
    """The arrays of a cache: what a compiled round takes and returns."""

    offset: mx.array  # int32 [B]
    keys: list[mx.array]  # of each layer that owns any, [B, kv_heads, capacity, head_dim]
    values: list[mx.array]


class SharedKV(NamedTuple):
    """The committed keys and values of one layer, which a drafter reads."""

    keys: mx.array  # [B, kv_heads, capacity, head_dim]
    values: mx.array
    mask: mx.array  # bool [B, 1, 1, capacity], `laid_out` for the layers that read it


def capacity_for(length: int, slot_step: int = SLOT_STEP) -> int:
    """Capacity to allocate for this many positions: steps of 256, later of an eighth or less.

    Few distinct sizes keep the number of compiled rounds and of copies small while rows grow.
    slot_step: tests use a smaller one, so that caches grow more often.
    """
    return rounded_up(length, max(8 * slot_step, 1 << max(0, length.bit_length() - 4)))


def rounded_up(number: int, step: int) -> int:
    """Return the next multiple of `step`."""
    return -(-number // step) * step


class KVCache:
    """The buffers of some rows; made by `empty`, or from the buffers of another cache."""

    def __init__(self, config: TargetConfig, buffers: Buffers) -> None:
        self.config = config
        self.buffers = buffers

    @property
    def buffers(self) -> Buffers:
        """The arrays as they are now."""
        return Buffers(self.offset, self.keys, self.values)

    @buffers.setter
    def buffers(self, buffers: Buffers) -> None:
        self.offset = buffers.offset
        self.keys, self.values = list(buffers.keys), list(buffers.values)

    @classmethod
    def empty(
        cls,
        config: TargetConfig,
        batch: int,
        *,
        capacity: int,
        most: int,
        dtype: mx.Dtype,
        slot_step: int = SLOT_STEP,
    ) -> KVCache:
        """Zero-filled buffers for `batch` rows, nothing committed.

        capacity: slots of a full-attention layer. most: the largest number of positions that one
        round will write. A sliding layer gets `window + most` slots or a few more, so that neither
        a forward's own writes nor stale drafts fall into the window of its queries. Negative if all
        rows will be shorter than the window. Reading prompts alone needs the window only.
        dtype: of the model's activations; `kv_dtype` says which one the buffers get.
        """
        sliding = rounded_up(config.sliding_window + most, slot_step)
        layers = config.layers[: config.num_kv_layers]
        shapes = [
            (
                batch,
                layer.num_key_value_heads,
                sliding if layer.kind == "sliding_attention" else capacity,
                layer.head_dim,
            )
            for layer in layers
        ]
        dtypes = [kv_dtype(layer.head_dim, dtype) for layer in layers]
        keys, values = ([*map(mx.zeros, shapes, dtypes)] for _ in range(2))
        return cls(config, Buffers(mx.zeros((batch,), mx.int32), keys, values))

    def capacity(self, kind: LayerKind) -> int:
        """Slots per row in the layers of this kind."""
        return self.keys[self.config.last_owner(kind)].shape[2]

    @property
    def nbytes(self) -> int:
        """Size of all buffers in bytes."""
        return sum(buffer.nbytes for buffer in (*self.keys, *self.values))

    def bytes_of(self, kind: LayerKind) -> int:
        """Bytes of one position of one row in the layers of this kind."""
        buffers = [part[index] for part, index in self._buffers(kind)]
        return sum(one.nbytes // (one.shape[0] * one.shape[2]) for one in buffers)

    def reach(self, kind: LayerKind, num_positions: int) -> Reach:
        """Slots and mask of a forward over the next num_positions positions of every row."""
        query = (self.offset[:, None] + mx.arange(num_positions))[:, None, :, None]
        mask = self.visible(kind, query, self.config.num_attention_heads)
        return Reach(query % self.capacity(kind), mask)

    def shared(self, config: DecoderConfig) -> dict[LayerKind, SharedKV]:
        """The last layer of each kind, for a drafter: it sees committed positions only."""
        last = mx.maximum(self.offset - 1, 0)  # a free row sees one empty slot
        found: dict[LayerKind, SharedKV] = {}
        for kind in config.kinds:
            index = self.config.last_owner(kind)
            mask = self.visible(kind, last[:, None, None, None], config.num_attention_heads)
            found[kind] = SharedKV(self.keys[index], self.values[index], mask)
        return found

    def visible(self, kind: LayerKind, query: mx.array, heads: int) -> mx.array:
        """The slots that each query position [B, 1, T, 1] sees, once the last one is written.

        Returns bool [B, 1, T, capacity], `laid_out` for this many query heads.
        """
        slot = mx.arange(self.capacity(kind))
        mask = slot <= query
        if kind == "sliding_attention":
            # The position in each slot, negative if nothing was written. A stale later position
            # counts as one a whole ring earlier, which is outside every window.
            last = query[:, :, -1:]
            held = last - (last - slot) % len(slot)
            mask = (held <= query) & (held >= 0) & (held > query - self.config.sliding_window)
        return laid_out(mask, heads, self.config.layers[self.config.last_owner(kind)])

    def write(
        self, index: int, k: mx.array, v: mx.array, reach: Reach
    ) -> tuple[mx.array, mx.array]:
        """Put k, v [B, kv_heads, T, head_dim] into layer index.

        Returns the keys and values that the queries see: views, which must not outlive the forward.
        """
        seen: list[mx.array] = []
        for part, new in ((self.keys, k), (self.values, v)):
            following = None if reach.earlier is None else _following(part[index], reach, new)
            kept = new[:, :, new.shape[2] - reach.slots.shape[2] :]
            part[index] = mx.put_along_axis(part[index], reach.slots, kept, axis=2)
            if following is not None:
                # After the write: otherwise `new` would stay in memory until the buffer is read.
                seen.append(mx.depends(following, part[index]))
        return (seen[0], seen[1]) if seen else self.seen(index, reach)

    def seen(self, index: int, reach: Reach) -> tuple[mx.array, mx.array]:
        """The slots of layer index that the mask covers: views, see `write`."""
        num_slots = reach.mask.shape[-1]
        return self.keys[index][:, :, :num_slots], self.values[index][:, :, :num_slots]

    def grow(self, capacity: int) -> None:
        """Make room for this many positions in the full-attention layers; never shrinks."""
        if capacity > self.capacity("full_attention"):
            self.resize(range(len(self.offset)), capacity)

    def resize(self, rows: Sequence[int | None], capacity: int) -> None:
        """Keep these rows, in this order, with fresh ones for None and this many full slots.

        No kept row may have more committed positions than that. Goes layer by layer, so the extra
        memory is one layer's. If memory runs out, everything is put back and the error raised.
        """
        offset = _arranged(self.offset[:, None, None, None], rows, 1).flatten()
        before = self.capacity("full_attention")
        back = [rows.index(row) if row in rows else None for row in range(len(self.offset))]
        for index in range(len(self.keys)):
            try:
                self._resize_layer(index, rows, capacity)
            except BaseException:
                try:
                    for done in range(index):
                        self._resize_layer(done, back, before)
                except BaseException:
                    self.keys, self.values = [], []  # half resized: the next use must fail
                    raise
                raise
        self.offset = offset

    def _resize_layer(self, index: int, rows: Sequence[int | None], capacity: int) -> None:
        sliding = self.config.layers[index].kind == "sliding_attention"
        slots = self.keys[index].shape[2] if sliding else capacity
        keys = _arranged(self.keys[index], rows, slots)
        self.values[index] = _arranged(self.values[index], rows, slots)
        self.keys[index] = keys

    def take_over(self, other: KVCache, moves: Iterable[tuple[int, int, int]]) -> None:
        """Move rows of another cache into this one.

        moves: a row here, the row there, and how many committed positions it has; a row there may
        go to several here. Empties `other` layer by layer. The caller has grown this cache, and
        sets the offsets. Nothing else stays in the rows: a masked slot has weight 0, but 0 times an
        infinite value is NaN.
        """
        moves = list(moves)
        for index in range(len(self.keys)):
            for row, source, length in moves:
                self._copy_layer(index, row, other, source, length)
            mx.eval(self.keys[index], self.values[index])
            other.keys[index] = other.values[index] = mx.zeros((0,))

    def copy_row(self, other: KVCache, row: int, length: int) -> None:
        """Copy the first `length` positions of a row of another cache into this one's only row."""
        for index in range(len(self.keys)):
            self._copy_layer(index, 0, other, row, length)
            mx.eval(self.keys[index], self.values[index])
        self.offset = mx.array([length], mx.int32)

    def taken(self, kind: LayerKind, row: int, start: int, end: int) -> list[mx.array]:
        """Return copies of what a row holds at positions start to end - 1, evaluated.

        [1, kv_heads, end - start, head_dim] of each layer of this kind, keys first, then values.
        """
        positions, found = mx.arange(start, end), list[mx.array]()
        for part, index in self._buffers(kind):
            slots = positions % part[index].shape[2]
            found.append(mx.take(part[index][row : row + 1], slots, axis=2))
        mx.eval(found)
        return found

    def put(self, kind: LayerKind, taken: Sequence[mx.array], start: int) -> None:
        """Give all rows what `taken` returned, from position `start` on."""
        for (part, index), new in zip(self._buffers(kind), taken, strict=True):
            slots = (start + mx.arange(new.shape[2])) % part[index].shape[2]
            rows = mx.broadcast_to(new, (len(self.offset), *new.shape[1:]))
            part[index] = mx.put_along_axis(part[index], slots[None, None, :, None], rows, axis=2)
            mx.eval(part[index])

    def _buffers(self, kind: LayerKind) -> Iterator[tuple[list[mx.array], int]]:
        """The lists that hold the buffers of this kind, and their places there."""
        for part in (self.keys, self.values):
            for index in range(len(part)):
                if self.config.layers[index].kind == kind:
                    yield part, index

    def _copy_layer(self, index: int, row: int, other: KVCache, source: int, length: int) -> None:
        """Copy what the next query may see of one layer's first `length` positions."""
        sliding = self.config.layers[index].kind == "sliding_attention"
        positions = mx.arange(max(0, length - self.config.sliding_window) if sliding else 0, length)
        taken = positions % other.keys[index].shape[2]
        slots = (positions % self.keys[index].shape[2])[None, None, :, None]
        for mine, theirs in ((self.keys, other.keys), (self.values, other.values)):
            moved = mx.take(theirs[index][source : source + 1], taken, axis=2)
            blank = mx.zeros((1, *mine[index].shape[1:]), moved.dtype)
            mine[index][row : row + 1] = mx.put_along_axis(blank, slots, moved, axis=2)


def _following(buffer: mx.array, reach: Reach, new: mx.array) -> mx.array:
    """The earlier slots of a buffer, `new` [B, :, T, :], and zeros, as many as the mask covers."""
    parts = [new]
    if reach.earlier is not None and reach.earlier.size:
        parts.insert(0, mx.take(buffer, reach.earlier, axis=2))
    missing = reach.mask.shape[-1] - sum(part.shape[2] for part in parts)
    if missing:
        parts.append(mx.zeros((*new.shape[:2], missing, new.shape[3]), new.dtype))
    return mx.concatenate(parts, axis=2)


def _arranged(buffer: mx.array, rows: Sequence[int | None], slots: int) -> mx.array:
    """These rows of a buffer [B, :, S, :], zeros for None, with this many slots; evaluated."""
    extra = slots - buffer.shape[2]
    if extra < 0 or list(rows) != list(range(len(buffer))):
        fresh = mx.array([row is None for row in rows])[:, None, None, None]
        index = mx.array([row or 0 for row in rows])
        buffer = mx.where(fresh, 0, mx.take(buffer[:, :, :slots], index, axis=0))
    if extra > 0:
        buffer = mx.pad(buffer, [(0, 0), (0, 0), (0, extra), (0, 0)])
    mx.eval(buffer)
    return buffer
