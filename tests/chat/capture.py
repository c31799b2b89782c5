"""Makes docs/chat.svg, the picture of a chat in the README: a real one with the demo pair.

    PYTHONPATH=.:tests python docs/capture.py

Its numbers are those of the machine it runs on.
"""

import io
import re
import tempfile
from itertools import groupby
from pathlib import Path

from command import STORY, SUM
from rich.console import Console
from rich.text import Text
from test_terminal import Person

PICTURE = Path(__file__).with_name("chat.svg")
COLUMNS = 128
SAID = [SUM, "/stats on", STORY, "/mtp off", "/regen"]


def main() -> None:
    """Hold the chat and draw what was seen."""
    with tempfile.TemporaryDirectory() as folder:
        person = Person(Path(folder), "--think", "--temperature", "0", columns=COLUMNS)
        for text in SAID:
            person.say(text)
        person.close()
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    for row in person.paper.cells[: person.paper.row]:
        line = Text()
        for dim, cells in groupby(row, key=lambda cell: cell.dim):
            line.append("".join(cell.character for cell in cells), "dim" if dim else "")
        console.print(line, soft_wrap=True)
    drawn = console.export_svg(title="mgm chat", unique_id="chat")
    # A page that shows the picture does not load fonts for it.
    PICTURE.write_text(re.sub(r"@font-face \{.*?\}\n", "", drawn, flags=re.DOTALL))


if __name__ == "__main__":
    main()
