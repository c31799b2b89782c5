"""A server on a thread of this process. Knows nothing of what is measured."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from mlx_gemma_mtp import Engine
from mlx_gemma_mtp.server.app import app_of
from mlx_gemma_mtp.server.service import Service
from mlx_gemma_mtp.server.settings import Settings


@contextmanager
def served(engine: Engine, settings: Settings) -> Iterator[str]:
    """Serve an engine on a free port of this machine. Gives the URL, such as http://127.0.0.1:80"""
    config = uvicorn.Config(
        app_of(Service(engine, settings)), port=0, http="h11", loop="asyncio", log_level="warning"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="server", daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise RuntimeError("the server did not start: its log says why")
        time.sleep(0.01)
    try:
        host, port = server.servers[0].sockets[0].getsockname()
        yield f"http://{host}:{port}"
    finally:
        server.should_exit = True
        thread.join()
