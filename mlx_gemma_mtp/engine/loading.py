"""From a pair's files to its models, in slices between the other jobs of the worker.

The calling thread reads the files and waits, so Ctrl-C ends it; the worker gets one slice at a
time. Knows nothing of names or of engines.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx

from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.files import weights
from mlx_gemma_mtp.files.slices import SLICE, Plan, plan_slices, read_slices
from mlx_gemma_mtp.files.sources import Source
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.layers import fuse_projections
from mlx_gemma_mtp.model.target import Target

Watch = Callable[[float], None]  # called with the share of the work that is done, 0 to 1


class Models(NamedTuple):
    """A target and its drafter."""

    target: Target
    drafter: Drafter | None

    def discard(self) -> None:
        """Do what `clear` does, from any thread but the worker's."""
        mlx_worker().run(self.clear)

    def clear(self) -> None:
        """Free the weights, whoever still holds the models, such as an error that is kept."""
        for model in self:
            for module in [] if model is None else model.modules():
                module.clear()
        mx.clear_cache()


@dataclass(frozen=True)
class PairFiles:
    """The folders of a target and its drafter. bits: as `load`."""

    target: Path
    drafter: Path | None
    bits: int | None

    def load(self, watch: Watch | None = None, most: int = SLICE) -> Models:
        """Load the models from any thread but the worker's.

        watch: called on this thread for each slice; if it raises, the load ends there. most: bytes
        of a slice. Errors as `weights.load_target`.
        """
        models, sources = mlx_worker().run(self._open)
        try:
            plan = plan_slices(models.target, sources[0], most)
            if models.drafter is not None:
                plan += plan_slices(models.drafter, sources[1], most)
            _place(plan, watch)
            mlx_worker().run(partial(self._check, models))
        except BaseException:
            models.discard()
            raise
        return models

    def _open(self) -> tuple[Models, list[dict[str, Source]]]:
        dtype = weights.default_dtype()
        models = Models(*weights.open_pair(self.target, self.drafter, bits=self.bits, dtype=dtype))
        sources = list[dict[str, Source]]()
        for model, folder in zip(models, (self.target, self.drafter), strict=True):
            if model is not None and folder is not None:
                sources.append(weights.find_sources(model, folder))
                fuse_projections(model)
        return models, sources

    def _check(self, models: Models) -> None:
        if models.drafter is not None and self.drafter is not None:
            weights.check_loaded(models.drafter, self.drafter)
        mx.clear_cache()


def _place(plan: Plan, watch: Watch | None) -> None:
    """Have the worker place one slice while this thread reads the next."""
    total = sum(piece.nbytes for pieces in plan for piece in pieces)
    done, placing = 0, Future[None]()
    placing.set_result(None)
    with closing(read_slices(plan)) as slices:
        for each in slices:
            placing.result()
            if watch is not None:
                watch(done / total)
            placing = mlx_worker().submit(each.place)
            done += each.nbytes
        placing.result()
    if watch is not None:
        watch(1.0)
