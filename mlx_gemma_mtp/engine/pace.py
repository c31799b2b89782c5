"""How much of a prompt is read at a time. Knows nothing of prompts."""

from __future__ import annotations

import math

from mlx_gemma_mtp.memory import Limits


class Pace:
    """How long prefill takes on this machine, so how much of it fits into a pause."""

    def __init__(self, limits: Limits, *, experts: bool = False) -> None:
        """experts: the model has them."""
        self._limits = limits
        self._experts = experts
        self._seconds_per_token = math.inf  # a running mean; infinite until measured

    @property
    def known(self) -> bool:
        """True once a pass was measured."""
        return self._seconds_per_token < math.inf

    def measure(self, num_tokens: int, seconds: float) -> None:
        """Record the duration of one pass. A short one only shows what a token takes at most."""
        now, before = seconds / num_tokens, self._seconds_per_token
        if num_tokens < self._limits.chunks[0] or not self.known:
            self._seconds_per_token = min(before, now)
        else:
            self._seconds_per_token = (before + now) / 2

    def chunk(self, pause: float = math.inf, *, most: float = math.inf) -> int:
        """The largest chunk that should take no longer than `pause` seconds, and is `most` or less.

        The smallest if all take longer or nothing was measured.
        """
        chunks = [chunk for chunk in self._limits.chunks if chunk <= most]
        quick = [chunk for chunk in chunks if chunk * self._seconds_per_token <= pause]
        return max(quick, default=self._limits.chunks[0])

    def lone_chunk(self, seconds: float) -> int:
        """The same while no row decodes, so that no request that comes next waits much longer.

        At least a decoding_chunk if nothing was measured, and for experts: each pass reads their
        weights again, and 512 tokens cost 8 to 30% more than 2,048 (Apple M4 to M5).
        """
        chunk, limits = self.chunk(seconds), self._limits
        if self._experts or not self.known:
            chunk = max(chunk, self.chunk(math.inf, most=limits.decoding_chunk))
        return chunk
