"""The page in a headless Chromium, and a fake server behind it that says what a test wants.

The fake speaks the chunks of /v1/chat/completions, and answers at once.
"""

from __future__ import annotations

import asyncio
import functools
import json
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from helpers.server import listening
from mlx_gemma_mtp.server.page import page

MODEL = "gemma-4-demo-it"
SECONDS = 20  # for anything that a browser does, on a busy machine
HOLD: dict[str, Any] = {}  # a piece: the rest comes when the test says so

# Without the network: Chromium asks for updates and much else.
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]


def say(*texts: str) -> list[dict[str, Any]]:
    """The deltas of an answer, a chunk for each text."""
    return [{"content": text} for text in texts]


def think(*texts: str) -> list[dict[str, Any]]:
    """The deltas of a thought."""
    return [{"reasoning_content": text} for text in texts]


def calls(name: str, *arguments: str, index: int = 0) -> list[dict[str, Any]]:
    """The deltas of a call, whose arguments come in pieces."""
    first = {"index": index, "id": f"call-{index}", "type": "function"}
    deltas = [{**first, "function": {"name": name, "arguments": ""}}]
    deltas += [{"index": index, "function": {"arguments": text}} for text in arguments]
    return [{"tool_calls": [delta]} for delta in deltas]


@dataclass
class Reply:
    """An answer. status, error: a refusal instead. cut: True ends the stream in the middle."""

    pieces: Sequence[dict[str, Any]] = ()
    finish: str = "stop"
    status: int = 200
    error: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False


class FakeServer:
    """replies: the next answers, in order; then it repeats the question. bodies: what it got."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.key: str | None = None  # required by the API, not by the page
        self.left = 0  # clients that hung up
        self.resume = threading.Event()
        self.address = ""
        self.app = Starlette(
            routes=[
                *page.routes,
                Route("/v1/models", self._models),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
            ]
        )

    def _refusal(self, request: Request) -> Response | None:
        given = request.headers.get("authorization")
        self.keys.append(given)
        if self.key is None or given == f"Bearer {self.key}":
            return None
        return JSONResponse({"error": {"message": "invalid API key"}}, 401)

    async def _models(self, request: Request) -> Response:
        models = {"data": [{"id": MODEL, "object": "model", "context_length": 4096}]}
        return self._refusal(request) or JSONResponse(models)

    async def _chat(self, request: Request) -> Response:
        body = await request.json()
        if refusal := self._refusal(request):
            return refusal
        self.bodies.append(body)
        question = body["messages"][-1].get("content", "")
        reply = self.replies.pop(0) if self.replies else Reply(say(f"You said: {question}"))
        if reply.status != 200:
            shape = {"error": {"message": reply.error, "type": "server_error"}}
            return JSONResponse(shape, reply.status, reply.headers)
        return StreamingResponse(self._events(reply, body), media_type="text/event-stream")

    async def _events(self, reply: Reply, body: dict[str, Any]) -> AsyncIterator[str]:
        drafts = body.get("draft") is not False
        speed = 54.2 if drafts else 23.4
        number, finished = 0, False
        try:
            for piece in reply.pieces:
                if piece is HOLD:
                    while not self.resume.is_set():
                        await asyncio.sleep(0.005)
                    continue
                number += 1
                yield _event([{"index": 0, "delta": piece, "finish_reason": None}])
            if reply.cut:
                return
            if reply.error:
                yield f"data: {json.dumps({'error': {'message': reply.error}})}\n\n"
                return
            yield _event([{"index": 0, "delta": {}, "finish_reason": reply.finish}])
            usage = {"prompt_tokens": 21, "completion_tokens": number}
            timings = {"predicted_n": number, "predicted_ms": 1000 * number / speed}
            timings |= {"predicted_per_second": speed}
            timings |= {"draft_n": 40 * drafts, "draft_n_accepted": 31 * drafts}
            yield _event([], usage=usage, timings=timings)
            yield "data: [DONE]\n\n"
            finished = True
        finally:
            self.left += not (finished or reply.cut or reply.error)

    @contextmanager
    def running(self, port: int = 0) -> Iterator[str]:
        with listening(self.app, port) as self.address:
            yield self.address


def _event(choices: list[dict[str, Any]], **others: Any) -> str:
    chunk = {"object": "chat.completion.chunk", "choices": choices, **others}
    return f"data: {json.dumps(chunk)}\n\n"


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds. Fails after a time."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


@contextmanager
def chromium() -> Iterator[Any]:
    """Start the system's Chromium or Chrome; skip the tests where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    with playwright.sync_playwright() as driver:
        start = functools.partial(driver.chromium.launch, args=FLAGS)
        if path is not None:
            browser = start(executable_path=path)
        else:
            try:
                browser = start(channel="chrome")  # where Google's installer puts it
            except playwright.Error:
                pytest.skip("no Chromium and no Chrome: the page is not tested in a browser")
        try:
            yield browser
        finally:
            browser.close()


class Reader:
    """Somebody who has the page open. problems: what the browser's console complains about."""

    def __init__(self, context: Any, address: str) -> None:
        context.set_default_timeout(1000 * SECONDS)
        self.context = context
        self.problems: list[str] = []
        self.page = self.open(address)

    def open(self, address: str) -> Any:
        """Open the page in another tab."""
        page = self.context.new_page()
        page.on("console", lambda said: said.type == "error" and self.problems.append(said.text))
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.goto(address)
        return page

    def type(self, text: str) -> None:
        self.page.locator("#question").fill(text)

    def ask(self, text: str, wait: bool = True) -> None:
        """Type a question and press Enter."""
        self.type(text)
        self.page.locator("#question").press("Enter")
        if wait:
            self.wait()

    def wait(self) -> None:
        """Wait until nothing is running."""
        self.page.locator("#send").wait_for()

    def press(self, name: str) -> None:
        """Press the button with this name; the last one, if there are several."""
        self.page.get_by_role("button", name=name, exact=True).last.click()

    def see(self, text: str) -> None:
        """Wait until a text is on the page, where it can be seen."""
        self.page.get_by_text(text).filter(visible=True).first.wait_for()

    @property
    def answers(self) -> list[str]:
        return list(self.page.locator("article.answer > .markdown").all_inner_texts())

    @property
    def questions(self) -> list[str]:
        return list(self.page.locator("article.question .text").all_inner_texts())

    @property
    def typed(self) -> str:
        return str(self.page.locator("#question").input_value())

    @property
    def notices(self) -> list[str]:
        return list(self.page.locator(".notice p").all_inner_texts())

    @property
    def titles(self) -> list[str]:
        """Of the conversations in the list."""
        return list(self.page.locator("#entries .title").all_inner_texts())
