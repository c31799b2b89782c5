"""Conversations on the page are kept in the browser, and nothing that was typed is lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.browser import HOLD, FakeServer, Reader, Reply, say, wait_until

pytestmark = pytest.mark.slow

# Storage that is full after so many characters, and one that is denied.
SMALL = """
const set = Storage.prototype.setItem;
Storage.prototype.setItem = function (key, value) {
  let size = value.length;
  for (const other of Object.keys(this)) if (other !== key) size += this[other].length;
  if (size > 8000) throw new DOMException("full", "QuotaExceededError");
  set.call(this, key, value);
};
"""
DENIED = """
Object.defineProperty(window, "localStorage", {
  get() { throw new DOMException("denied", "SecurityError"); },
});
"""


def test_a_reload_shows_the_same_conversation_and_what_was_typed(reader: Reader) -> None:
    reader.ask("Hello")
    figures = reader.page.locator(".figures").inner_text()
    reader.type("Not sent yet")
    reader.page.reload()
    assert reader.typed == "Not sent yet"
    assert reader.questions == ["Hello"]
    assert reader.answers == ["You said: Hello"]
    assert reader.page.locator(".figures").inner_text() == figures


def test_what_was_typed_for_a_new_conversation_waits_for_the_next_new_one(reader: Reader) -> None:
    reader.ask("Hello")
    reader.press("New chat")
    reader.type("A new thought")
    reader.page.get_by_role("button", name="Hello", exact=True).click()
    assert reader.typed == ""
    reader.press("New chat")
    assert reader.typed == "A new thought"
    reader.page.reload()
    assert reader.typed == "A new thought"
    reader.page.locator("#question").press("Enter")
    reader.see("You said: A new thought")
    reader.press("New chat")
    assert reader.typed == ""


def test_closing_the_page_keeps_the_half_answer(reader: Reader, fake: FakeServer) -> None:
    fake.replies = [Reply([*say("Half an answer"), HOLD])]
    reader.ask("Hello", wait=False)
    reader.see("Half an answer")
    reader.page.reload()
    assert reader.answers == ["Half an answer"]
    reader.see("Stopped.")
    wait_until(lambda: fake.left == 1)


def test_conversations_are_listed_renamed_and_deleted_with_undo(reader: Reader) -> None:
    reader.ask("The first question, which is so long that its title has to be cut somewhere")
    reader.type("for the first")
    reader.press("New chat")
    assert reader.typed == ""
    reader.ask("The second")
    cut = "The first question, which is so long that its title has to…"
    assert reader.titles == ["The second", cut]

    entry = reader.page.locator("#entries li").last
    entry.hover()
    entry.get_by_label("Rename").click()
    field = reader.page.get_by_label("Title")
    assert field.input_value() == cut
    field.fill("My title")
    field.press("Enter")
    assert reader.titles == ["The second", "My title"]

    reader.page.get_by_role("button", name="My title", exact=True).click()
    assert reader.typed == "for the first"  # what was typed belongs to a conversation
    entry.hover()
    entry.get_by_label("Delete").click()
    assert reader.titles == ["The second"]
    assert reader.questions == []
    reader.press("Undo")
    assert reader.titles == ["The second", "My title"]
    reader.page.reload()
    assert len(reader.questions) == 1
    assert not reader.problems


def test_all_conversations_are_deleted_with_undo(reader: Reader) -> None:
    for title in ("one", "two"):
        reader.ask(title)
        reader.press("New chat")
    reader.page.locator("#open-settings").click()
    reader.press("Delete all")
    assert reader.titles == []
    reader.see("2 conversations were deleted.")
    reader.press("Undo")
    assert reader.titles == ["two", "one"]
    reader.page.reload()
    assert reader.titles == ["two", "one"]


def test_leaving_asks_first_if_an_edit_would_be_lost(reader: Reader) -> None:
    reader.ask("Hello")
    reader.page.locator("#question").press("ArrowUp")
    reader.page.get_by_label("Edit your message").press_sequentially("!")
    with reader.page.expect_event("dialog") as asked:
        reader.page.close(run_before_unload=True)
    assert asked.value.type == "beforeunload"
    asked.value.dismiss()
    assert reader.page.get_by_label("Edit your message").input_value() == "Hello!"


def test_a_conversation_is_exported_as_json_without_the_key(reader: Reader, tmp_path: Path) -> None:
    reader.page.locator("#open-settings").click()
    reader.page.get_by_label("API key").fill("secret-key")
    reader.page.keyboard.press("Escape")
    reader.ask("Hello: you?")
    reader.page.locator("#entries li").hover()
    with reader.page.expect_download() as download:
        reader.page.get_by_label("Export Hello: you? as JSON").click()
    assert download.value.suggested_filename == "mgm Hello you.json"
    download.value.save_as(tmp_path / "saved.json")
    text = (tmp_path / "saved.json").read_text()
    saved = json.loads(text)
    assert saved["title"] == "Hello: you?"
    assert [one["content"] for one in saved["messages"]] == ["Hello: you?", "You said: Hello: you?"]
    assert "secret-key" not in text


def test_an_answer_continues_while_another_conversation_is_open(
    reader: Reader, fake: FakeServer
) -> None:
    fake.replies = [Reply([*say("First "), HOLD, *say("answer")])]
    reader.ask("One", wait=False)
    reader.see("First")
    reader.press("New chat")
    reader.ask("Two")
    assert reader.answers == ["You said: Two"]
    fake.resume.set()
    reader.see("“One” has an answer.")
    reader.press("Open")
    assert reader.answers == ["First answer"]


def test_the_oldest_conversations_make_room_and_the_reader_is_told(
    visit: Callable[..., Reader],
) -> None:
    reader = visit()
    reader.page.add_init_script(SMALL)
    reader.page.reload()
    for title in ("one", "two"):
        reader.ask(f"{title} {'x' * 1500}")
        reader.press("New chat")
    reader.ask(f"three {'x' * 1500}")
    assert [title.split()[0] for title in reader.titles] == ["three", "two"]
    assert any("Removed the oldest: “one " in notice for notice in reader.notices)
    reader.ask("y" * 6000)  # this one alone is too large
    assert any("too large for the browser to keep" in notice for notice in reader.notices)
    assert len(reader.questions) == 2
    assert not reader.problems


def test_without_storage_the_page_works_and_says_that_nothing_is_kept(
    reader: Reader,
) -> None:
    reader.page.add_init_script(DENIED)
    reader.page.reload()
    reader.see("This browser keeps nothing for this page")
    reader.ask("Hello")
    reader.press("New chat")
    reader.page.get_by_role("button", name="Hello", exact=True).click()
    assert reader.answers == ["You said: Hello"]
    reader.page.locator("#theme").click()
    assert not reader.problems


def test_two_tabs_show_the_same_conversations(reader: Reader, fake: FakeServer) -> None:
    reader.ask("In the first tab")
    other = reader.open(fake.address)
    other.get_by_text("You said: In the first tab").wait_for()
    reader.ask("More")
    other.get_by_text("You said: More").wait_for()
    other.get_by_role("button", name="New chat").click()
    other.locator("#question").fill("In the second tab")
    other.locator("#question").press("Enter")
    reader.page.locator("#entries").get_by_text("In the second tab").wait_for()
    assert len(reader.answers) == 2
