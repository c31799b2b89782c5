"""From a pair's files to its models, in slices between the other jobs of the worker.

The calling thread reads the files and waits, so Ctrl-C ends it; the worker places what is read, a
short turn at a time. Knows nothing of names or of engines.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx

from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.files import weights
from mlx_gemma_mtp.files.slices import SLICE, Plan, Slice, plan_slices, read_slices
from mlx_gemma_mtp.files.sources import Source
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.layers import fuse_projections
from mlx_gemma_mtp.model.target import Target

Watch = Callable[[float], None]  # called with the share of the work that is done, 0 to 1
Clock = Callable[[], float]  # seconds

TURN_SECONDS = 0.05  # of the worker: about a round of a large model
AHEAD = 4  # slices that are read and wait for their turn


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

    def load(
        self, watch: Watch | None = None, most: int = SLICE, clock: Clock = time.perf_counter
    ) -> Models:
        """Load the models from any thread but the worker's.

        watch: called on this thread for each slice that is read; if it raises, the load ends there.
        most: bytes of a slice. clock: measures turns. Errors as `weights.load_target`.
        """
        models, sources = mlx_worker().run(self._open)
        try:
            plan = plan_slices(models.target, sources[0], most)
            if models.drafter is not None:
                plan += plan_slices(models.drafter, sources[1], most)
            _place(plan, watch, clock)
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


def _place(plan: Plan, watch: Watch | None, clock: Clock) -> None:
    """Read all slices on this thread, and have the worker place them."""
    total = sum(piece.nbytes for pieces in plan for piece in pieces)
    done, turns = 0, Turns(clock)
    try:
        with closing(read_slices(plan)) as slices:
            for each in slices:
                if watch is not None:
                    watch(done / total)
                turns.add(each)
                done += each.nbytes
        turns.finish()
    finally:
        turns.stop()
    if watch is not None:
        watch(1.0)


class Turns:
    """Slices on their way from the thread that reads them to the worker, which places them.

    A turn ends after TURN_SECONDS, or when all that is read is placed. Between two turns every
    other engine has a round: a turn for each slice would let a large model wait for 1,000 of them.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._slices: queue.Queue[Slice] = queue.Queue(AHEAD)
        self._stopped = False
        self._error: BaseException | None = None

    def add(self, one: Slice) -> None:
        """Add a slice when there is room. Raises what placing an earlier one raised."""
        self._raise()
        self._slices.put(one)
        mlx_worker().submit(partial(mlx_worker().repeat, self._turn))

    def finish(self) -> None:
        """Wait until all are placed. Raises as `add`."""
        self._slices.join()
        self._raise()

    def stop(self) -> None:
        """Place no more of them."""
        self._stopped = True

    def _turn(self) -> bool:
        """Place at least one slice. Returns whether others wait."""
        start = self._clock()
        while not self._slices.empty():
            one = self._slices.get()
            try:
                if not self._stopped:
                    one.place()
            except BaseException as error:  # noqa: BLE001 - the thread that reads raises it
                self._error, self._stopped = error, True
            self._slices.task_done()
            if self._clock() - start >= TURN_SECONDS:
                break
        return not self._slices.empty()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
