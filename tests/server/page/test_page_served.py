"""The page on `mgm serve` with the demo pair."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from helpers.browser import Reader
from helpers.server import Served

pytestmark = pytest.mark.slow

WEATHER = {
    "name": "get_weather",
    "description": "Get the weather in a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "description": "The city."}},
        "required": ["city"],
    },
}


def test_a_reader_asks_compares_thinks_and_calls(browser: Any, server: Served) -> None:
    reader = Reader(browser.new_context(), server.url)
    page = reader.page
    page.locator("#model", has_text="demo").wait_for()
    page.locator("#open-settings").click()
    page.get_by_label("Temperature").fill("0")
    page.keyboard.press("Escape")

    reader.ask("What is 17 + 25?")
    assert reader.answers == ["17 + 25 = 42"]
    figures = page.locator(".figures").inner_text()
    assert re.fullmatch(
        r"[\d.]+ tokens/s · \d+% of drafts accepted · \d+ tokens · first token after [\d.]+ s",
        figures,
    )
    reader.press("Compare")
    reader.see("Same text")

    page.locator("#thinking").click()
    reader.press("New chat")
    reader.ask("What is 19 + 28?")
    assert page.locator("summary").last.inner_text().startswith("Thought for ")
    assert reader.answers[-1] == "19 + 28 = 47"
    page.locator("#thinking").click()

    page.locator("#open-settings").click()
    page.get_by_label("Tools").fill(json.dumps(WEATHER))
    page.keyboard.press("Escape")
    reader.press("New chat")
    reader.ask("What's the weather in Paris?")
    assert '"city": "Paris"' in page.locator(".call pre").inner_text()
    page.get_by_label("Result", exact=True).fill('{"degrees": 21, "sky": "sunny"}')
    reader.press("Send the result")
    reader.see("It is sunny in Paris, at 21 degrees.")
    assert not reader.problems
    reader.context.close()


def test_the_speed_is_shown_while_an_answer_grows(browser: Any, server: Served) -> None:
    reader = Reader(browser.new_context(), server.url)
    page = reader.page
    page.evaluate(
        """() => {
          window.seen = [];
          new MutationObserver(() => {
            const line = document.querySelector(".foot.busy .figures")?.textContent;
            if (line?.includes("tokens/s")) window.seen.push(line);
          }).observe(document.body, { childList: true, subtree: true, characterData: true });
        }"""
    )
    reader.ask("Tell me a story.")
    assert page.evaluate("window.seen.length") > 0
    reader.context.close()
