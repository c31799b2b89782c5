"""Tables and lines fit the width of a terminal and lose nothing."""

from collections import Counter

import pytest
from rich.cells import cell_len

from mlx_gemma_mtp.show import table, wrapped

HEADER = ("NAME", "MODEL", "SIZE", "FIRST MESSAGE")
ROWS = [
    ("20261129-201012-ab12", "google/gemma-4-E4B-it", "12.3 kB", "Why is the sky blue? " * 3),
    ("short", "demo", "1.0 kB", "短い" * 5),
]


@pytest.mark.parametrize("width", [200, 90, 80, 60, 40])
def test_a_table_fits_a_width_and_loses_nothing(width: int) -> None:
    shown = table(HEADER, ROWS, left=4, width=width)
    assert max(map(cell_len, shown.splitlines())) <= width
    letters = [Counter("".join(text.split())) for text in ("".join(map("".join, ROWS)), shown)]
    assert letters[0] <= letters[1]


def test_a_long_word_is_broken_only_if_the_table_fits_in_no_other_way() -> None:
    name = "mlx-community/gemma-4-26b-a4b-it"
    rows = [(name, "12 minutes ago")]
    assert name in table(("NAME", "MODIFIED"), rows, left=2, width=45)
    assert name not in table(("NAME", "MODIFIED"), rows, left=2, width=40)


def test_a_table_in_a_pipe_and_in_markdown_is_as_wide_as_it_is() -> None:
    for shown in (table(HEADER, ROWS), table(HEADER, ROWS, markdown=True, width=40)):
        assert ROWS[0][3].strip() in shown


def test_a_table_wraps_between_words_and_becomes_lines_of_name_and_value_if_too_narrow() -> None:
    rows = [("some words in a row", "1"), ("other", "22")]
    assert table(("WHAT", "N"), rows, width=15).splitlines() == [
        " WHAT         N",
        " ──────────────",
        " some words   1",
        " in a row",
        " other       22",
    ]
    assert (
        table(("A", "B"), [("1234567", "12345678")], left=0, width=12) == "A  1234567\nB  12345678"
    )


def test_lines_are_broken_between_words_only_if_they_are_too_long() -> None:
    text = "one two three\n  four five six seven"
    assert wrapped(text, None) == text
    assert wrapped(text, 40) == text
    assert wrapped(text, 13) == "one two three\n  four five\nsix seven"
    assert wrapped(text, 0).split() == text.split()
    assert wrapped("/a/long/path/without/blanks", 10) == "/a/long/path/without/blanks"


@pytest.mark.parametrize("width", range(1, 40))
def test_a_table_loses_nothing_in_the_narrowest_windows(width: int) -> None:
    shown = "".join(table(HEADER, ROWS, left=1, width=width).split())
    assert all(word in shown for row in ROWS for cell in row for word in cell.split())
