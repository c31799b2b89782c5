"""A conversation on the page: what is sent, and what is shown of it."""

from __future__ import annotations

import json

from helpers.browser import HOLD, FakeServer, Reader, Reply, calls, say, think, wait_until

WEATHER = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {}}}}


def test_an_answer_is_shown_as_it_comes_and_its_figures_under_it(
    reader: Reader, fake: FakeServer
) -> None:
    fake.replies = [Reply([*say("The answer "), HOLD, *say("is **42**.")])]
    reader.ask("What is 17 + 25?", wait=False)
    reader.see("The answer")
    assert "42" not in reader.answers[0]
    fake.resume.set()
    reader.wait()
    assert reader.answers == ["The answer is 42."]
    assert reader.page.locator("article.answer strong").inner_text() == "42"
    figures = reader.page.locator(".figures").inner_text()
    assert figures.startswith(
        "54.2 tokens/s · 78% of drafts accepted · 2 tokens · first token after "
    )
    assert reader.questions == ["What is 17 + 25?"]
    assert reader.typed == ""
    assert not reader.problems


def test_a_request_has_what_the_settings_say(reader: Reader, fake: FakeServer) -> None:
    page = reader.page
    page.locator("#open-settings").click()
    page.get_by_label("System prompt").fill("Be brief.")
    for name, value in (("Temperature", "0.5"), ("Top p", "0.9"), ("Top k", "40")):
        page.get_by_label(name).fill(value)
    page.get_by_label("Max tokens").fill("100")
    page.get_by_label("Seed").fill("7")
    page.get_by_label("Tools").fill(json.dumps([WEATHER]))
    page.keyboard.press("Escape")
    page.locator("#thinking").click()
    page.locator("#drafts").click()
    page.reload()  # they last
    reader.ask("Hello")
    body = fake.bodies[0]
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
    ]
    assert body["tools"] == [{"type": "function", "function": WEATHER}]
    wanted = {"temperature": 0.5, "top_p": 0.9, "top_k": 40, "max_tokens": 100, "seed": 7}
    wanted |= {"stream": True, "draft": False, "chat_template_kwargs": {"enable_thinking": True}}
    assert {name: body[name] for name in wanted} == wanted


def test_by_default_nothing_is_set_but_a_seed(reader: Reader, fake: FakeServer) -> None:
    reader.ask("Hello")
    body = fake.bodies[0]
    assert isinstance(body["seed"], int)
    assert not {"temperature", "top_p", "top_k", "max_tokens", "tools", "draft"} & {*body}
    assert body["chat_template_kwargs"] == {"enable_thinking": False}


def test_a_wrong_setting_is_refused_where_it_is_typed(reader: Reader, fake: FakeServer) -> None:
    page = reader.page
    page.locator("#open-settings").click()
    page.get_by_label("Tools").fill("[{]")
    page.get_by_label("Top p").fill("7")
    reader.see("Tools must be JSON")
    assert page.locator(".problem").count() == 2
    page.keyboard.press("Escape")
    reader.ask("Hello")
    assert not {"tools", "top_p"} & {*fake.bodies[0]}


def test_stop_keeps_what_was_written_and_ends_the_request(reader: Reader, fake: FakeServer) -> None:
    for end in ("button", "key"):
        fake.replies = [Reply([*say(f"Half by {end}"), HOLD])]
        reader.ask("Tell me a story", wait=False)
        reader.see(f"Half by {end}")
        if end == "button":
            reader.press("Stop")
        else:
            reader.page.keyboard.press("Escape")
        reader.wait()
        reader.see("Stopped.")
    wait_until(lambda: fake.left == 2)
    reader.page.reload()
    assert reader.answers == ["Half by button", "Half by key"]
    reader.ask("And then?")  # the halves are part of the conversation
    contents = [one["content"] for one in fake.bodies[-1]["messages"]]
    assert contents[1::2] == ["Half by button", "Half by key"]


def test_answering_again_replaces_the_answer_and_undo_brings_back_what_was_removed(
    reader: Reader, fake: FakeServer
) -> None:
    fake.replies = [Reply(say(text)) for text in ("one", "two", "three")]
    reader.ask("First")
    reader.ask("Second")
    again = reader.page.get_by_role("button", name="Answer again")
    again.first.click()
    reader.wait()
    assert reader.answers == ["three"]
    assert [one["content"] for one in fake.bodies[-1]["messages"]] == ["First"]
    reader.press("Undo")
    assert reader.answers == ["one", "two"]
    reader.page.reload()
    assert reader.answers == ["one", "two"]


def test_an_edited_question_is_asked_instead(reader: Reader, fake: FakeServer) -> None:
    reader.ask("What is 1 + 1?")
    reader.ask("Thanks")
    reader.page.locator("article.question").first.hover()
    reader.page.get_by_role("button", name="Edit").first.click()
    field = reader.page.get_by_label("Edit your message")
    assert field.input_value() == "What is 1 + 1?"
    field.fill("What is 2 + 2?")
    field.press("Enter")
    reader.wait()
    assert reader.questions == ["What is 2 + 2?"]
    assert reader.answers == ["You said: What is 2 + 2?"]


