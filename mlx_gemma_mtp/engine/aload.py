"""Loading a pair from an event loop. Knows nothing of what loading takes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from functools import wraps
from typing import Any, ParamSpec, cast

from mlx_gemma_mtp.engine.engine import Engine
from mlx_gemma_mtp.engine.load import load

P = ParamSpec("P")


def without_blocking(load: Callable[P, Engine]) -> Callable[P, Coroutine[Any, Any, Engine]]:
    """Return a coroutine function that loads on a thread. load: takes `cancel` as well."""

    @wraps(load, assigned=())
    async def aload(*args: P.args, **kwargs: P.kwargs) -> Engine:
        """Do what `load` does, with the same arguments, without blocking the event loop.

        If the task is cancelled, the load ends within a moment.
        """
        options: dict[str, Any] = {"cancel": threading.Event()} | kwargs

        def ready() -> Engine:
            engine = cast(Callable[..., Engine], load)(*args, **options)
            if engine.text is not None:  # the first prompt would wait for its template
                engine.count_tokens("Hi")
            return engine

        thread = ThreadPoolExecutor(1)
        loading = thread.submit(ready)
        thread.shutdown(wait=False)
        try:
            return await asyncio.wrap_future(loading)
        except asyncio.CancelledError:
            if options["cancel"] is not None:
                options["cancel"].set()
            loading.add_done_callback(_close)
            raise

    return aload


def _close(loading: Future[Engine]) -> None:
    if not loading.cancelled() and loading.exception() is None:
        threading.Thread(target=loading.result().close).start()


aload = without_blocking(load)
