"""A conversation between two of its turns: the keys and values that the next turn need not compute.

Holds those of the last prompt and answer, and of the sliding layers also how they were at the ends
of the last prompts: a chat template may rewrite the answer, and these layers forget what they have
to be rolled back to. Knows nothing of text, nor of who computes.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple, cast

import mlx.core as mx

from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.errors import CheckpointError, UsageError, one_line
from mlx_gemma_mtp.files.atomic import replacing
from mlx_gemma_mtp.memory import Limits
from mlx_gemma_mtp.model.cache import Buffers, KVCache, capacity_for
from mlx_gemma_mtp.model.config import TargetConfig

FORMAT = "mgm session 1"


@dataclass(frozen=True)
class _Standing:
    """The sliding layers' buffers when so many positions had been committed."""

    length: int
    first: int  # the lowest position they still hold
    keys: list[mx.array]
    values: list[mx.array]


class Reused(NamedTuple):
    """A one-row cache to go on with, and how many tokens of the prompt are in it."""

    cache: KVCache
    length: int


class Session:
    """One conversation; made by `Engine.session`, given to its `submit` and `stream`.

    Takes as much memory as a row of the batch and a window per snapshot, until it is dropped
    or closed. One request at a time. Only the worker looks into it.
    """

    def __init__(self, config: TargetConfig, model: str, limits: Limits) -> None:
        """model: identifies the weights, for `save` and `restore`."""
        self._config = config
        self._limits = limits
        self._model = model
        self._sliding = [
            index
            for index, layer in enumerate(config.layers[: config.num_kv_layers])
            if layer.kind == "sliding_attention"
        ]
        self._use = threading.Lock()
        self.close()

    def close(self) -> None:
        """Drop everything; the next turn begins anew."""
        self._tokens: list[int] = []
        self._cache: KVCache | None = None
        self._first = 0  # of the cache's sliding layers
        self._marks: list[_Standing] = []

    def begin(self) -> None:
        """A request is to use it. Raises UsageError where one does."""
        if not self._use.acquire(blocking=False):
            raise UsageError("this session is answering already: wait, or begin another one")

    def end(self) -> None:
        """That request is over."""
        self._use.release()

    def resume(self, ids: Sequence[int]) -> Reused | None:
        """Lend the longest part of what is held that this prompt, but its last token, begins with.

        Until `keep` the session itself holds marks only. None where nothing can be reused.
        """
        cache, self._cache = self._cache, None
        if cache is None:
            self.close()
            return None
        pairs = zip(ids, self._tokens, strict=False)
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        most = min(same, len(ids) - 1)
        now = self._standing(cache, len(self._tokens), self._first)
        standings = sorted([now, *self._marks], key=lambda standing: standing.length)
        usable = [(self._reach(one, most), one) for one in standings]
        length, standing = max(usable, key=lambda pair: pair[0])
        if length == 0:
            self.close()
            return None
        self._marks = [mark for mark in self._marks if mark.length <= length]
        self._first = standing.first
        for index, keys, values in zip(self._sliding, standing.keys, standing.values, strict=True):
            cache.keys[index], cache.values[index] = keys, values
        cache.offset = mx.array([length], mx.int32)
        return Reused(cache, length)

    def mark(self, cache: KVCache, ids: Sequence[int]) -> None:
        """The prompt is in the cache: remember how its sliding layers are. Copies nothing."""
        first = max(self._first, len(ids) - cache.capacity("sliding_attention"))
        self._marks = [
            *[mark for mark in self._marks if mark.length < len(ids)][
                -self._limits.snapshots + 1 :
            ],
            self._standing(cache, len(ids), first),
        ]

    def keep(self, cache: KVCache, tokens: Sequence[int], first: int | None = None) -> None:
        """Take over a one-row cache that holds these tokens.

        first: the lowest position its sliding layers hold; where it was lent, None.
        """
        self._cache, self._tokens = cache, list(tokens)
        lowest = len(tokens) - cache.capacity("sliding_attention")
        self._first = max(lowest, self._first if first is None else first)

    def keep_row(self, cache: KVCache, row: int, tokens: Sequence[int]) -> None:
        """Copy a row of a batch that holds these tokens."""
        length = len(tokens)
        copy = KVCache.empty(
            self._config,
            1,
            capacity=capacity_for(length),
            most=self._limits.chunks[-1],
            dtype=cache.keys[0].dtype,
        )
        copy.copy_row(cache, row, length)
        self.keep(copy, tokens, first=max(0, length - self._config.sliding_window))

    def save(self, path: Path) -> None:
        """Write all of it to a safetensors file, for `Engine.session` of another process.

        Raises UsageError while a request uses it, OSError.
        """
        self.begin()
        try:
            mlx_worker().run(lambda: self._save(path))
        finally:
            self.end()

    def _save(self, path: Path) -> None:
        if self._cache is None:
            raise UsageError("this session holds nothing to save yet")
        cache, length = self._cache, len(self._tokens)
        now = self._standing(cache, length, self._first)
        arrays = {"tokens": mx.array(self._tokens, mx.int32)}
        for index in range(len(cache.keys)):
            if index not in self._sliding:
                arrays[f"keys.{index}"], arrays[f"values.{index}"] = (
                    cache.keys[index],
                    cache.values[index],
                )
        for number, standing in enumerate([now, *self._marks]):
            for index, keys, values in zip(
                self._sliding, standing.keys, standing.values, strict=True
            ):
                arrays[f"{number}.keys.{index}"] = keys
                arrays[f"{number}.values.{index}"] = values
        standings = [(one.length, one.first) for one in (now, *self._marks)]
        about = {"format": FORMAT, "model": self._model, "standings": json.dumps(standings)}
        with replacing(path, suffix=".safetensors") as partial:  # MLX insists on the ending
            mx.save_safetensors(str(partial), arrays, about)

    def restore(self, path: Path) -> None:
        """Take over what `save` wrote. Raises CheckpointError for anything else, or another model.

        On the worker.
        """
        try:
            loaded = mx.load(str(path), format="safetensors", return_metadata=True)
            arrays, about = cast(tuple[dict[str, mx.array], dict[str, str]], loaded)
            if about.get("format") != FORMAT or about.get("model") != self._model:
                raise CheckpointError(f"{path} is of another model: begin a new session")
            standings = [
                _Standing(
                    int(length),
                    int(first),
                    [arrays[f"{number}.keys.{index}"] for index in self._sliding],
                    [arrays[f"{number}.values.{index}"] for index in self._sliding],
                )
                for number, (length, first) in enumerate(json.loads(about["standings"]))
            ]
            now, tokens = standings[0], arrays["tokens"].tolist()
            keys, values = (
                [
                    arrays[f"0.{what}.{i}" if i in self._sliding else f"{what}.{i}"]
                    for i in range(self._config.num_kv_layers)
                ]
                for what in ("keys", "values")
            )
            cache = KVCache(self._config, Buffers(mx.array([now.length], mx.int32), keys, values))
            mx.eval(cache.keys, cache.values, [[*one.keys, *one.values] for one in standings])
        except (RuntimeError, KeyError, ValueError, TypeError) as error:
            reason = one_line(error)
            raise CheckpointError(f"{path} is no saved session: {reason}") from None
        self._cache, self._tokens, self._marks = cache, cast(list[int], tokens), standings[1:]
        self._first = now.first

    def _standing(self, cache: KVCache, length: int, first: int) -> _Standing:
        keys = [cache.keys[index] for index in self._sliding]
        values = [cache.values[index] for index in self._sliding]
        return _Standing(length, first, keys, values)

    def _reach(self, standing: _Standing, most: int) -> int:
        """How many of the first `most` tokens can be gone on from with these sliding layers.

        The next query must find its whole window. Where it does, no stale slot can pass for one of
        it, a turn of the ring earlier: that position would have to be held as well.
        """
        length = min(most, standing.length)
        return length if standing.first <= max(0, length - self._config.sliding_window + 1) else 0
