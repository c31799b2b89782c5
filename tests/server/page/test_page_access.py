"""The page for everybody: by keyboard, by ear, on a phone, in light and dark, without motion."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from helpers.browser import HOLD, FakeServer, Reader, Reply, say

pytestmark = pytest.mark.slow

LONG = "\n\n".join(f"Paragraph {number} of a long answer." for number in range(60))
PHONE = {"viewport": {"width": 360, "height": 640}, "is_mobile": True, "has_touch": True}

# The contrast of an element's text with what is behind it, as WCAG 2 defines it.
CONTRAST = """(element) => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (color) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  let behind = element;
  while (rgba(getComputedStyle(behind).backgroundColor)[3] < 255) behind = behind.parentElement;
  const light = (color) => {
    const parts = rgba(color).slice(0, 3).map((part) => part / 255);
    const [r, g, b] = parts.map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const text = light(getComputedStyle(element).color);
  const ground = light(getComputedStyle(behind).backgroundColor);
  return (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05);
}"""


def test_enter_sends_and_shift_enter_starts_a_line(reader: Reader, fake: FakeServer) -> None:
    keyboard = reader.page.keyboard  # the field has the focus from the start
    keyboard.type("one")
    keyboard.press("Shift+Enter")
    keyboard.type("two")
    keyboard.press("Enter")
    reader.see("You said")
    assert fake.bodies[0]["messages"][0]["content"] == "one\ntwo"


def test_enter_that_ends_a_composition_does_not_send(reader: Reader, fake: FakeServer) -> None:
    reader.type("日本")
    composing = {"key": "Enter", "bubbles": True, "cancelable": True, "isComposing": True}
    reader.page.locator("#question").dispatch_event("keydown", composing)
    assert reader.typed == "日本"
    assert not fake.bodies


def test_shortcuts_edit_start_and_list(reader: Reader) -> None:
    keyboard = reader.page.keyboard
    reader.ask("Hello")
    keyboard.press("ArrowUp")
    keyboard.type(" again")
    keyboard.press("Enter")
    reader.see("You said: Hello again")
    reader.wait()
    keyboard.press("Control+Shift+O")
    assert reader.questions == []
    keyboard.press("Control+/")
    reader.see("Keyboard shortcuts")
    keyboard.press("Escape")
    assert reader.page.evaluate("document.activeElement.id") == "question"


def test_the_end_is_announced_and_not_every_token(reader: Reader, fake: FakeServer) -> None:
    fake.replies = [Reply([*say("Half "), HOLD, *say("done")])]
    reader.ask("Hello", wait=False)
    reader.see("Half")
    page = reader.page
    assert page.get_by_role("status").inner_text() == "Answering…"
    assert page.locator("[aria-live], [role=status], [role=log], [role=alert]").count() == 1
    answer = page.get_by_role("article", name="Answer")
    assert answer.get_attribute("aria-busy") == "true"
    fake.resume.set()
    reader.wait()
    assert page.get_by_role("status").inner_text().startswith("The answer is complete.")
    assert answer.get_attribute("aria-busy") == "false"


def test_every_control_has_a_name_and_every_field_a_label(reader: Reader) -> None:
    reader.ask("Hello")
    names = reader.page.evaluate(
        """[...document.querySelectorAll("button, input, textarea, a, summary, nav, section")]
          .filter((one) => !one.closest("details[hidden]"))
          .filter((one) => !(one.ariaLabel || one.textContent.trim() || one.labels?.length))
          .map((one) => one.outerHTML)"""
    )
    assert names == []
    for role in ("navigation", "main"):
        assert reader.page.get_by_role(role).first.is_visible()  # type: ignore[arg-type]


def test_the_bottom_is_followed_only_by_a_reader_who_is_there(
    reader: Reader, fake: FakeServer
) -> None:
    fake.replies = [Reply([*say(LONG), HOLD, *say("\n\n", LONG)])]
    reader.ask("Tell me", wait=False)
    reader.see("Paragraph 59")
    scroller = reader.page.locator("#scroller")
    below = "(one) => one.scrollHeight - one.scrollTop - one.clientHeight"
    assert scroller.evaluate(below) < 2
    scroller.hover()
    reader.page.mouse.wheel(0, -300)
    reader.page.locator("#newest").wait_for()
    top = scroller.evaluate("(one) => one.scrollTop")
    fake.resume.set()
    reader.wait()
    assert scroller.evaluate("(one) => one.scrollTop") == top
    reader.page.locator("#newest").click()
    assert scroller.evaluate(below) < 2
    assert not reader.page.locator("#newest").is_visible()


def test_on_a_phone_nothing_sticks_out_and_the_list_is_a_drawer(
    visit: Callable[..., Reader], fake: FakeServer
) -> None:
    reader = visit(**PHONE)
    page = reader.page
    wide = (
        f"```\n{'x' * 400}\n```\n\n| {' | '.join('abcdefghijkl')} |\n|{'---|' * 12}\n\n{'y' * 400}"
    )
    fake.replies = [Reply(say(wide))]
    reader.ask("Something wide " + "z" * 200)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.evaluate("document.querySelector('#scroller').scrollWidth") <= 360
    code = page.locator("pre").evaluate("(one) => [one.scrollWidth, one.clientWidth]")
    assert code[0] > code[1]  # it scrolls inside its block

    entry = page.locator("#entries .title").first
    assert not entry.is_visible()
    page.get_by_role("button", name="Conversations").click()
    assert page.evaluate("document.activeElement.id") == "close-drawer"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "open-drawer"
    page.get_by_role("button", name="Conversations").click()
    entry.click()
    page.get_by_role("button", name="Send").click(trial=True)  # nothing is in front of it
    assert not reader.problems


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colors_follow_the_system_or_the_switch_and_can_be_read(
    visit: Callable[..., Reader], fake: FakeServer, scheme: str
) -> None:
    reader = visit(color_scheme=scheme)
    page = reader.page
    fake.replies = [
        Reply(say("`code`, [link](https://example.org)\n\n> quote")),
        Reply(status=500),
    ]
    reader.ask("Hello")
    reader.ask("Hello")
    paper = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(paper)
    for place in ("p", ".figures", "a[href^=http]", "blockquote", ".toggle[aria-pressed=true]"):
        assert page.locator(f"#main {place}").filter(visible=True).first.evaluate(CONTRAST) >= 4.5
    for place in (".failure p", "#model", ".text", "article code", "#send", "#entries .title"):
        assert page.locator(place).first.evaluate(CONTRAST) >= 4.5
    other = "dark" if scheme == "light" else "light"
    page.get_by_role("button", name=f"Use {other} colors").click()
    switched = page.evaluate(paper)
    assert switched != before
    page.reload()
    assert page.evaluate(paper) == switched
    page.get_by_role("button", name=f"Use {scheme} colors").click()
    assert page.evaluate(paper) == before
    assert page.evaluate("localStorage.getItem('mgm.theme')") is None  # the system's again


def test_nothing_moves_for_who_wants_no_motion(
    visit: Callable[..., Reader], fake: FakeServer
) -> None:
    fake.replies = [Reply([HOLD])]
    reader = visit(reduced_motion="reduce")
    reader.ask("Hello", wait=False)
    reader.page.locator(".waiting").wait_for()
    assert reader.page.evaluate("document.getAnimations().length") == 0
    fake.resume.set()
    reader.wait()
