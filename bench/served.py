"""A server on a thread of this process, as `mgm serve` runs it. Knows nothing of measurements."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mlx_gemma_mtp import Engine
from mlx_gemma_mtp.server.app import app_of
from mlx_gemma_mtp.server.running import Server, bind, listen, port_of
from mlx_gemma_mtp.server.service import Service
from mlx_gemma_mtp.server.settings import Settings


@contextmanager
def served(engine: Engine, settings: Settings) -> Iterator[str]:
    """Serve an engine on a free port. Gives the URL, such as http://127.0.0.1:8080."""
    ready = threading.Event()
    server = Server(
        app_of(Service(engine, settings)),
        on_start=ready.set,
        on_stop=lambda _: None,
        cancel=lambda: None,
        at_once=1,
    )
    sockets = bind(settings.host, 0)
    listen(settings.host, sockets)
    thread = threading.Thread(target=server.run, args=[sockets], name="server", daemon=True)
    thread.start()
    ready.wait()
    try:
        yield f"http://{settings.host}:{port_of(sockets)}"
    finally:
        server.should_exit = True
        thread.join()
