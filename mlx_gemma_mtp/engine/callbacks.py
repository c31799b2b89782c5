"""The functions that get the output of a request, and where they run. Knows no requests."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import TypeGuard

from mlx_gemma_mtp.engine.results import Chunk

Callback = Callable[[Chunk], object]
AsyncCallback = Callable[[Chunk], Awaitable[object]]


def in_a_loop(on_chunk: Callback) -> TypeGuard[AsyncCallback]:
    """True for a coroutine function, or an object whose call is one."""
    call = getattr(on_chunk, "__call__", None)  # noqa: B004 - its kind, not whether there is one
    return inspect.iscoroutinefunction(on_chunk) or inspect.iscoroutinefunction(call)


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that runs in this thread; None if there is none."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
