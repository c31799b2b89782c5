"""Runs the functions that a model calls in a turn, where the turn is read; any thread may cancel.

Knows nothing of messages, nor of who asks the model.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from mlx_gemma_mtp.engine.callbacks import in_a_loop
from mlx_gemma_mtp.errors import one_line
from mlx_gemma_mtp.text.calls import ToolCall
from mlx_gemma_mtp.text.functions import Function, result_of

Result = str | Mapping[str, Any]


class Runner:
    """Runs calls, one at a time, until it is cancelled. What goes wrong in one is its result."""

    def __init__(self, functions: Mapping[str, Function]) -> None:
        self._functions = functions
        self._stop: Callable[[], object] | None = None  # while an async function is running
        self.cancelled = False

    def cancel(self) -> None:
        """End an async function that is running, from any thread."""
        self.cancelled = True
        if (stop := self._stop) is not None:
            with suppress(RuntimeError):  # its loop was closed
                stop()

    def run(self, call: ToolCall) -> Result | None:
        """Return the result of a call; None if `cancel` ended it."""
        try:
            function, arguments = self._bound(call)
            value = function.function(**arguments)
            if inspect.isawaitable(value):
                value = asyncio.run(self._awaited(value))
            return result_of(value)
        except _CancelledCallError:
            return None
        except Exception as error:  # noqa: BLE001 - the model gets it
            return _failure(error)

    async def run_async(self, call: ToolCall) -> Result | None:
        """Do what `run` does in an event loop; a function that isn't async runs on a thread."""
        try:
            function, arguments = self._bound(call)
            called = partial(function.function, **arguments)
            value = called() if is_async(function) else await asyncio.to_thread(called)
            if inspect.isawaitable(value):
                value = await self._awaited(value)
            return result_of(value)
        except _CancelledCallError:
            return None
        except Exception as error:  # noqa: BLE001 - the model gets it
            return _failure(error)

    def _bound(self, call: ToolCall) -> tuple[Function, dict[str, Any]]:
        """Return the function and its arguments. Raises ValueError, in words for a model."""
        function = self._functions.get(call.name)
        if function is None:
            named = ", ".join(self._functions)
            raise ValueError(f"there is no tool named {call.name}, only {named}")
        if call.arguments is None:
            raise ValueError("these arguments cannot be read")
        return function, function.bound(call.arguments)

    async def _awaited(self, value: Awaitable[Any]) -> Any:
        """Await what a function returned. Raises _CancelledCallError after `cancel`."""
        task = asyncio.ensure_future(value)
        self._stop = partial(asyncio.get_running_loop().call_soon_threadsafe, task.cancel)
        if self.cancelled:
            task.cancel()
        try:
            return await task
        except asyncio.CancelledError:
            reader = asyncio.current_task()
            if reader is not None and reader.cancelling():
                raise
            if self.cancelled:
                raise _CancelledCallError from None
            raise RuntimeError("it was cancelled") from None
        finally:
            self._stop = None


class _CancelledCallError(Exception):
    """`Runner.cancel` ended a call."""


def is_async(function: Function) -> bool:
    """True if a call of the function must be awaited in an event loop."""
    return in_a_loop(function.function)


def _failure(error: Exception) -> Result:
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    text = f"{kind}{one_line(error)}"
    return {"error": text.encode(errors="replace").decode()}
