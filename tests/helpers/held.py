"""The worker stands still: nothing starts before all that must be there is there."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from helpers.fake_target import SECONDS
from mlx_gemma_mtp.engine.worker import mlx_worker


@contextmanager
def held() -> Iterator[None]:
    """The worker waits while this is open. Whoever waits for it then never comes back."""
    over = threading.Event()
    mlx_worker().submit(lambda: over.wait(SECONDS))
    try:
        yield
    finally:
        over.set()
