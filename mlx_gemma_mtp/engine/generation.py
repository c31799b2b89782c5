"""A request as its caller sees it: chunks to read, a result to wait for, a way to stop it.

Any thread and any event loop may use it, several at once. Knows nothing of how it is served.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import weakref
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

from mlx_gemma_mtp.engine.callbacks import AsyncCallback, running_loop
from mlx_gemma_mtp.engine.chunks import Chunks
from mlx_gemma_mtp.engine.results import Chunk, Completion
from mlx_gemma_mtp.engine.worker import mlx_worker, only_here
from mlx_gemma_mtp.errors import UsageError, as_failure

log = logging.getLogger("mlx_gemma_mtp")


class Generation(Future[Completion]):
    """A request under way, made by `Engine.submit` and `Engine.stream`, never by hand.

    A Future of its Completion. `await` gives the Completion, too. `for` and `async for` give the
    chunks, each loop from the first one on; a loop that is left early cancels the request.
    `next(generation)` reads on from chunk to chunk, and a loop after it continues there. A `with`
    or `async with` block waits for the end of the request, and cancels it if the block raises; what
    failed is raised by `result`, not by the block.

    Waiting for it raises UsageError in an `on_chunk` callback, which runs on the thread that does
    the work. Cancelling a task that waits cancels the request.
    """

    def __init__(self) -> None:
        super().__init__()
        self._prompt_tokens: int | None = None
        self._stopping = False  # True once it is cancelled
        self._on_cancel: Callable[[], object] = lambda: None
        self._waiters = _Waiters(weakref.ref(self))
        self._chunks: list[Chunk] = []  # so far; it only grows
        self._changing = threading.Lock()
        self._waiting: list[tuple[float, Callable[[], object]]] = []  # for a chunk's number
        self._own: Chunks | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # which runs callbacks until the end
        self._callbacks: asyncio.Task[None] | None = None
        self._callback_error: Exception | None = None
        self._ended: Completion | None = None  # while callbacks are still running

    def __repr__(self) -> str:
        num_tokens = sum(len(chunk.tokens) for chunk in self._chunks)
        state = "cancelled" if self._stopping else "running"
        if self.done():
            done = self.completion
            state = done.finish_reason if done else "failed"
        return f"<Generation {state}, {num_tokens} tokens>"

    __reduce__ = only_here("a generation", "send its result()")

    # Results

    @property
    def completion(self) -> Completion | None:
        """The Completion; None while it runs, or if it failed."""
        return self.result() if self.done() and self.exception() is None else None

    @property
    def text(self) -> str:
        """The answer so far."""
        return "".join(chunk.text for chunk in self._chunks if chunk.kind == "answer")

    @property
    def prompt_tokens(self) -> int | None:
        """Tokens of the prompt; None before it waits for a row."""
        return self._prompt_tokens

    def result(self, timeout: float | None = None) -> Completion:
        """Wait for the end of the request, for at most `timeout` seconds.

        Raises the MgmError that ended it, or TimeoutError.
        """
        self._check_may_wait()
        try:
            return super().result(timeout)
        finally:
            del self  # otherwise a raised error and this object keep each other alive

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait like `result`, and return the error that ended it or None."""
        self._check_may_wait()
        return super().exception(timeout)

    def add_done_callback(self, fn: Callable[[Future[Completion]], object]) -> None:
        """Call a function with this object at the end, mostly on the thread that does the work."""
        if getattr(fn, "__module__", None) == asyncio.tasks.__name__:  # it would never come back
            raise UsageError("asyncio.wait takes tasks: give asyncio.ensure_future(generation)")
        super().add_done_callback(fn)

    def set_result(self, result: Completion) -> NoReturn:
        """Raise UsageError: only the engine ends it. To stop it, use `cancel`."""
        raise UsageError("the engine sets the result of a request: to stop it, use cancel()")

    def set_exception(self, exception: BaseException | None) -> NoReturn:
        """Raise UsageError, as `set_result`."""
        raise UsageError("the engine sets the result of a request: to stop it, use cancel()")

    def cancel(self) -> bool:
        """End the request within a round; its result is the output so far.

        Never blocks. The finish_reason is "cancelled". Returns False if it has ended already.
        """
        self._stopping = True
        self._on_cancel()
        return not self.done()

    def close(self) -> None:
        """Cancel it, like the `close` of a generator."""
        self.cancel()

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.cancel()
        try:
            self.exception()
        except BaseException:  # Ctrl-C
            self.cancel()
            raise

    def __await__(self) -> Generator[Any, None, Completion]:
        return self._awaited().__await__()

    async def __aenter__(self) -> Generation:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.cancel()
        await self._reached(math.inf)

    async def _awaited(self) -> Completion:
        await self._reached(math.inf)
        return self.result()

    # Chunks

    def __iter__(self) -> Chunks:
        return self._own if self._own and self._own.reading else Chunks(self)

    def __aiter__(self) -> Chunks:
        return iter(self)

    def __next__(self) -> Chunk:
        self._own = self._own or Chunks(self)
        return next(self._own)

    async def __anext__(self) -> Chunk:
        self._own = self._own or Chunks(self)
        return await anext(self._own)

    def _wait_for(self, number: float) -> None:
        """Wait for the chunk of this number, from 0, or the end. Ctrl-C cancels the request."""
        if not self._has(number):
            self._check_may_wait()
            reached = threading.Event()
            self._when(number, reached.set)
            try:
                reached.wait()
            except BaseException:
                self.cancel()
                raise

    async def _reached(self, number: float) -> None:
        """Await the chunk of this number, from 0, or the end. CancelledError cancels."""
        if self._callbacks is not None and asyncio.current_task() is self._callbacks:
            raise UsageError("a callback must not await its own request, which ends after it")
        await self._reach(number)

    async def _reach(self, number: float) -> None:
        if not self._has(number):
            mlx_worker().check_may_wait()
            loop = asyncio.get_running_loop()
            reached: asyncio.Future[None] = loop.create_future()
            self._when(number, partial(_tell, loop, reached))
            try:
                await reached
            except BaseException:
                self.cancel()
                raise

    def _has(self, number: float) -> bool:
        return number < len(self._chunks) or self.done()

    def _when(self, number: float, tell: Callable[[], object]) -> None:
        """Call `tell` once when the chunk or the end is there, from any thread."""
        with self._changing:
            there = self._has(number)
            if not there:
                self._waiting.append((number, tell))
        if there:
            tell()

    def _tell_waiting(self) -> None:
        with self._changing:
            told = [tell for number, tell in self._waiting if self._has(number)]
            self._waiting = [one for one in self._waiting if not self._has(one[0])]
        for tell in told:
            tell()

    def _check_may_wait(self) -> None:
        """Raise UsageError if waiting in this thread would never end."""
        if self.done():
            return
        mlx_worker().check_may_wait()
        if self._loop is not None and running_loop() is self._loop:
            raise UsageError("its callbacks run in this event loop: await it instead of waiting")

    # What the request calls, on the worker

    def _when_cancelled(self, tell: Callable[[], object]) -> None:
        """Call this on each `cancel`, from its thread; now, if it was cancelled before."""
        self._on_cancel = tell
        if self._stopping:
            tell()

    def _add(self, chunk: Chunk) -> None:
        """Add a piece of output."""
        self._chunks.append(chunk)
        self._tell_waiting()

    def _finish(self, completion: Completion) -> None:
        """End it, after the last callback if those run in a loop."""
        with self._changing:
            if self._loop is not None and not self._loop.is_closed():
                self._ended = completion
                return
        self._settle(completion)

    def _fail(self, error: BaseException) -> None:
        """End it with an error, whatever callbacks are still running."""
        self._end(partial(super().set_exception, error))

    # Callbacks in an event loop

    def _hold_for(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let the result wait for `_call_back`, to be called in this loop once it is submitted."""
        self._loop = loop

    def _call_back(self, on_chunk: AsyncCallback) -> None:
        """Call this with every chunk, in the loop, one after another. An error ends the request."""
        assert self._loop is not None
        self._callbacks = self._loop.create_task(self._run_callbacks(on_chunk))

    async def _run_callbacks(self, on_chunk: AsyncCallback) -> None:
        number, last = 0, False
        try:
            while not last:
                await self._reach(number)
                if number == len(self._chunks):
                    break  # it failed
                chunk, number = self._chunks[number], number + 1
                last = chunk.finish_reason is not None
                await on_chunk(chunk)
        except Exception as error:  # noqa: BLE001 - the submitter gets it
            self.cancel()
            self._callback_error = error
        except BaseException:  # the loop is about to end
            self.cancel()
            raise
        finally:
            with self._changing:
                ended, self._loop = self._ended, None
            if ended is not None:
                self._settle(ended)

    def _settle(self, completion: Completion) -> None:
        error, self._callback_error = self._callback_error, None
        if error is None:
            self._end(partial(super().set_result, completion))
        else:
            self._fail(as_failure(error))

    def _end(self, end: Callable[[], object]) -> None:
        try:
            end()
        except BaseException:
            log.exception("the end of a request could not be handed out")
        self._tell_waiting()


class _Waiters(list[Any]):
    """What `concurrent.futures.wait` and `as_completed` add themselves to before they wait."""

    def __init__(self, generation: weakref.ref[Generation]) -> None:
        super().__init__()
        self._generation = generation

    def append(self, waiter: Any) -> None:
        if (generation := self._generation()) is not None:
            generation._check_may_wait()
        super().append(waiter)


def _tell(loop: asyncio.AbstractEventLoop, reached: asyncio.Future[None]) -> None:
    with suppress(RuntimeError):  # the loop was closed, so nobody waits in it
        loop.call_soon_threadsafe(_set, reached)


def _set(reached: asyncio.Future[None]) -> None:
    if not reached.done():
        reached.set_result(None)
