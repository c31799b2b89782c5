"""The chat's commands as they are typed: which there are, what they take, and what was meant.

Knows nothing of what they do.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import NamedTuple

from mlx_gemma_mtp.errors import UsageError


class Command(NamedTuple):
    """A command. values: what may follow it, for completion; takes_file: a file's name may.

    takes_lines: what follows may be of several lines.
    """

    name: str
    arguments: str
    help: str
    values: tuple[str, ...] = ()
    takes_file: bool = False
    takes_lines: bool = False


SETTINGS = ("temperature", "top_k", "top_p", "seed", "max_tokens", "stop")

COMMANDS = (
    Command("help", "", "this list"),
    Command("exit", "", "leave; so does Ctrl-D, or Ctrl-C twice"),
    Command("clear", "", "begin a new conversation, with the same instructions"),
    Command("regen", "", "answer the last question again"),
    Command("undo", "", "take back the last question and its answer"),
    Command(
        "system",
        "[TEXT]",
        "instructions for the whole conversation; none: without",
        values=("none",),
        takes_lines=True,
    ),
    Command(
        "think",
        "[on|off|open|fold]",
        "think before answering; show thoughts, or only how long they were; alone: the last one",
        values=("on", "off", "open", "fold"),
    ),
    Command(
        "set",
        "[NAME VALUE]",
        f"{', '.join(SETTINGS)}; the value default is the model's",
        values=SETTINGS,
    ),
    Command("stats", "[on|off]", "numbers of the last answer, or of every one", ("on", "off")),
    Command(
        "mtp",
        "[off|auto|N]",
        "drafts per round: none, what is fastest, or so many; never changes the text",
        values=("off", "auto"),
    ),
    Command("save", "FILE", "write the conversation to a file", takes_file=True),
    Command("load", "FILE", "go on with a conversation from a file", takes_file=True),
    Command("read", "FILE [TEXT]", "send a file's text, after TEXT if given", takes_file=True),
    Command("copy", "", "the last answer to the clipboard"),
    Command("model", "[NAME]", "go on with another model, a folder or a cached one", ("demo",)),
)
BY_NAME = {command.name: command for command in COMMANDS}
ALIASES = {"quit": "exit", "bye": "exit"}

KEYS = '''\
Enter sends; Alt-Enter begins a new line. What begins with """ goes on to the next """.
Pasted lines are one message. Ctrl-X Ctrl-E opens your editor, Tab completes, Up and Down recall.
Ctrl-C stops an answer and keeps what was said. A space in front makes a message of a /command.
Answers are shown as they come: Markdown is not rendered.'''


class Call(NamedTuple):
    """A command and what was typed behind it."""

    name: str
    rest: str


def parse(text: str) -> Call | None:
    """The command that a text is; None for a message.

    `/etc/hosts` is no word behind the slash, and so a message; text of several lines is one, too,
    unless the command takes lines. Raises UsageError for a command that there is not.
    """
    found = re.fullmatch(r"/([A-Za-z]*)(?:\s+(.*))?", text.rstrip(), re.DOTALL)
    if found is None:
        return None
    word, rest = found[1].lower(), found[2] or ""
    name = ALIASES.get(word, word)
    if "\n" in text.strip() and not (name in BY_NAME and BY_NAME[name].takes_lines):
        return None
    if name not in BY_NAME:
        near = difflib.get_close_matches(word, [*BY_NAME, *ALIASES], 1)
        meant = f"did you mean /{near[0]}?" if near else "/help lists them"
        raise UsageError(f"no command /{word}: {meant}")
    return Call(name, rest.strip())


def completions(text: str) -> Iterator[str]:
    """What a text that begins a command may become, its last word completed; no files."""
    name, space, rest = text.partition(" ")
    if not space:
        yield from (f"/{one.name}" for one in COMMANDS if f"/{one.name}".startswith(name))
    elif (command := BY_NAME.get(name[1:])) and " " not in rest:
        yield from (value for value in command.values if value.startswith(rest))


def help_text() -> str:
    """All commands, a line each, and the keys."""
    heads = [f"/{one.name} {one.arguments}".rstrip() for one in COMMANDS]
    width = max(map(len, heads))
    lines = [f"{head:{width}}  {one.help}" for head, one in zip(heads, COMMANDS, strict=True)]
    return "\n".join([*lines, KEYS])
