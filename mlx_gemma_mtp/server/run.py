"""The completions of one HTTP request, under way. Knows neither HTTP nor protocols."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace

from mlx_gemma_mtp.engine.generation import Generation
from mlx_gemma_mtp.engine.results import Chunk, Completion
from mlx_gemma_mtp.server.asked import Asked
from mlx_gemma_mtp.server.failures import Failure, failure_of
from mlx_gemma_mtp.text.channels import Kind

Part = tuple[int, Chunk]  # the number of a completion, and a piece of it


class Run:
    """Reads the chunks of all completions, in the order in which they come.

    seen: what has been read. failure: what ended it early. left: True if the client hung up.
    """

    def __init__(self, asked: Asked) -> None:
        """To be made in an event loop, and given completions by `add` at once."""
        self.asked = asked
        self.generations: list[Generation] = []
        self.seen: list[Part] = []
        self.failure: Failure | None = None
        self.left = False
        self._loop = asyncio.get_running_loop()
        self._parts: asyncio.Queue[Part | BaseException | None] = asyncio.Queue()
        self._first: list[Part] = []
        self._called: set[int] = set()  # completions whose first call is complete
        self._num_ended = 0

    def add(self, submit: Callable[[Callable[[Chunk], None]], Generation]) -> None:
        """Start a completion. submit: is given what each of its chunks is handed to."""
        number = len(self.generations)
        # Chunks come from the engine's thread. A task of their own for each completion would double
        # the work of the event loop.
        generation = submit(lambda chunk: self._soon(self._take, number, chunk))
        self.generations.append(generation)
        generation.add_done_callback(lambda _: self._soon(self._close, generation))

    async def ready(self, seconds: float) -> None:
        """Wait for the first output, at most this long. Raises the Failure that came instead.

        So an answer whose status is sent afterwards has the right one.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                if (part := await self._next()) is not None:
                    self._first.append(part)

    async def parts(self) -> AsyncIterator[Part]:
        """Yield the number of a completion and its next chunk. Raises Failure."""
        while self._first:
            yield self._first.pop()
        while (part := await self._next()) is not None:
            yield part

    async def completions(self) -> list[Completion]:
        """Wait for the end of all. Raises Failure."""
        while await self._next() is not None:
            pass
        return self.results()

    def results(self) -> list[Completion]:
        """Return the completions, which have ended; of one call, without what came after it."""
        found = [generation.result() for generation in self.generations]
        if not self.asked.one_call:
            return found
        texts = ("".join(one.text for one in self.chunks(n, "answer")) for n in range(len(found)))
        pairs = zip(found, texts, strict=True)
        return [replace(one, text=text, tool_calls=one.tool_calls[:1]) for one, text in pairs]

    def chunks(self, number: int, *kinds: Kind) -> list[Chunk]:
        """Return what has been read of the completion of this number, of some kinds or all."""
        own = (chunk for other, chunk in self.seen if other == number)
        return [chunk for chunk in own if not kinds or chunk.kind in kinds]

    def cancel(self) -> None:
        """End all completions within a round."""
        for generation in self.generations:
            generation.cancel()

    async def _next(self) -> Part | None:
        while self._num_ended < len(self.generations):
            part = await self._parts.get()
            if isinstance(part, BaseException):
                self.cancel()
                self.failure = failure_of(part, self.asked.names)
                raise self.failure
            if part is not None:
                self.seen.append(part)
                return part
            self._num_ended += 1
        return None

    def _soon(self, do: Callable[..., None], *arguments: object) -> None:
        with suppress(RuntimeError):  # the loop was closed, so nobody waits in it
            self._loop.call_soon_threadsafe(do, *arguments)

    def _take(self, number: int, chunk: Chunk) -> None:
        called = number in self._called
        if self.asked.one_call:
            chunk = _of_first_call(chunk, called=called)
        if not called or chunk.finish_reason is not None:
            self._parts.put_nowait((number, chunk))
        if self.asked.one_call and chunk.tool_call is not None:
            self._called.add(number)
            self.generations[number].cancel()

    def _close(self, generation: Generation) -> None:
        self._parts.put_nowait(generation.exception())


def _of_first_call(chunk: Chunk, *, called: bool) -> Chunk:
    """Return a chunk without other calls than the first. called: that one is complete."""
    if called:
        return Chunk("", [], chunk.finish_reason, chunk.stats)
    return replace(chunk, call_deltas=tuple(one for one in chunk.call_deltas if not one.index))
