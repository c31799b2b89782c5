"""How commands of a chat are typed: their names, their arguments and their help.

Knows nothing of what they do.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import NamedTuple

from mlx_gemma_mtp.errors import UsageError
from mlx_gemma_mtp.show import wrapped


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
        "think first; open shows thoughts, fold hides them",
        ("on", "off", "open", "fold"),
    ),
    Command(
        "set",
        "[NAME VALUE]",
        f'{", ".join(SETTINGS)}; the value "default" is the model\'s',
        SETTINGS,
    ),
    Command(
        "stats", "[on|off]", "statistics of the last answer, or after every one", ("on", "off")
    ),
    Command(
        "mtp",
        "[off|auto|N]",
        "draft tokens per round, auto: fastest; same text",
        ("off", "auto"),
    ),
    Command("raw", "[on|off]", "show answers as written, without Markdown layout", ("on", "off")),
    Command("save", "FILE", "save the conversation to a file", file=True),
    Command("load", "FILE", "continue a conversation from a file", file=True),
    Command("read", "FILE [TEXT]", "send a file as a message, after TEXT", file=True),
    Command("copy", "", "copy the last answer as written to the clipboard"),
    Command("model", "[NAME]", "switch to a folder or a downloaded model", ("demo",)),
)
BY_NAME = {command.name: command for command in COMMANDS}
ALIASES = {"quit": "exit", "bye": "exit"}

KEYS = '''\
Enter sends, Alt-Enter starts a new line, """ starts and ends several. Pasted lines are one \
message. A file dragged here is sent, with text after its name. A space before /name sends it as \
text. Tab completes, Up recalls, Ctrl-X Ctrl-E opens $EDITOR. Ctrl-C stops an answer, which is \
kept. Ctrl-Z suspends.'''

# The first word as shells read it: a terminal writes the name of a dragged file like this.
_SHELL_WORD = re.compile(
    r"""((?:[^\s'"\\]|\\.|'[^']*'|"(?:[^"\\]|\\.)*")+)(?:\s+(.*))?""", re.DOTALL
)


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


def named_file(text: str) -> Iterator[tuple[str, str]]:
    r"""Yield what a text that starts with a file's name may mean: the name, and the text after it.

    The name is the whole text, or its first word, with blanks as `my\ file` or in quotes.
    """
    yield text, ""
    if found := _SHELL_WORD.fullmatch(text):
        yield shlex.split(found[1])[0], found[2] or ""
    name, _, rest = text.partition(" ")
    yield name, rest.strip()


def help_text(width: int) -> str:
    """Return all commands and the keys, in lines of at most this width."""
    heads = [f"/{one.name} {one.arguments}".rstrip() for one in COMMANDS]
    column = max(map(len, heads)) + 2
    if width < 2 * column:  # the explanations get lines of their own
        column = 4
    lines = []
    for head, one in zip(heads, COMMANDS, strict=True):
        first, *more = wrapped(one.help, width - column).splitlines()
        fits = len(head) < column
        lines += [f"{head:{column}}{first}"] if fits else [head, " " * column + first]
        lines += [" " * column + line for line in more]
    return "\n".join([*lines, "", wrapped(KEYS, width)])
