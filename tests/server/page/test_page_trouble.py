"""What the page says when something fails, and how the reader gets on from there."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.responses import HTMLResponse
from starlette.routing import Route

from helpers.browser import FakeServer, Reader, Reply, say

pytestmark = pytest.mark.slow


def test_a_server_that_is_gone_is_named_and_the_question_is_asked_again(browser: Any) -> None:
    fake = FakeServer()
    with fake.running():
        reader = Reader(browser.new_context(), fake.address)
    reader.ask("Are you there?")
    reader.see("The server doesn't answer. Check that mgm serve is running, then retry.")
    assert reader.questions == ["Are you there?"]
    with fake.running(port=int(fake.address.rpartition(":")[2])):
        reader.press("Retry")
        reader.see("You said: Are you there?")
        assert reader.page.locator(".failure:visible").count() == 0
        reader.context.close()


def test_a_busy_server_is_quoted_with_its_time_to_wait(reader: Reader, fake: FakeServer) -> None:
    fake.replies = [Reply(status=503, error="The queue is full.", headers={"Retry-After": "5"})]
    reader.ask("Hello")
    reader.see("The queue is full. Wait 5 s before you retry.")
    reader.page.reload()  # it can be asked again later
    reader.press("Retry")
    reader.see("You said: Hello")
    assert len(reader.answers) == 1


def test_a_missing_key_is_asked_for_and_sent(browser: Any, fake: FakeServer) -> None:
    fake.key = "sesame"
    reader = Reader(browser.new_context(), fake.address)
    reader.see("The server asks for an API key.")
    reader.ask("Hello")
    reader.press("Open the settings")
    reader.page.get_by_label("API key").fill("sesame")
    reader.page.keyboard.press("Escape")
    reader.press("Retry")
    reader.see("You said: Hello")
    assert fake.keys[-1] == "Bearer sesame"
    reader.context.close()


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply(say("Half of i"), cut=True), "The connection ended before the answer was complete."),
        (Reply(say("Half of i"), error="Out of memory."), "Out of memory."),
        (
            Reply(status=400, error="prompt is too long: 9 tokens > 8"),
            "prompt is too long: 9 tokens",
        ),
        (Reply(status=500), "The server failed with status 500."),
    ],
    ids=["cut off", "error in the stream", "refused", "without a message"],
)
def test_a_failure_keeps_what_came_and_can_be_asked_again(
    reader: Reader, fake: FakeServer, reply: Reply, message: str
) -> None:
    fake.replies = [reply]
    reader.ask("Hello")
    reader.see(message)
    if reply.pieces:
        assert reader.answers == ["Half of i"]
    assert reader.page.locator("#announcer").inner_text().startswith(message)
    reader.press("Retry")
    reader.see("You said: Hello")
    assert len(reader.answers) == 1


def test_an_answer_that_is_no_stream_is_a_broken_one(reader: Reader, fake: FakeServer) -> None:
    routes = fake.app.router.routes

    async def welcome(_: object) -> HTMLResponse:
        return HTMLResponse("<h1>Log in to the network</h1>")

    routes.insert(0, Route("/v1/chat/completions", welcome, methods=["POST"]))
    reader.ask("Hello")
    reader.see("The connection ended before the answer was complete.")
    routes.pop(0)
    reader.press("Retry")
    reader.see("You said: Hello")
