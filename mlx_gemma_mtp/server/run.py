"""The completions of one HTTP request, under way. Knows neither HTTP nor protocols."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import replace

from mlx_gemma_mtp.engine.generation import Generation
from mlx_gemma_mtp.engine.results import Chunk, Completion
from mlx_gemma_mtp.server.asked import Asked
from mlx_gemma_mtp.server.failures import Failure, failure_of

Part = tuple[int, Chunk]  # the number of a completion, and a piece of it


class Run:
    """Reads the chunks of all completions, in the order in which they come.

    started: when the request came, by `time.perf_counter`. seen: what has been read. failure: what
    ended it early. left: True if the client hung up.
    """

    def __init__(self, asked: Asked, generations: Sequence[Generation], started: float) -> None:
        self.asked = asked
        self.generations = generations
        self.started = started
        self.seen: list[Part] = []
        self.failure: Failure | None = None
        self.left = False
        self._parts: asyncio.Queue[Part | BaseException | None] = asyncio.Queue()
        self._first: list[Part] = []
        self._reading = [
            asyncio.create_task(self._read(number, one)) for number, one in enumerate(generations)
        ]
        self._open = len(self._reading)

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
        texts = [""] * len(found)
        for number, chunk in self.seen:
            texts[number] += chunk.text if chunk.kind == "answer" else ""
        pairs = zip(found, texts, strict=True)
        return [replace(one, text=text, tool_calls=one.tool_calls[:1]) for one, text in pairs]

    def cancel(self) -> None:
        """End all completions within a round."""
        for generation in self.generations:
            generation.cancel()

    async def _next(self) -> Part | None:
        while self._open:
            part = await self._parts.get()
            if isinstance(part, BaseException):
                self.cancel()
                self.failure = failure_of(part, self.asked.names)
                raise self.failure
            if part is not None:
                self.seen.append(part)
                return part
            self._open -= 1
        return None

    async def _read(self, number: int, generation: Generation) -> None:
        try:
            called = False
            async for chunk in generation:
                if self.asked.one_call:
                    chunk = _of_first_call(chunk, called=called)
                if not called or chunk.finish_reason is not None:
                    self._parts.put_nowait((number, chunk))
                if self.asked.one_call and chunk.tool_call is not None:
                    called = True
                    generation.cancel()
            self._parts.put_nowait(None)
        except Exception as error:  # noqa: BLE001 - whoever reads the parts gets it
            self._parts.put_nowait(error)


def _of_first_call(chunk: Chunk, *, called: bool) -> Chunk:
    """Return a chunk without other calls than the first. called: that one is complete."""
    if called:
        return Chunk("", [], chunk.finish_reason, chunk.stats)
    return replace(chunk, call_deltas=tuple(one for one in chunk.call_deltas if not one.index))
