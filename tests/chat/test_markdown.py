"""Markdown at a terminal: laid out as it arrives, in windows of any size, and nothing is lost."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

import numpy as np
import pyte
import pytest
from rich.text import Text

from helpers.person import Paper
from mlx_gemma_mtp.chat.markdown import parts
from mlx_gemma_mtp.chat.page import Markdown, Page

TABLE = """
| name | a column | n |
|---|:--:|--:|
| one | **two** words | 3<br>4 |
| five | six seven | 8888 |
"""
ANSWER = f"""# A title

Some **bold and more bold** with *italics* and `code`, and then a line that goes on and on and on.
A second line, with [a link](http://a.b/ü "title"), <http://x.y> and ![a picture](c.png).

*   **Item:** text that goes on for more than one line of the window
    - nested

      ```python
      def f(x):
          return x * 2  # code that is longer than the window is wide, and not broken
      ```
*   Second

9. nine
10. ten

> quoted **words**
> more
{TABLE}
---

```sh
\techo   "**as is**"
```
    and so is this
"""


class Window:
    """A terminal with an answer that arrives in pieces."""

    def __init__(self, columns: int = 80, rows: int = 24) -> None:
        self.paper = Paper(columns, rows, history=10_000)
        self._stream = pyte.Stream(self.paper)
        self.page = Page(
            self.feed, lambda: os.terminal_size((self.paper.columns, self.paper.lines))
        )
        self.answer = Markdown(self.page, quiet="dim", share=1)  # draws every piece

    def feed(self, text: str) -> None:
        self._stream.feed(text.replace("\n", "\r\n"))

    def write(self, text: str, length: Callable[[], int] = lambda: 5) -> None:
        """Write a text in pieces."""
        while text:
            piece = length()
            self.answer.write(text[:piece])
            text = text[piece:]

    @property
    def lines(self) -> list[str]:
        return "\n".join(self.paper.written).rstrip().split("\n")


def laid_out(text: str, width: int = 79) -> list[str]:
    """Return the lines of a whole text."""
    return [line.plain for part in parts(text) for line in part.lines(width, "")]


def letters(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("columns", [80, 40, 24])
def test_an_answer_in_pieces_looks_like_a_whole_one_in_windows_of_any_height(
    columns: int, rng: np.random.Generator
) -> None:
    whole = Window(columns, 100)
    whole.write(ANSWER, lambda: len(ANSWER))
    whole.answer.finish()
    for rows in (24, 8):
        window = Window(columns, rows)
        window.write(ANSWER, lambda: int(rng.integers(1, 9)))
        window.answer.finish()
        assert window.lines == whole.lines


PIECES = (
    *(
        "**",
        "*",
        "_",
        "`",
        "```\n",
        "# ",
        "- ",
        "1. ",
        "> ",
        "    ",
        "---\n",
        "\n",
        "\n\n",
        " ",
        "\\",
        "~~",
    ),
    *(
        "word",
        "two words ",
        "né",
        "[x](y)",
        "![i](j)",
        "<b>",
        "&amp;",
        "^",
        "(",
        ")",
        "<http://c.d>",
        "\r\n",
    ),
)


def test_no_letter_of_any_text_is_lost(rng: np.random.Generator) -> None:
    for _ in range(100):
        text = "".join(rng.choice(PIECES, size=rng.integers(1, 40)))
        window = Window(int(rng.choice([80, 40, 20])), int(rng.choice([4, 24])))
        window.write(text, lambda: int(rng.integers(1, 9)))
        window.answer.finish()
        shown = iter("\n".join(window.lines))
        assert all(letter in shown for letter in re.findall(r"\w", text.replace("_", ""))), text


def test_signs_become_layout_and_words_stay() -> None:
    assert laid_out(ANSWER, 60) == [
        "A title",
        "Some bold and more bold with italics and `code`, and then a",
        "line that goes on and on and on.",
        'A second line, with a link (http://a.b/ü "title"),',
        "http://x.y and a picture (c.png).",
        "- Item: text that goes on for more than one line of the",
        "  window",
        "  - nested",
        "",
        "    ```python",
        "    def f(x):",
        "        return x * 2  # code that is longer than the window is wide, and not broken",
        "    ```",
        "- Second",
        "9. nine",
        "10. ten",
        "> quoted words",
        "> more",
        " name  a column      n",
        " ─────────────────────",
        " one   two words     3",
        "                     4",
        " five  six seven  8888",
        "---",
        "```sh",
        '\techo   "**as is**"',
        "```",
        "    and so is this",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "2*3*4 is 24, and 2**3**4 is large",
        "(a)*(b)*(c), x^* and y^*, $a_{1}_{2}$",
        r"\(a + b\), \[c\], \{d\}, \frac{1}{2} \\ \, \;",
        "<b>not bold</b> &lt; &nbsp; <br",
        "[1]: http://a.b",
        "snake_case_name and __init__.py",
        "~~not struck~~ ~5 $5 and $6",
        "roses\nare red",
        "Setext\n===",
        "| a | b |\n|---|---|\n| 1 | 2 | 3 |",
        "| no | rows |\n|---|---|",
    ],
)
def test_what_is_not_sure_to_be_markdown_stays_as_written(text: str) -> None:
    assert "\n".join(laid_out(text)) == text.replace("__init__", "init")


def test_a_table_that_is_too_wide_becomes_lines_of_name_and_value() -> None:
    assert laid_out(TABLE, 16) == [
        *("name      one", "a column  two words", "n         3", "          4", ""),
        *("name      five", "a column  six seven", "n         8888"),
    ]


def test_a_table_is_laid_out_when_it_is_complete_or_stays_as_written() -> None:
    window = Window()
    window.write(TABLE)
    assert "| one | **two** words | 3<br>4 |" in window.lines
    window.write("\nEnd")
    assert window.lines == [*laid_out(TABLE), "", "End"]
    low = Window(rows=3)
    low.write(f"{TABLE}\nEnd")
    assert low.lines == [*TABLE.split("\n")[1:], "End"]


def test_bold_and_code_that_are_still_open_show_no_signs() -> None:
    window = Window()
    for piece, line in (
        ("Some **", "Some"),
        ("bo", "Some bo"),
        ("ld*", "Some bold"),
        ("*", "Some bold"),
    ):
        window.answer.write(piece)
        assert window.lines == [line]
    window.answer.write(" and `a**b")
    assert window.lines == ["Some bold and `a**b`"]


def test_a_resize_and_lines_of_others_in_between_lose_nothing() -> None:
    window = Window(40, 10)
    third = len(ANSWER) // 3
    window.write(ANSWER[:third])
    window.paper.resize(columns=60)
    window.write(ANSWER[third : 2 * third])
    window.feed("\n[1]+ Stopped\n$ fg\n")
    window.page.moved = True
    window.write(ANSWER[2 * third :])
    window.answer.finish()
    shown = letters("\n".join(window.lines))
    assert "[1]+Stopped$fg" in shown
    for word in re.findall(r"\w{3,}", ANSWER):
        assert word in shown.replace("[1]+Stopped$fg", "")


def test_titles_are_bold_and_signs_of_code_are_dim() -> None:
    window = Window()
    window.write("## A title\n\n```\ncode\n```\n")
    title, _, fence, code, *_ = window.paper.cells
    assert all(cell.bold for cell in title)
    assert all(cell.blink for cell in fence)  # pyte's cells are not dim, see Paper
    assert not any(cell.blink or cell.bold for cell in code)


def test_after_a_resize_or_lines_of_others_an_answer_continues_on_a_new_line() -> None:
    window = Window(20)
    window.write("one two three four five six seven ")
    window.paper.resize(columns=40)
    window.write("eight nine")
    assert window.lines == ["one two three four", "five six seven", "eight", "nine"]
    window.feed("\n$ fg\n")
    window.page.moved = True
    window.write(" and ten")
    assert window.lines[2:] == ["eight", "nine", "$ fg", "and ten"]


def test_a_resize_cuts_no_word() -> None:
    window = Window(20)
    for piece, width in (("one, tw", 40), ("o, th", 30), ("r", 20), ("ee", 40), (" and four", 40)):
        window.write(piece)
        window.paper.resize(columns=width)
    assert window.lines == ["one, two,", "three", "and four"]


def test_lines_that_are_no_longer_there_are_erased() -> None:
    window = Window()
    window.page.show([Text("one, which is longer"), Text("two"), Text("three")])
    window.page.show([Text("one")])
    assert window.lines == ["one"]


def test_control_characters_are_shown_and_not_obeyed() -> None:
    window = Window()
    window.write("a\x1b[2J\x07b\x9bc\r\nd\x7f")
    assert window.lines == ["a␛[2J␇b\ufffdc", "d␡"]


def test_lines_that_do_not_change_are_not_written_again() -> None:
    written: list[str] = []
    window = Page(written.append, lambda: os.terminal_size((80, 24)))
    window.show([Text("one"), Text("two")])
    window.show([Text("one"), Text("two"), Text("three")])
    window.show([Text("one"), Text("two"), Text("three and more")])
    assert all("one" not in text and "two" not in text for text in written[1:])
