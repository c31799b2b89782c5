"""How a server serves its engine. Knows nothing of HTTP."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """served: the names that clients may ask for; the first is the one that they are shown."""

    served: tuple[str, ...]
    body_limit: int = 32 << 20  # bytes
    heartbeat_seconds: float = 8.0  # of silence in a stream; clients wait for 10 to 15
    thinking_budget: int = 16_384  # tokens of a thought whose client set no limit
