"""An engine whose model is in a worker process: the same checks and results, another place.

Knows nothing of pipes, and uses no MLX.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mlx_gemma_mtp.engine.about import About, State
from mlx_gemma_mtp.engine.engine import Engine, log
from mlx_gemma_mtp.engine.intake import Intake
from mlx_gemma_mtp.engine.process import Watch, WorkerProcess
from mlx_gemma_mtp.engine.remote import Remote, RemoteSession
from mlx_gemma_mtp.engine.request import Request
from mlx_gemma_mtp.engine.scheduler import CLOSED
from mlx_gemma_mtp.engine.session import Session
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.errors import UsageError
from mlx_gemma_mtp.memory import Budget
from mlx_gemma_mtp.text.tokenizer import Text


class RemoteEngine(Engine):
    """An engine that `load(isolated=True)` makes."""

    def __init__(
        self,
        process: WorkerProcess,
        about: About,
        state: State,
        options: Mapping[str, Any],
        *,
        max_queue: int,
    ) -> None:
        """Take over a worker that has loaded. Others as `Remote`."""
        self.text = None if about.folder is None else Text(about.folder)
        self.notes = about.notes
        self.config = about.pair.target
        self.has_drafter = about.pair.drafter is not None
        self.name = about.name
        self.drafter_name = about.drafter_name
        self._about = about
        self._pair = about.pair
        self._memory_limit = options["memory_limit"]
        self._max_batch = about.max_batch
        self._intake = Intake(
            self.text,
            about.defaults,
            Budget(about.pair, self._memory_limit),
            has_drafter=self.has_drafter,
            copies=options["copies"],
        )
        self._owner = object()
        self._remote = Remote(process, about, state, options, max_queue=max_queue)
        self._scheduler = self._remote
        # An engine that is dropped takes its worker with it, once that has nothing left to do.
        abandon = partial(mlx_worker().submit, self._remote.abandon)
        weakref.finalize(self, abandon).atexit = False
        log.info("opened %r", self)

    @property
    def about(self) -> About:
        return self._about

    @property
    def worker_pid(self) -> int | None:
        """The id of the worker process; None while there is none that has loaded the model."""
        return self._remote.pid

    @property
    def loaded(self) -> bool:
        """False while there is no worker that has the weights in memory."""
        return self._remote.pid is not None and self._remote.state.loaded

    @property
    def warming(self) -> bool:
        """True while `warm_up` is at work."""
        return self._remote.state.warming

    def warm_up(self, *, on_cpu: bool = False) -> None:
        """Do what `Engine.warm_up` does, in the worker."""
        self._remote.send("warm_up", -1, None, on_cpu)

    def close(self) -> None:
        """Stop all work within a round, and end the worker process. As `Engine.close`."""
        super().close()
        self._remote.join()

    def session(self, saved: str | Path | None = None) -> Session:
        """A conversation, as `Engine.session`. If the worker dies, it starts from scratch."""
        self._check()
        session = RemoteSession(self._remote, self._about, self._owner)
        if saved is not None:
            session.restore(Path(saved))
        return session

    def plain_tokens_per_second(self) -> float | None:
        """As `Engine.plain_tokens_per_second`."""
        return self._remote.state.plain_tokens_per_second

    def _available(self) -> int:
        return self._remote.state.available

    def _close(self, scheduler: object) -> None:
        self._remote.close()

    def _serve(self, request: Request) -> None:
        if self.closed:
            request.fail(CLOSED)
        else:
            self._remote.add(request)


def load_remote(
    options: dict[str, Any],
    *,
    max_queue: int,
    watches: Mapping[str, Watch],
    cancel: Callable[[], bool] | None,
) -> RemoteEngine:
    """Load a pair in a worker process.

    options: of `load`, without those that follow. watches: see `WorkerProcess.loaded`.
    """
    name = options["model"]
    for what in ("model", "drafter"):
        if isinstance(options[what], Path):
            options[what] = {"path": str(options[what])}
    options["folder"] = str(Path.cwd())
    try:
        json.dumps(options)
    except (TypeError, ValueError) as error:
        raise UsageError(f"isolated=True takes plain values: {error}") from None
    process = WorkerProcess(options)
    about, state = process.loaded(watches, cancel, name)
    try:
        return RemoteEngine(process, about, state, options, max_queue=max_queue)
    except BaseException:
        process.end()
        raise