def test_thoughts_are_folded_and_say_while_they_last(reader: Reader, fake: FakeServer) -> None:
    fake.replies = [Reply([*think("Hmm, "), HOLD, *think("17 + 25."), *say("42")])]
    reader.ask("What is 17 + 25?", wait=False)
    summary = reader.page.locator("summary")
    reader.see("Thinking…")
    assert not reader.page.get_by_text("Hmm").is_visible()
    fake.resume.set()
    reader.wait()
    assert summary.inner_text().startswith("Thought")
    summary.click()
    reader.see("Hmm, 17 + 25.")
    assert reader.answers == ["42"]
    reader.ask("And 1 more?")
    assert fake.bodies[-1]["messages"][1]["reasoning_content"] == "Hmm, 17 + 25."


def test_calls_are_shown_and_their_results_are_typed(reader: Reader, fake: FakeServer) -> None:
    both = [*calls("weather", '{"city": ', '"Lima"}'), *calls("clock", "{}", index=1)]
    fake.replies = [Reply(both, finish="tool_calls"), Reply(say("Sunny, at noon."))]
    reader.ask("Weather and time?")
    assert reader.page.locator(".call-head code").all_inner_texts() == ["weather", "clock"]
    assert '"city": "Lima"' in reader.page.locator(".call pre").first.inner_text()
    reader.ask("Well?")  # the calls come first; what was typed stays
    assert reader.typed == "Well?"
    fields = reader.page.get_by_label("Result", exact=True)
    fields.last.fill("12:00")
    fields.last.press("Enter")
    reader.see("Result of clock")
    assert len(fake.bodies) == 1
    fields.first.fill("sunny")
    reader.press("Send the result")
    reader.see("Sunny, at noon.")
    reader.wait()
    _, said, *results = fake.bodies[1]["messages"]
    assert [one["function"]["arguments"] for one in said["tool_calls"]] == [
        '{"city": "Lima"}',
        "{}",
    ]
    assert [(one["tool_call_id"], one["content"]) for one in results] == [
        ("call-1", "12:00"),
        ("call-0", "sunny"),
    ]


def test_comparing_asks_the_same_without_drafts(reader: Reader, fake: FakeServer) -> None:
    reader.ask("Hello")
    reader.press("Compare")
    reader.see("Same text")
    assert reader.page.locator(".comparison .value").all_inner_texts() == [
        "54.2 tokens/s",
        "23.4 tokens/s",
    ]
    reader.see("2.3× the speed with drafts.")
    announced = reader.page.locator("#announcer").inner_text()
    assert announced.startswith("2.3× the speed with drafts. Same text")
    first, second = fake.bodies
    assert second == first | {"draft": False}


def test_comparing_shows_where_the_texts_differ(reader: Reader, fake: FakeServer) -> None:
    fake.replies = [Reply(say("It is fine.")), Reply(say("It is bad."))]
    reader.ask("How is it?")
    reader.press("Compare")
    reader.see("The texts differ after 6 characters")
    assert reader.page.locator(".comparison code").all_inner_texts() == [
        "It is fine.",
        "It is bad.",
    ]
    assert reader.answers == ["It is fine."]


def test_markdown_is_shown_and_nothing_in_it_runs(reader: Reader, fake: FakeServer) -> None:
    text = """# Title\n\n- one\n- two\n\n```js\nlet x = "<i>";\n```\n
| a | b |\n|--|--:|\n| 1 | 2 |\n
<img src=x onerror=alert(1)> [no](javascript:alert(1)) ![pic](https://example.org/a.png)
[yes](https://example.org/?a=1&b=2)"""
    fake.replies = [Reply(say(*text))]  # a chunk for each character
    reader.ask("Show me")
    place = reader.page.locator("article.answer > .markdown")
    assert place.locator("h3").inner_text() == "Title"
    assert place.locator("li").all_inner_texts() == ["one", "two"]
    assert place.locator("pre").inner_text() == 'let x = "<i>";'
    assert place.locator("td").all_inner_texts() == ["1", "2"]
    links = place.locator("a")
    assert [one.get_attribute("href") for one in links.all()] == [
        "https://example.org/a.png",
        "https://example.org/?a=1&b=2",
    ]
    assert place.locator("img, script, i").count() == 0
    reader.context.grant_permissions(["clipboard-read", "clipboard-write"])
    place.get_by_role("button", name="Copy the code").click()
    reader.page.get_by_role("button", name="Copied").wait_for()
    assert reader.page.evaluate("navigator.clipboard.readText()") == 'let x = "<i>";'
    assert not reader.problems
