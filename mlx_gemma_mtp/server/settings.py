"""How a server serves its engine. Knows nothing of HTTP."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Settings:
    """served: the names that clients may ask for; the first is the one that they are shown.

    host: the address that it listens on. local: True if only this machine reaches it. hosts: other
    names that it may be asked by. origins: of web pages that may use it, "*" for all; its own may
    always. api_key: None if any is accepted.
    """

    served: tuple[str, ...]
    host: str = "127.0.0.1"
    local: bool = True
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    api_key: str | None = field(default=None, repr=False)
    body_limit: int = 32 << 20  # bytes
    heartbeat_seconds: float = 8.0  # of silence in a stream; clients wait for 10 to 15
    thinking_budget: int = 16_384  # tokens of a thought whose client set no limit
