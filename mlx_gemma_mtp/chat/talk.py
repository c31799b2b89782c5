"""A chat from its first message to its last: at a terminal, or with lines from a pipe."""

from __future__ import annotations

import sys

from mlx_gemma_mtp.chat.chat import Chat
from mlx_gemma_mtp.chat.commands import parse
from mlx_gemma_mtp.chat.editor import Editor
from mlx_gemma_mtp.chat.loading import Load
from mlx_gemma_mtp.chat.obey import Leave, obey
from mlx_gemma_mtp.errors import MgmError, UsageError


def talk(chat: Chat, editor: Editor, load: Load) -> None:
    """Until the user leaves. What cannot be done is told, and the chat goes on."""
    while (text := editor.read()) is not None:
        if not text.strip():
            continue
        try:
            call = parse(text)
            if call is None:
                chat.ask(text)
            else:
                obey(chat, call, load)
        except Leave:
            return
        except MgmError as error:
            chat.screen.say(f"mgm: {error}")


def answer_lines(chat: Chat) -> None:
    """Every line of stdin that is not blank is a question, whatever it begins with.

    They are UTF-8 whatever the locale says. Raises MgmError for the first that cannot be answered.
    """
    for line in sys.stdin.buffer:
        try:
            text = line.decode()
        except UnicodeDecodeError:
            raise UsageError("the input is not UTF-8 text") from None
        if text.strip():
            chat.ask(text.removesuffix("\n").removesuffix("\r"))
