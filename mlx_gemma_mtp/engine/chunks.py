"""The chunks of a request, read one after another. Knows nothing of how they come."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlx_gemma_mtp.engine.results import Chunk

if TYPE_CHECKING:
    from mlx_gemma_mtp.engine.generation import Generation


class Chunks:
    """The chunks of a generation, from the first on, as `for` and `async for` read them.

    If it is dropped or closed before the last, the request is cancelled.
    """

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self._number = 0
        self.reading = False

    def __iter__(self) -> Chunks:
        return self

    def __aiter__(self) -> Chunks:
        return self

    def __next__(self) -> Chunk:
        self.reading = True
        self._generation._wait_for(self._number)
        chunk = self._next()
        if chunk is None:
            raise StopIteration
        return chunk

    async def __anext__(self) -> Chunk:
        self.reading = True
        await self._generation._reached(self._number)
        chunk = self._next()
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    def close(self) -> None:
        """Cancel the request, from any thread; whoever reads gets the end within a round."""
        self._generation.cancel()

    async def aclose(self) -> None:
        """Cancel the request."""
        self.close()

    def __del__(self) -> None:
        if self.reading:
            self.close()

    def _next(self) -> Chunk | None:
        """Return the next chunk, which is there; None at the end, or raise what failed."""
        chunks = self._generation._chunks
        if self._number < len(chunks):
            self._number += 1
            return chunks[self._number - 1]
        self.reading = False
        self._generation.result()
        return None
