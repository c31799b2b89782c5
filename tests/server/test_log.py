"""Each request is logged and counted once, with its figures and nothing of its text."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from helpers.server import listening
from mlx_gemma_mtp import Engine
from mlx_gemma_mtp.server.app import app_of
from mlx_gemma_mtp.server.exchange import LEFT, Exchange
from mlx_gemma_mtp.server.log import Log, OneLine, facts, is_of_use, line
from mlx_gemma_mtp.server.service import Service
from mlx_gemma_mtp.server.settings import Settings

CHAT = "/v1/chat/completions"
SECRET = "xyzzy"
SUM = {"messages": [{"role": "user", "content": f"What is 17 + 25? {SECRET}"}], "max_tokens": 20}
ENDLESS = SUM | {"max_tokens": 3000, "ignore_eos": True, "stream": True}
SECONDS = 60


class Kept(list[Exchange]):
    """The requests that ended, in their order."""

    def wait_for(self, number: int) -> list[Exchange]:
        """Return them once there are this many: the last one may end after its answer."""
        until = time.monotonic() + SECONDS
        while len(self) < number:
            assert time.monotonic() < until
            time.sleep(0.01)
        return self


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
def asked(engine: Engine, kept: Kept) -> Iterator[TestClient]:
    app = app_of(Service(engine, Settings(("demo",))), [kept.append])
    with TestClient(app, "http://localhost") as client:
        yield client


def figures(text: str) -> dict[Any, float]:
    return {
        (one.name, *one.labels.values()): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


def test_a_request_is_logged_with_its_figures(asked: TestClient, kept: Kept) -> None:
    usage = asked.post(CHAT, json=SUM | {"n": 2}).json()["usage"]
    [one] = kept.wait_for(1)
    found = facts(one, "demo")
    assert found["status"] == 200
    assert found["model"] == "demo"
    assert found["generated_tokens"] == usage["completion_tokens"]
    assert found["prompt_tokens"] == usage["prompt_tokens"] * 2  # each completion has it
    assert 0 < found["first_token_seconds"] <= found["seconds"]
    assert 0 <= found["acceptance_rate"] <= 1
    assert found["finish_reason"] in ("stop", "length")
    assert json.loads(json.dumps(found)) == found
    shown = line(one, "demo")
    for part in ("  chat  demo  ", f"{usage['completion_tokens']} tokens", " tok/s", "first in "):
        assert part in shown


def test_nothing_of_the_text_and_no_key_is_logged(
    engine: Engine, capfd: pytest.CaptureFixture[str]
) -> None:
    for as_json in (True, False):
        app = app_of(
            Service(engine, Settings(("demo",), api_key="key-1")), [Log("demo", as_json=as_json)]
        )
        with TestClient(app, "http://localhost", headers={"x-api-key": "key-1"}) as client:
            client.post(CHAT, json=SUM)
            client.post(CHAT, json=SUM | {"user": SECRET, "temperature": SECRET})
            client.get("/v1/models", headers={"x-api-key": f"key-1 {SECRET}"})
            client.get("/health")
    logged = capfd.readouterr().err
    assert logged.count("\n") == 6, logged  # /health is asked all the time
    assert SECRET not in logged
    assert "key-1" not in logged
    assert [json.loads(one)["status"] for one in logged.splitlines()[:3]] == [200, 400, 401]


def test_a_line_stays_one_line_whatever_the_path(asked: TestClient, kept: Kept) -> None:
    asked.get("/v1/%0A%1b[31mred" + "x" * 1000)
    [one] = kept.wait_for(1)
    shown = line(one, "demo")
    assert shown.isprintable()
    assert len(shown) < 200
    assert "404" in shown
    assert len(facts(one, "demo")["path"]) <= 200


def test_a_refusal_is_logged_with_its_reason_and_the_field(asked: TestClient, kept: Kept) -> None:
    asked.post(CHAT, json=ENDLESS | {"temperature": SECRET})
    asked.post(CHAT, json=ENDLESS | {"logit_bias": {"\n\x1b[31m": 1}})
    refused, escaped = kept.wait_for(2)
    assert facts(refused, "demo")["error"] == "invalid_request_error"
    assert "400  invalid_request_error  temperature" in line(refused, "demo")
    assert SECRET not in json.dumps(facts(refused, "demo"))
    assert "logit_bias." in line(escaped, "demo")
    assert line(escaped, "demo").isprintable()


def test_a_client_that_hangs_up_is_logged_as_such_with_what_it_got(
    engine: Engine, kept: Kept
) -> None:
    with listening(app_of(Service(engine, Settings(("demo",))), [kept.append])) as url:
        with httpx2.stream("POST", url + CHAT, json=ENDLESS) as answer:
            next(answer.iter_lines())
        [one] = kept.wait_for(1)
        assert one.status == LEFT
        assert 0 < facts(one, "demo")["generated_tokens"] < 3000
        assert "client left" in line(one, "demo")
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.post(url + CHAT, json=ENDLESS | {"stream": False}, timeout=0.3)
        assert kept.wait_for(2)[1].status == LEFT


def test_a_request_is_counted_once(asked: TestClient, kept: Kept) -> None:
    before = figures(asked.get("/metrics").text)
    usage = asked.post(CHAT, json=SUM).json()["usage"]
    asked.post(CHAT, json=SUM | {"max_tokens": 0})
    for path in ("/nope/1", "/nope/2"):
        asked.get(path)
    kept.wait_for(5)
    after = figures(asked.get("/metrics").text)
    assert {name for name in after if name[0] == "mgm_requests_total"} == {
        ("mgm_requests_total", "/metrics", "200"),
        ("mgm_requests_total", CHAT, "200"),
        ("mgm_requests_total", CHAT, "400"),
        ("mgm_requests_total", "other", "404"),
    }
    assert after[("mgm_requests_total", "other", "404")] == 2
    assert before[("mgm_generated_tokens_total",)] == 0
    assert after[("mgm_generated_tokens_total",)] == usage["completion_tokens"]
    assert after[("mgm_prompt_tokens_total",)] == usage["prompt_tokens"]
    for name in ("time_to_first_token", "queue", "request"):
        assert after[(f"mgm_{name}_seconds_count",)] == 1
    assert after[("mgm_rounds_total",)] > 0
    positions = {name[1] for name in after if name[0] == "mgm_drafted_tokens_total"}
    for position in positions:
        accepted = after[("mgm_accepted_tokens_total", position)]
        assert 0 <= accepted <= after[("mgm_drafted_tokens_total", position)]
    assert after[("mgm_memory_bytes",)] > 0
    assert after[("mgm_engine_loaded",)] == 1
    assert after[("mgm_engine_requests", "decoding")] == 0


def test_each_app_counts_for_itself(engine: Engine, asked: TestClient) -> None:
    asked.get("/v1/models")
    other = TestClient(app_of(Service(engine, Settings(("demo",)))), "http://localhost")
    assert ("mgm_requests_total", "/v1/models", "200") not in figures(other.get("/metrics").text)


def record_of(error: BaseException) -> logging.LogRecord:
    exc_info = (type(error), error, None)
    return logging.LogRecord("uvicorn.error", logging.ERROR, "", 0, "It\nfailed\n", (), exc_info)


def test_what_fails_within_the_server_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MGM_DEBUG", raising=False)
    shown = OneLine().format(record_of(ValueError("bad\nthing")))
    assert shown == "mgm: It failed: ValueError: bad thing (MGM_DEBUG=1 shows where)"
    in_json = json.loads(OneLine(as_json=True).format(record_of(ValueError("bad\nthing"))))
    assert in_json["message"] == shown.removeprefix("mgm: ")


def test_a_request_that_is_cancelled_at_the_end_is_not_logged_as_an_error() -> None:
    assert not is_of_use(record_of(asyncio.CancelledError()))
    assert is_of_use(record_of(ValueError()))
