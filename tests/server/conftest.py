"""The demo pair behind the app, for all tests of a worker process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from helpers.server import listening, server  # noqa: F401 - a fixture
from mlx_gemma_mtp import Engine, load
from mlx_gemma_mtp.server.app import app_of
from mlx_gemma_mtp.server.service import Service
from mlx_gemma_mtp.server.settings import Settings


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    with load("demo", warm_up=False, probe=False) as engine:
        yield engine


@pytest.fixture(scope="session")
def client(engine: Engine) -> Iterator[TestClient]:
    app = app_of(Service(engine, Settings(("demo", "other"))))
    with TestClient(app, "http://localhost") as client:
        yield client


@pytest.fixture(scope="module")
def url(engine: Engine) -> Iterator[str]:
    """The address of a server, for clients that need one."""
    with listening(app_of(Service(engine, Settings(("demo",))))) as url:
        yield url
