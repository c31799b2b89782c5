"""One worker process at a time: after one has died, another starts when there is work for it.

Knows nothing of requests, nor of what the messages say.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from mlx_gemma_mtp.engine.process import WorkerProcess
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.errors import CheckpointError

STOP_SECONDS = 10.0  # after which a worker that was asked to close its engine is killed


class Supervisor:
    """Keeps a worker process, and hands on its messages.

    Except for `send`, `pid` and `join`, all is called on this process's own worker, and so are the
    callbacks.
    """

    def __init__(
        self,
        process: WorkerProcess,
        options: Mapping[str, Any],
        identity: str,
        *,
        on_ready: Callable[[], object],
        on_message: Callable[..., object],
        on_lost: Callable[[BaseException], object],
    ) -> None:
        """process: has loaded the model of this identity. options: to load it again.

        on_ready: another worker has loaded it. on_message: gets the parts of each message. on_lost:
        the worker has died, or another one could not load the model.
        """
        self._process: WorkerProcess | None = process  # one that has loaded the model
        self._latest = process
        self._options = options
        self._identity = identity
        self._on_ready, self._on_message, self._on_lost = on_ready, on_message, on_lost
        self._closed = threading.Event()
        self._running = False
        self.start()

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return self._closed.is_set()

    @property
    def pid(self) -> int | None:
        """The process; None while there is none that has loaded the model."""
        process = self._process
        return None if process is None else process.pid

    def send(self, *message: Any) -> None:
        """Send a message, from any thread; it is lost without a worker that has loaded."""
        process = self._process
        if process is not None:
            process.send(*message)

    def start(self) -> None:
        """Start a worker unless there is one, or one is on its way."""
        if not self._running:
            self._running = True
            self._runner = threading.Thread(target=self._run, args=[self._process], daemon=True)
            self._runner.start()

    def close(self) -> None:
        """Have the worker close its engine and end; none is started any more."""
        self._closed.set()
        self.send("close", 0)
        self._process = None

    def join(self) -> None:
        """Wait until the worker has ended, after `close`; from any other thread."""
        self._runner.join(STOP_SECONDS)
        if self._runner.is_alive():
            self._latest.kill()
            self._runner.join()

    def _run(self, process: WorkerProcess | None) -> None:
        """Start a worker if there is none, and take its messages until it has ended."""
        try:
            if process is None:
                process = self._latest = WorkerProcess(self._options)
                about, _ = process.loaded({}, self._closed.is_set, self._options["model"])
                if about.identity != self._identity:
                    process.end()
                    raise CheckpointError("the model on disk has changed: load it again")
                mlx_worker().submit(partial(self._ready, process))
            while True:
                mlx_worker().submit(partial(self._on_message, *process.receive()))
        except BaseException as error:  # noqa: BLE001 - all who wait get it
            mlx_worker().submit(partial(self._lost, error))

    def _ready(self, process: WorkerProcess) -> None:
        if self.closed:
            process.send("close", 0)
        else:
            self._process = process
            self._on_ready()

    def _lost(self, error: BaseException) -> None:
        self._running = False
        if not self.closed:
            self._process = None
            self._on_lost(error)
