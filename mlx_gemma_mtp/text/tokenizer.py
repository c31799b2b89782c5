"""Between text and tokens: tokenizer, chat template, and streamed text.

Wraps mlx-lm's tokenizer, whose detokenizers yield text as soon as its bytes are complete. Knows
nothing of models, engines and terminals, nor of what a model's markers mean.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from mlx_gemma_mtp.errors import CheckpointError, UsageError, one_line
from mlx_gemma_mtp.text.messages import Message, check_messages, for_template

NOTHING = r"(?!)"  # a pattern that never matches
FIRST_DISGUISE = 0xD800  # and up: lone surrogates, which no UTF-8 text contains


class Markers(NamedTuple):
    """The ids of the tokens that separate channels; None if the tokenizer has no such token.

    turn: opens a turn, in which no thought or call is open yet.
    """

    channel: int | None = None
    channel_end: int | None = None
    call: int | None = None
    call_end: int | None = None
    quote: int | None = None
    turn: int | None = None


# In the same order.
MARKERS = ("<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", '<|"|>', "<|turn>")


class Text:
    """The tokenizer and chat template of a checkpoint.

    Messages are text only: a special token that is spelled out in one becomes ordinary tokens, so
    nobody can forge a turn. Special tokens come from the template, or as ids.
    """

    def __init__(self, folder: Path) -> None:
        from mlx_lm import tokenizer_utils  # pulls in transformers: about a second

        try:
            self._tokenizer = tokenizer_utils.load(folder)
        except Exception as error:  # tokenizers raises bare Exception for a broken file
            raise CheckpointError(f"{folder}: the tokenizer cannot be read: {error}") from error
        added = self._tokenizer.added_tokens_decoder
        self.markers = _markers({token.content: number for number, token in added.items()})
        special = [t.content for t in added.values() if t.special or t.content in MARKERS]
        firsts = sorted({ord(content[0]) for content in special})
        self._disguise = {first: FIRST_DISGUISE + at for at, first in enumerate(firsts)}
        self._undisguise = {disguise: first for first, disguise in self._disguise.items()}
        self._special = re.compile("|".join(map(re.escape, special)) or NOTHING)
        self._disguised = re.compile("|".join(map(chr, self._undisguise)) or NOTHING)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, special tokens included; adds none at its start."""
        _check_writable(text)
        # Not verbose: transformers would warn of a limit that is not this runtime's.
        return list(self._tokenizer.encode(text, add_special_tokens=False, verbose=False))

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of token ids, special tokens included."""
        return str(self._tokenizer.decode(list(tokens)))

    def chat(self, messages: Sequence[Message], **options: Any) -> list[int]:
        """Return the token ids of a conversation, ready for the model's next turn.

        options go to the chat template: `tools=[...]`, `enable_thinking=True` (by default off).
        Thoughts at the start of a model's message are left out, with their markers; other markers
        are text. Raises UsageError for messages that `check_messages` or the template refuses.
        """
        import jinja2

        template = self._tokenizer.chat_template
        if template is None:
            raise UsageError("this checkpoint has no chat template: use plain text or token ids")
        options = {"enable_thinking": False} | options
        if options["enable_thinking"] and "enable_thinking" not in str(template):
            raise UsageError("this checkpoint's chat template cannot switch thinking on")
        check_messages(messages)
        try:
            if "tools" in options:
                options["tools"] = self._in_disguise(options["tools"])
            written = self._tokenizer.apply_chat_template(
                self._in_disguise(for_template(messages)),
                tokenize=False,
                add_generation_prompt=True,
                **options,
            )
        except (
            jinja2.TemplateError,
            TypeError,
            KeyError,
            ArithmeticError,
            RecursionError,
        ) as error:
            reason = one_line(error)
            raise UsageError(f"the chat template refuses these messages: {reason}") from None
        return self._encode_disguised(written)

    def prompt(self, prompt: str | Sequence[Message], *, thinking: bool = False) -> list[int]:
        """Return the token ids of a prompt. A string is one user turn if there is a chat template.

        Raises UsageError as `chat`, and for thinking without a template.
        """
        if not isinstance(prompt, str):
            return self.chat(prompt, enable_thinking=thinking)
        if self._tokenizer.chat_template is None and not thinking:
            return [*self._tokenizer.encode(""), *self._encode_disguised(self._in_disguise(prompt))]
        return self.chat([{"role": "user", "content": prompt}], enable_thinking=thinking)

    def stream(self, stop: Sequence[str] = ()) -> TextStream:
        """Return a new stream of text that ends at any of the stop strings."""
        return TextStream(self._tokenizer.detokenizer, stop, self.markers)

    def _in_disguise(self, value: Any) -> Any:
        """Return a value with every character replaced that special tokens start with.

        One character stands for one, so that templates can cut and trim the strings.
        """
        if isinstance(value, str):
            _check_writable(value)
            return value.translate(self._disguise)
        if isinstance(value, Mapping):
            return {self._in_disguise(key): self._in_disguise(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._in_disguise(item) for item in value]
        return value

    def _encode_disguised(self, written: str) -> list[int]:
        """Return the token ids of a text in which disguised characters start no special token."""
        text = written.translate(self._undisguise)
        starts = (found.start() for found in self._disguised.finditer(written))
        # Encoded in parts, cut after the first character of each string that only looks special.
        cuts = [at + 1 for at in starts if self._special.match(text, at)]
        ids: list[int] = []
        for start, end in pairwise([0, *cuts, len(text)]):
            ids += self.encode(text[start:end])
        return ids


def _markers(ids: Mapping[str, int]) -> Markers:
    """Return the markers among these tokens; one that opens needs the one that closes."""
    found = Markers(*map(ids.get, MARKERS))
    if None in (found.channel, found.channel_end):
        found = found._replace(channel=None, channel_end=None)
    if None in (found.call, found.call_end):
        found = found._replace(call=None, call_end=None)
    return found


def _check_writable(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError("the prompt is not valid UTF-8 text") from None  # half a character


class TextStream:
    """Turns tokens into text, and holds back what may still become a stop string.

    `stopped` is True once one was found: it and everything after it are not part of the text.
    """

    def __init__(self, detokenizer: Any, stop: Sequence[str], markers: Markers) -> None:
        self.markers = markers
        self._detokenizer = detokenizer
        self._stop = stop
        self._held = ""
        self.stopped = False

    def add(self, token: int, *, stopping: bool = True) -> str:
        """Return the text that is certain with this token. stopping: look for stop strings."""
        self._detokenizer.add_token(token)
        return self._release(self._stop if stopping else (), final=False)

    def finish(self, *, stopping: bool = True) -> str:
        """Return the text that was held back; bytes of an unfinished character become U+FFFD."""
        self._detokenizer.finalize()
        return self._release(self._stop if stopping else (), final=True)

    def _release(self, stops: Sequence[str], *, final: bool) -> str:
        if self.stopped:
            return ""
        self._held += self._detokenizer.last_segment
        # The stop string that is complete first, however the text was cut into tokens.
        found = [(at + len(stop), at) for stop in stops if (at := self._held.find(stop)) >= 0]
        self.stopped = bool(found)
        starts = (stop[:size] for stop in stops for size in range(1, len(stop)))
        undecided = [len(start) for start in starts if not final and self._held.endswith(start)]
        end = min(found)[1] if found else len(self._held) - max(undecided, default=0)
        piece, self._held = self._held[:end], self._held[end:]
        return piece
