"""The completions of one HTTP request, under way. Knows neither HTTP nor protocols."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

from mlx_gemma_mtp.engine.generation import Generation
from mlx_gemma_mtp.engine.results import Chunk, Completion
from mlx_gemma_mtp.server.asked import Asked
from mlx_gemma_mtp.server.failures import Failure, failure_of

Part = tuple[int, Chunk]  # the number of a completion, and a piece of it


class Run:
    """Reads the chunks of all completions, in the order in which they come.

    started: when the request came, by `time.perf_counter`. failure: what ended it early. left: True
    if the client hung up.
    """

    def __init__(self, asked: Asked, generations: Sequence[Generation], started: float) -> None:
        self.asked = asked
        self.generations = generations
        self.started = started
        self.ended: float | None = None
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
        return [generation.result() for generation in self.generations]

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
                return part
            self._open -= 1
        return None

    async def _read(self, number: int, generation: Generation) -> None:
        try:
            async for chunk in generation:
                self._parts.put_nowait((number, chunk))
                if chunk.tool_call is not None and self.asked.one_call:
                    generation.cancel()
            self._parts.put_nowait(None)
        except Exception as error:  # noqa: BLE001 - whoever reads the parts gets it
            self._parts.put_nowait(error)

    def end(self) -> None:
        """Note that nobody reads any more."""
        self.cancel()
        if self.ended is None:
            self.ended = time.perf_counter()
