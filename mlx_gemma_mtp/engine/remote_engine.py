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

from mlx_gemma_mtp.engine.engine import Engine
from mlx_gemma_mtp.engine.loading import Watch
from mlx_gemma_mtp.engine.process import WorkerProcess
from mlx_gemma_mtp.engine.remote import Remote
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.errors import UsageError
from mlx_gemma_mtp.text.tokenizer import Text


class RemoteEngine(Engine):
    """An engine that `load(isolated=True)` makes."""

    def __init__(self, remote: Remote) -> None:
        """remote: has a worker that has loaded the model."""
        self._remote, folder = remote, remote.about.folder
        self._open(remote, None if folder is None else Text(folder))
        # An engine that is dropped takes its worker with it, once that has nothing left to do.
        abandon = partial(mlx_worker().submit, remote.abandon)
        weakref.finalize(self, abandon).atexit = False

    @property
    def worker_pid(self) -> int | None:
        """The id of the worker process; None while there is none that has loaded the model."""
        return self._remote.pid


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
        return RemoteEngine(Remote(process, about, state, options, max_queue=max_queue))
    except BaseException:
        process.end()
        raise
