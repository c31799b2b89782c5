"""A target that passes through memory one layer at a time, and its hidden states for given text.

The forward is Target's own; only the layers are read from the files one by one, and dropped.
Everything is computed in float32, so that two checkpoints differ by their weights alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.errors import MgmError
from mlx_gemma_mtp.files import weights
from mlx_gemma_mtp.files.tensors import read_tensors
from mlx_gemma_mtp.model.cache import Buffers, KVCache, Reach
from mlx_gemma_mtp.model.config import TargetConfig
from mlx_gemma_mtp.model.layer_config import LayerKind
from mlx_gemma_mtp.model.target import Target, TargetLayer

from .source import read_rows

OnLayer = Callable[[int, int], None]  # layers done, layers in all


def final_hidden(
    folder: Path, tokens: mx.array, on_layer: OnLayer = lambda *_: None
) -> tuple[Target, mx.array]:
    """Return a target's hidden states [B, T, H] after the final norm.

    tokens [B, T] start at position 0; padding at a row's end changes nothing before it. At most one
    layer's weights are in memory at a time, and only these tokens' rows of the embedding tables.
    Also returns the target for its `logits`; only `embed_tokens` is left of it. Runs on the
    worker's thread. Raises CheckpointError.
    """
    target = weights.open_target(folder, dtype=mx.float32)
    used = np.unique(np.array(tokens))
    head = target.embed_tokens
    for name in ("embed_tokens", "embed_tokens_per_layer"):
        if name in target:
            target[name] = _UsedRows(folder, name, target[name], used)
    target.layers = _Passing(target.layers, on_layer)
    hidden = target(tokens, _TextCache(target.config, tokens))
    mx.eval(hidden)
    target.embed_tokens = head
    return target, hidden


class _UsedRows(nn.Module):
    """An embedding table with only the rows of the tokens used in memory."""

    def __init__(self, folder: Path, name: str, table: nn.Module, used: np.ndarray) -> None:
        super().__init__()
        self._table = copy.copy(table)
        self._row = mx.array(used)
        for stored, tensor in read_tensors(folder).items():
            module, _, part = stored.rpartition(".")
            if module == name:
                rows = mx.concatenate([read_rows(tensor, int(row), 1) for row in used])
                self._table[part] = rows.astype(weights.type_for(part, rows, mx.float32))

    def __call__(self, tokens: mx.array) -> mx.array:
        return self._table(mx.argmax(self._row == tokens[..., None], axis=-1))


class _Passing(list[TargetLayer]):
    """A target's layers for a single pass: each is read when it is asked for, and then dropped."""

    def __init__(self, layers: list[TargetLayer], on_layer: OnLayer) -> None:
        super().__init__(layers)
        self._on_layer = on_layer

    def __iter__(self) -> Iterator[TargetLayer]:
        def computed(*inputs: Any) -> mx.array:
            out = layer(*inputs)
            mx.eval(out)  # while its weights are in memory
            return out

        total = len(self)
        while self:
            if mlx_worker().leaving.is_set():
                raise MgmError("the process is leaving")
            layer = self.pop(0)  # and drop the one before
            mx.clear_cache()
            for parameter in dict(tree_flatten(layer.parameters())).values():
                mx.eval(parameter)  # one by one: bytes read from the file are more than those kept
            yield cast(TargetLayer, computed)
            self._on_layer(total - len(self), total)


class _TextCache(KVCache):
    """Keys and values of one forward over whole documents, dropped after their last reader."""

    def __init__(self, config: TargetConfig, tokens: mx.array) -> None:
        batch, self._length = tokens.shape
        none = [mx.zeros((0,))] * config.num_kv_layers
        super().__init__(config, Buffers(mx.zeros((batch,), mx.int32), none, none))

    def capacity(self, kind: LayerKind) -> int:
        return self._length

    def write(
        self, index: int, k: mx.array, v: mx.array, reach: Reach
    ) -> tuple[mx.array, mx.array]:
        read_later = {layer.kv_source for layer in self.config.layers[index:]}
        for done in set(range(index)) - read_later:
            self.keys[done] = self.values[done] = mx.zeros((0,))
        self.keys[index], self.values[index] = k, v
        return k, v
