"""No answer has a path of the machine in it, also if the model's folder is gone."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient

from mlx_gemma_mtp import load
from mlx_gemma_mtp.cli.serve import names_for_clients
from mlx_gemma_mtp.files.names import DEMO
from mlx_gemma_mtp.server.app import app_of
from mlx_gemma_mtp.server.service import Service
from mlx_gemma_mtp.server.settings import Settings

SECONDS = 60
PRIVATE = "anna-private"
SUM = {"messages": [{"role": "user", "content": "What is 17 + 25?"}], "max_tokens": 20}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(DEMO, tmp_path_factory.mktemp("models") / PRIVATE / "my-model")


@pytest.fixture(scope="module")
def app(folder: Path) -> Iterator[Starlette]:
    with load(folder, None, idle_unload=0.2, warm_up=False, probe=False) as engine:
        yield app_of(Service(engine, Settings(tuple(names_for_clients(str(folder), engine)))))


@pytest.fixture
def client(app: Starlette) -> TestClient:
    return TestClient(app, "http://localhost", raise_server_exceptions=False)


def test_a_model_has_the_last_part_of_its_folders_name(client: TestClient) -> None:
    assert [one["id"] for one in client.get("/v1/models").json()["data"]] == ["my-model"]


@pytest.mark.parametrize("model", ["my-model", "nope", 5])
def test_no_answer_names_a_folder(app: Starlette, client: TestClient, model: object) -> None:
    routes = [one for one in app.routes if isinstance(one, Route)]
    assert len(routes) > 5
    for route in routes:
        for method in route.methods or ():
            answer = client.request(method, route.path, json={"model": model} | SUM)
            assert PRIVATE not in answer.text, route.path


def test_if_the_folder_is_gone_only_the_log_names_it(
    app: Starlette, client: TestClient, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    until = time.monotonic() + SECONDS
    while app.state.service.engine.loaded:
        assert time.monotonic() < until
        time.sleep(0.02)
    shutil.rmtree(folder)
    answer = client.post("/v1/chat/completions", json=SUM)
    assert answer.status_code == 500
    assert PRIVATE not in answer.text
    assert "log" in answer.json()["error"]["message"]
    assert PRIVATE in caplog.text
