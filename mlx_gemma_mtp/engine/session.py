"""The cache of a conversation between two turns, so that the next turn does not compute it again.

Holds the keys and values of the last prompt and answer. A chat template may rewrite the answer, and
sliding layers forget what a rollback needs; so their buffers at the ends of the last prompts are
held as well. Knows nothing of text, nor of who computes.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple, cast

import mlx.core as mx

from mlx_gemma_mtp.engine.generation import Generation
from mlx_gemma_mtp.engine.worker import mlx_worker, only_here
from mlx_gemma_mtp.errors import CheckpointError, SaveError, UsageError, one_line
from mlx_gemma_mtp.files.atomic import replacing
from mlx_gemma_mtp.memory import Limits
from mlx_gemma_mtp.model.cache import Buffers, KVCache, capacity_for
from mlx_gemma_mtp.model.config import TargetConfig

FORMAT = "mgm session 3"
BUSY = "this session is busy: wait for its answer, or start another session"
PARTS = ("keys", "values")


class _Snapshot(NamedTuple):
    """The buffers of the sliding layers when `length` positions were committed."""

    length: int
    first: int  # the lowest position they still hold
    buffers: dict[str, mx.array]  # by names such as "keys.0"


class Session:
    """What the model has read and written in one conversation, so that no turn is prefilled twice.

    Made by `Engine.session`. Pass it to `submit`, `stream` or `generate` with the whole prompt of
    each turn: the tokens that it holds are not prefilled again, and the output is the same as
    without it. It serves one request at a time. After a turn that fails, the next one starts from
    scratch. It takes the memory of its conversation until it is closed or dropped.
    """

    # It takes as much memory as a row of the batch, and a window for each snapshot.
    # Who owns its cache: the session, between turns. `_lend` gives it to the prefill of a turn, and
    # from there its contents move into a row of the batch. It comes back with `_take_back` from a
    # prefill that stops, or as a copy of the row with `_copy_back`. A turn that fails returns
    # nothing. All of this happens on the worker.

    def __init__(
        self, config: TargetConfig, model: str, limits: Limits, owner: object = None
    ) -> None:
        """model: identifies the weights, for `save`. owner: stands for its engine."""
        self._owner = owner
        self._config = config
        self._model = model
        self._limits = limits
        owners = range(config.num_kv_layers)
        self._full = [i for i in owners if config.layers[i].kind == "full_attention"]
        self._sliding = [i for i in owners if i not in self._full]
        self._released = threading.Condition()
        self._holder: Generation | None = None
        self.close()

    def __repr__(self) -> str:
        return f"<Session {len(self._tokens)} tokens{', busy' if self._holder else ''}>"

    __reduce__ = only_here("a session", "fork() copies it here, save() writes it to a file")

    def close(self) -> None:
        """Drop everything; the next turn starts from scratch."""
        self._tokens: list[int] = []
        self._cache: KVCache | None = None
        self._first = 0  # the lowest position that the cache's sliding layers still hold
        self._snapshots: list[_Snapshot] = []

    def _claim(self, holder: Generation) -> None:
        """Reserve it for one request, also if it has it. Raises UsageError if another one uses it.

        One that was cancelled is no obstacle: it leaves before the next one starts.
        """
        with self._released:
            other = self._holder
            if other is not None and other is not holder and not other._stopping:
                raise UsageError(BUSY)
            self._holder = holder

    def _release(self, holder: Generation) -> None:
        """End the claim, unless another one has taken its place."""
        with self._released:
            if self._holder is holder:
                self._holder = None
                self._released.notify_all()

    def _lend(self, ids: Sequence[int]) -> tuple[KVCache, int] | None:
        """Give away the cache, rolled back to the longest usable prefix of this prompt; its length.

        The prompt's last token is not in it: its logits are needed. None if nothing can be used.
        """
        cache, self._cache = self._cache, None
        if cache is None:
            self.close()
            return None
        snapshot, length = self._best(cache, ids)
        if length == 0:
            self.close()
            return None
        self._snapshots = [one for one in self._snapshots if one.length <= length]
        self._first = snapshot.first
        for index in self._sliding:
            cache.keys[index] = snapshot.buffers[f"keys.{index}"]
            cache.values[index] = snapshot.buffers[f"values.{index}"]
        cache.offset = mx.array([length], mx.int32)
        return cache, length

    def _start_from(self, length: int) -> None:
        """Drop everything: the next cache has this many tokens from elsewhere."""
        self.close()
        self._first = max(0, length - self._config.sliding_window)

    def _reusable(self, ids: Sequence[int]) -> int:
        """Return how many tokens of this prompt `_lend` would give."""
        return 0 if self._cache is None else self._best(self._cache, ids)[1]

    def _remember_prompt(self, cache: KVCache, ids: Sequence[int], padding: int = 0) -> None:
        """Take a snapshot: the cache holds exactly this prompt, then padding. Copies nothing."""
        written = len(ids) + padding
        first = self._first = max(self._first, written - cache.capacity("sliding_attention"))
        earlier = [one for one in self._snapshots if one.length < len(ids)]
        earlier = earlier[-self._limits.snapshots + 1 :]
        self._snapshots = [*earlier, self._snapshot(cache, len(ids), first)]

    def _take_back(self, cache: KVCache, tokens: Sequence[int]) -> None:
        """Own the cache that was lent again, which now holds these tokens."""
        self._cache, self._tokens = cache, list(tokens)
        self._first = max(self._first, len(tokens) - cache.capacity("sliding_attention"))

    def _copy_back(self, cache: KVCache, row: int, tokens: Sequence[int]) -> None:
        """Own a copy of a batch's row that holds these tokens."""
        length, step, dtype = len(tokens), self._limits.slot_step, cache.keys[0].dtype
        capacity, most = capacity_for(length, step), self._limits.rollback
        copy = KVCache.empty(
            self._config, 1, capacity=capacity, most=most, dtype=dtype, slot_step=step
        )
        copy.copy_row(cache, row, length)
        self._first = max(0, length - self._config.sliding_window)
        self._take_back(copy, tokens)

    def save(self, path: str | Path) -> None:
        """Write everything to a safetensors file, for `Engine.session` of another process.

        Waits for a request that was cancelled to leave. Raises UsageError while one uses the
        session, and SaveError, which is also an OSError, if the file cannot be written.
        """
        checked = checked_path(path, "path")
        with self._held():
            mlx_worker().run(lambda: self._save(checked))

    def fork(self) -> Session:
        """Return a copy that continues on its own; it takes memory of its own when it is used.

        Waits, and raises UsageError, as `save`.
        """
        copy = Session(self._config, self._model, self._limits, self._owner)
        with self._held():
            mlx_worker().run(lambda: copy._share(self))
        return copy

    def _share(self, other: Session) -> None:
        if other._cache is not None:
            buffers = other._cache.buffers
            self._cache = KVCache(
                self._config, Buffers(buffers.offset, [*buffers.keys], [*buffers.values])
            )
            self._tokens, self._first = [*other._tokens], other._first
            self._snapshots = [*other._snapshots]

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Keep requests away. Waits for a cancelled one; raises UsageError if one uses it."""
        mlx_worker().check_may_wait()
        holder = Generation()
        with self._released:
            self._released.wait_for(lambda: self._holder is None or not self._holder._stopping)
            if self._holder is not None:
                raise UsageError(BUSY)
            self._holder = holder
        try:
            yield
        finally:
            self._release(holder)

    async def asave(self, path: str | Path) -> None:
        """Do what `save` does without blocking the event loop."""
        await asyncio.to_thread(self.save, path)

    def _save(self, path: Path) -> None:
        if self._cache is None:
            raise UsageError("this session has nothing to save yet")
        now = self._snapshot(self._cache, len(self._tokens), self._first)
        arrays = _named(self._cache, self._full) | {"tokens": mx.array(self._tokens, mx.int32)}
        snapshots = [now, *self._snapshots]
        for number, one in enumerate(snapshots):
            arrays |= {f"{number}.{name}": array for name, array in one.buffers.items()}
        about = {"format": FORMAT, "model": self._model}
        about["standings"] = json.dumps([(one.length, one.first) for one in snapshots])
        try:
            with replacing(path, suffix=".safetensors") as partial:  # MLX insists on the ending
                mx.save_safetensors(str(partial), arrays, about)
        except (OSError, RuntimeError) as error:
            why = one_line(error) if path.parent.is_dir() else f"{path.parent} is not a folder"
            raise SaveError(f"{path} cannot be written: {why}") from None

    def _restore(self, path: Path) -> None:
        """Load what `save` wrote. Raises CheckpointError for anything else, or another model."""
        mlx_worker().run(lambda: self._load(path))

    def _load(self, path: Path) -> None:
        try:
            loaded = mx.load(str(path), format="safetensors", return_metadata=True)
            arrays, about = cast(tuple[dict[str, mx.array], dict[str, str]], loaded)
            if about.get("format") != FORMAT:
                raise CheckpointError(
                    f"{path} is not a saved session of this version: start a new session"
                )
            if about.get("model") != self._model:
                raise CheckpointError(f"{path} belongs to another model: start a new session")
            names = [f"{part}.{index}" for part in PARTS for index in self._sliding]
            snapshots = [
                _Snapshot(int(length), int(first), {n: arrays[f"{number}.{n}"] for n in names})
                for number, (length, first) in enumerate(json.loads(about["standings"]))
            ]
            now, tokens = snapshots[0], arrays["tokens"].tolist()
            found, layers = arrays | now.buffers, range(self._config.num_kv_layers)
            keys, values = ([found[f"{part}.{index}"] for index in layers] for part in PARTS)
            offset = mx.array([now.length], mx.int32)
            cache = KVCache(self._config, Buffers(offset, keys, values))
            mx.eval(keys, values, [one.buffers for one in snapshots])
        except (RuntimeError, KeyError, ValueError, TypeError) as error:
            raise CheckpointError(f"{path} is not a saved session: {one_line(error)}") from None
        self._cache, self._tokens, self._snapshots = cache, cast(list[int], tokens), snapshots[1:]
        self._first = now.first

    def _snapshot(self, cache: KVCache, length: int, first: int) -> _Snapshot:
        return _Snapshot(length, first, _named(cache, self._sliding))

    def _best(self, cache: KVCache, ids: Sequence[int]) -> tuple[_Snapshot, int]:
        """The snapshot with the longest usable prefix of this prompt, and its length."""
        pairs = zip(ids, self._tokens, strict=False)
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        most = min(same, len(ids) - 1)
        now = self._snapshot(cache, len(self._tokens), self._first)
        snapshots = sorted([now, *self._snapshots], key=lambda snapshot: snapshot.length)
        snapshot = max(snapshots, key=lambda snapshot: self._usable(snapshot, most))
        return snapshot, self._usable(snapshot, most)

    def _usable(self, snapshot: _Snapshot, most: int) -> int:
        """How many of the first `most` tokens are usable with these sliding layers.

        The next query must find its whole window. If it does, a stale slot cannot pass for part of
        it, a turn of the ring earlier: that position would have to be held as well.
        """
        length = min(most, snapshot.length)
        return length if snapshot.first <= max(0, length - self._config.sliding_window + 1) else 0


def checked_path(path: str | Path, name: str) -> Path:
    """Return the path of a file that a caller names. Raises UsageError."""
    if not isinstance(path, str | os.PathLike) or not str(path):
        raise UsageError(f"{name} must be the path of a file, not {path!r}")
    return Path(path)


def _named(cache: KVCache, layers: Sequence[int]) -> dict[str, mx.array]:
    """The buffers of these layers, by the names that they have in a file."""
    return {f"{part}.{i}": getattr(cache, part)[i] for part in PARTS for i in layers}
