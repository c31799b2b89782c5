"""Whether the models of an engine are in memory, and whether it is at work.

They leave it after some time without work, and are loaded again for the next request, which waits.
A Mac is kept awake while there is work. The worker calls everything.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial

import mlx.core as mx

from mlx_gemma_mtp.decode.player import RoundPlayer
from mlx_gemma_mtp.engine.activity import hold_awake
from mlx_gemma_mtp.engine.batch import Batch
from mlx_gemma_mtp.engine.loading import Models, Watch
from mlx_gemma_mtp.engine.scheduler import CLOSED, Scheduler
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.errors import ClosedError
from mlx_gemma_mtp.model.target import Target

log = logging.getLogger("mlx_gemma_mtp")

After = Callable[[float, Callable[[], object]], Callable[[], None]]


def after(seconds: float, job: Callable[[], object]) -> Callable[[], None]:
    """Run a job on a thread of its own after some time; the result calls it off."""
    timer = threading.Timer(seconds, job)
    timer.daemon = True
    timer.start()
    return timer.cancel


class Residence:
    """The models of one engine, and its work.

    Who sees that there is nothing to do calls `rest`, and who adds work calls `work`.
    """

    def __init__(
        self,
        batch: Batch,
        equip: Callable[[Models], tuple[Target, RoundPlayer]],
        load: Callable[[Watch], Models] | None = None,
        seconds: float | None = None,
        *,
        on_unload: Callable[[], object],
        after: After = after,
        hold: Callable[[], Callable[[], None]] = hold_awake,
    ) -> None:
        """equip: makes of the models what a batch takes.

        load: loads them again, on a thread of its own; None if they always stay. seconds: how long
        they stay without work. on_unload: drops whatever else holds them. after, hold: see `after`
        and `hold_awake`.
        """
        self._batch = batch
        self._load, self._equip = load, equip
        self._seconds, self._on_unload = seconds, on_unload
        self._after, self._hold = after, hold
        self._let_sleep: Callable[[], None] = lambda: None
        self._working = False
        self._call_off: Callable[[], None] = lambda: None
        self._loading = self._closed = False

    @property
    def loaded(self) -> bool:
        """True while the models are in memory."""
        return not self._closed and self._batch.loaded

    def work(self, scheduler: Scheduler) -> None:
        """Play this scheduler's steps, which has something to do; load the models if need be."""
        self._call_off()
        if self._batch.loaded:
            mlx_worker().repeat(scheduler.step)
        elif not self._loading:
            self._loading = True
            threading.Thread(target=self._reload, args=[scheduler], daemon=True).start()
        if not self._working:
            self._working = True
            self._let_sleep = self._hold()

    def rest(self) -> None:
        """There is nothing to do now."""
        self._stop()
        if self._seconds is not None and self._load is not None and self.loaded:
            soon = partial(mlx_worker().submit, self._unload)
            self._call_off = self._after(self._seconds, soon)

    def close(self) -> None:
        """Let go of everything."""
        self._closed = True
        self._stop()
        del self._batch

    def _stop(self) -> None:
        self._call_off()
        self._let_sleep()
        self._let_sleep, self._working = lambda: None, False

    def _unload(self) -> None:
        # Work may have come in the moment between the timer and this job.
        if self.loaded and not self._working:
            self._on_unload()
            self._batch.unload()
            mx.clear_cache()
            log.info("the weights left the memory after %g s without a request", self._seconds)

    def _reload(self, scheduler: Scheduler) -> None:
        """Load the models, on a thread of its own; what waits can be cancelled meanwhile."""
        assert self._load is not None

        def watch(_: float) -> None:
            if self._closed:
                raise ClosedError(str(CLOSED))
            mlx_worker().run(scheduler.step)

        try:
            models = self._load(watch)
        except BaseException as error:  # noqa: BLE001 - those who wait get it
            mlx_worker().submit(partial(self._failed, scheduler, error))
        else:
            mlx_worker().submit(partial(self._use, scheduler, models))

    def _use(self, scheduler: Scheduler, models: Models) -> None:
        if self._closed:
            models.clear()
            return
        try:
            self._batch.load(*self._equip(models))
        except BaseException as error:  # noqa: BLE001 - those who wait get it
            self._failed(scheduler, error)
        else:
            self._loading = False
            log.info("the weights are loaded again")
            mlx_worker().repeat(scheduler.step)

    def _failed(self, scheduler: Scheduler, error: BaseException) -> None:
        self._loading = False
        if not self._closed:
            scheduler.end(error)
            self.rest()
