"""Makes mlx_gemma_mtp/chat/chat.svg, the picture in the README: a chat on the machine it runs on.

PYTHONPATH=tests python tests/chat/capture.py
"""

import io
import re
import tempfile
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.text import Text

import mlx_gemma_mtp.chat
from helpers.command import STORY, SUM
from helpers.person import Person

PICTURE = Path(mlx_gemma_mtp.chat.__file__).with_name("chat.svg")
COLUMNS = 80

with tempfile.TemporaryDirectory() as folder:
    options = ("--think", "--temperature", "0", "--num-draft-tokens", "3")
    person = Person(Path(folder), *options, columns=COLUMNS)
    for text in (SUM, "/stats on", STORY):
        person.say(text)
    person.child.close(force=True)
console = Console(record=True, width=COLUMNS, file=io.StringIO())
for row in person.paper.cells[: person.paper.row]:
    line = Text()
    for (dim, bold), cells in groupby(row, key=lambda cell: (cell.blink, cell.bold)):
        line.append("".join(cell.data for cell in cells), f"{'dim ' * dim}{'bold' * bold}")
    console.print(line, soft_wrap=True)
drawn = console.export_svg(title="mgm chat", unique_id="chat")
# A page that shows the picture does not load fonts for it.
PICTURE.write_text(re.sub(r"@font-face \{.*?\}\n", "", drawn, flags=re.DOTALL))
