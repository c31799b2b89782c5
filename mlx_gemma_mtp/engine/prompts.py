"""The prompts that callers may give, checked and as token ids.

Knows nothing of requests, or of what a model makes of a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import numpy as np

from mlx_gemma_mtp.decode.params import is_count
from mlx_gemma_mtp.engine.budget import Budget
from mlx_gemma_mtp.errors import UsageError
from mlx_gemma_mtp.text.messages import Message, Prompt
from mlx_gemma_mtp.text.tokenizer import LONG, Text
from mlx_gemma_mtp.text.tools import Tool

FORMS = 'a prompt is text, a list of token ids, or a list of {"role", "content"} messages'


def as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """A list of prompts, also of a single prompt."""
    prompts = _listed(prompts)
    if _is_list(prompts) and not (prompts and all(is_count(p) or _is_message(p) for p in prompts)):
        return cast(list[Prompt], list(prompts))
    return [cast(Prompt, prompts)]


def is_long(prompt: Prompt) -> bool:
    """True if it would block an event loop for some time to encode or check this prompt."""
    if isinstance(prompt, str):
        return len(prompt) > LONG
    if not _is_list(prompt):
        return False
    return len(prompt) > LONG or sum(len(str(one)) for one in prompt if _is_message(one)) > LONG


def encoded(
    prompt: Prompt,
    text: Text | None,
    budget: Budget,
    *,
    thinking: bool = False,
    tools: Sequence[Tool] | None = None,
) -> list[int]:
    """The token ids of a prompt for this model. tools: as of `Text.chat`.

    It may be too long for the budget. Raises PromptTooLongError if its text has too many characters
    to fit, UsageError for anything that is not a prompt, and what `Text.prompt` raises.
    """
    prompt = _listed(prompt)
    if not isinstance(prompt, str) and not _is_list(prompt):
        raise UsageError(f"{FORMS}, not {type(prompt).__name__}")
    if isinstance(prompt, str) and not prompt.strip():
        return []
    if all(is_count(item) for item in prompt):
        for wanted, what in ((thinking, "thinking needs"), (tools, "tools need")):
            if wanted and prompt:
                raise UsageError(f"{what} the chat template: give text or messages, not ids")
        ids = [int(cast(int, item)) for item in prompt]
    elif not isinstance(prompt, str) and not all(_is_message(item) for item in prompt):
        raise UsageError(FORMS)
    elif text is None:
        raise UsageError("this checkpoint has no tokenizer: give the prompt as token ids")
    else:
        given = cast(str | Sequence[Message], prompt)
        check = partial(budget.check_prompt, counted=False)
        ids = text.prompt(given, thinking=thinking, tools=tools, check=check)
    size = budget.pair.target.vocab_size
    bad = next((i for i in ids if not 0 <= i < size), None)
    if bad is not None:
        raise UsageError(f"prompt: token id {bad} is outside the vocabulary of {size} tokens")
    return ids


def _listed(value: Any) -> Any:
    """Return NumPy's token ids as a list; anything else stays."""
    return value.tolist() if isinstance(value, np.ndarray) else value


def _is_list(value: object) -> bool:
    """True for a sequence of things, but not of characters or bytes."""
    strings = (str, bytes, bytearray, memoryview)
    return isinstance(value, Sequence) and not isinstance(value, strings)


def _is_message(item: object) -> bool:
    return isinstance(item, dict) and "role" in item and bool({"content", "tool_calls"} & set(item))
