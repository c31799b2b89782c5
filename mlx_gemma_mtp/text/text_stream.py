"""The text of a stream of tokens, up to a stop string. Knows nothing of what a token means."""

from __future__ import annotations

from collections.abc import Sequence

from mlx_gemma_mtp.text.detokenizer import Detokenizer
from mlx_gemma_mtp.text.markers import Markers


class TextStream:
    """Turns tokens into text, and holds back what may still become a stop string.

    `stop` is the one that was found: it and everything after it are not part of the text.
    """

    def __init__(self, detokenizer: Detokenizer, stop: Sequence[str], markers: Markers) -> None:
        self.markers = markers
        self._detokenizer = detokenizer
        self._stops = stop
        self._held = ""
        self.stop: str | None = None

    def add(self, token: int, *, stopping: bool = True) -> str:
        """Return the text that is certain with this token. stopping: look for stop strings."""
        self._held += self._detokenizer.add(token)
        return self._release(self._stops if stopping else (), final=False)

    def finish(self, *, stopping: bool = True) -> str:
        """Return the text that was held back; bytes of an unfinished character become U+FFFD."""
        self._held += self._detokenizer.finish()
        return self._release(self._stops if stopping else (), final=True)

    def _release(self, stops: Sequence[str], *, final: bool) -> str:
        if self.stop is not None:
            return ""
        # The stop string that is complete first, however the text was cut into tokens.
        places = [(self._held.find(stop), stop) for stop in stops]
        found = [(at + len(stop), at, stop) for at, stop in places if at >= 0]
        most = len(self._held) + 1
        starts = (stop[:size] for stop in stops for size in range(1, min(len(stop), most)))
        undecided = [len(start) for start in starts if not final and self._held.endswith(start)]
        end = len(self._held) - max(undecided, default=0)
        if found:
            _, end, self.stop = min(found)
        piece, self._held = self._held[:end], self._held[end:]
        return piece
