"""Which requests nobody waits for: those that a front end makes by itself, as for a chat's title.

Goes by their words, since clients mark them in no other way. Knows no protocol.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mlx_gemma_mtp.text.functions import Schema
from mlx_gemma_mtp.text.messages import INSTRUCTIONS, Message

BACKGROUND = -1  # a priority of `Engine.submit`: all others come first

# How the last message of the user starts: Open WebUI's titles, tags and follow-ups; Claude Code's
# guess at what the user will type next.
STARTS = ("### Task:\n", "[SUGGESTION MODE")

# What others ask for a title with, at the start of the instructions or of the last message.
REACH = 300  # characters
TALK = r"\b(?:conversation|chat|thread|session|topic)\b"
TITLE = re.compile(rf"(?i)\btitle\b[^\n]{{0,120}}{TALK}|{TALK}[^\n]{{0,120}}\btitle\b")


def priority_of(messages: Sequence[Message], tools: Sequence[Schema] = ()) -> int:
    """Return BACKGROUND for what a front end asks for by itself, else 0.

    If this is wrong, a request waits for others and is answered all the same. tools: an agent
    gives them, and asks for a title without.
    """
    if not messages or messages[-1]["role"] != "user":
        return 0
    first, last = (str(one.get("content") or "") for one in (messages[0], messages[-1]))
    if last.startswith(STARTS):
        return BACKGROUND
    told = [last, first] if messages[0]["role"] in INSTRUCTIONS else [last]
    asks = not tools and any(TITLE.search(text, 0, REACH) for text in told)
    return BACKGROUND if asks else 0
