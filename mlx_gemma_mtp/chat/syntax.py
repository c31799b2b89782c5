"""How commands of a chat are typed: their names, their arguments and their help.

Knows nothing of what they do.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import NamedTuple

from mlx_gemma_mtp.errors import UsageError


class Command(NamedTuple):
    """A command, its arguments as its help shows them, and what it does."""

    name: str
    arguments: str
    help: str
    values: tuple[str, ...] = ()  # arguments that Tab completes
    file: bool = False  # True if Tab completes a file name
    lines: bool = False  # True if the argument may have several lines


SETTINGS = ("temperature", "top_k", "top_p", "seed", "max_tokens", "stop")

COMMANDS = (
    Command("help", "", "show this list"),
    Command("exit", "", "quit (also Ctrl-D, or Ctrl-C twice)"),
    Command("clear", "", "start a new conversation; the system prompt stays"),
    Command("regen", "", "answer the last message again"),
    Command("undo", "", "remove the last message and its answer"),
    Command("system", "[TEXT]", 'set the system prompt; "none" removes it', ("none",), lines=True),
    Command(
        "think",
        "[on|off|open|fold]",
        "thinking on or off; show (open) or hide (fold) it",
        ("on", "off", "open", "fold"),
    ),
    Command("set", "[NAME VALUE]", 'a sampling setting; "default" is the model\'s', SETTINGS),
    Command("stats", "[on|off]", "statistics of the last answer, or of every one", ("on", "off")),
    Command("mtp", "[off|auto|N]", "drafts per round; auto is fastest; same text", ("off", "auto")),
    Command("save", "FILE", "save the conversation to a file", file=True),
    Command("load", "FILE", "continue a conversation from a file", file=True),
    Command("read", "FILE [TEXT]", "send a file as a message, after TEXT", file=True),
    Command("copy", "", "copy the last answer to the clipboard"),
    Command("model", "[NAME]", "switch to a folder or a downloaded model", ("demo",)),
)
BY_NAME = {command.name: command for command in COMMANDS}
ALIASES = {"quit": "exit", "bye": "exit"}

KEYS = f'''\
Settings: {", ".join(SETTINGS)}.
Enter sends, Alt-Enter starts a new line. """ starts a multi-line message, """
ends it. Pasted lines are one message. Ctrl-X Ctrl-E opens $EDITOR, Tab
completes, Up recalls. Ctrl-C stops an answer and keeps what is there. A space
before /name sends it as text. Markdown in answers is not rendered.'''


def parse(text: str) -> tuple[str, str] | None:
    """Return the name and the argument of the command in a text; None for a message.

    A path such as `/etc/hosts` is a message, and so are several lines unless the command takes
    them. Raises UsageError for an unknown command.
    """
    found = re.fullmatch(r"/([A-Za-z]*)(?:\s+(.*))?", text.rstrip(), re.DOTALL)
    if found is None:
        return None
    word, rest = found[1].lower(), found[2] or ""
    name = ALIASES.get(word, word)
    if "\n" in text.strip() and not (name in BY_NAME and BY_NAME[name].lines):
        return None
    if name not in BY_NAME:
        near = did_you_mean(word, [*BY_NAME, *ALIASES], prefix="/")
        raise UsageError(f"no command /{word}: {near or '/help lists them'}")
    return name, rest.strip()


def did_you_mean(word: str, known: Sequence[str], prefix: str = "") -> str | None:
    """Return a question with the nearest known word, or None if none is near."""
    near = [one for one in known if one.startswith(word)] or get_close_matches(word, known, 1)
    return f"did you mean {prefix}{near[0]}?" if near else None


def help_text() -> str:
    """Return all commands, one per line, and the keys."""
    heads = [f"/{one.name} {one.arguments}".rstrip() for one in COMMANDS]
    width = max(map(len, heads))
    lines = [f"{head:{width}}  {one.help}" for head, one in zip(heads, COMMANDS, strict=True)]
    return "\n".join([*lines, KEYS])
