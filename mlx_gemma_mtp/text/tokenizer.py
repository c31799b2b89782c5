"""Between text and tokens: tokenizer, chat template, and text that streams.

Wraps mlx-lm's tokenizer, whose detokenizers yield text as soon as its bytes are complete. Knows
nothing of models, engines or terminals, nor of what a model's markers mean.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from mlx_gemma_mtp.errors import CheckpointError, UsageError, one_line
from mlx_gemma_mtp.text.messages import Message, check_messages, without_thoughts

NOTHING = r"(?!)"  # a pattern that matches nowhere
FIRST_DISGUISE = 0xD800  # and on: lone surrogates, which no text holds that UTF-8 can write


class Markers(NamedTuple):
    """The ids of the tokens that part what a model says; None where the tokenizer has none."""

    channel: int | None = None
    channel_end: int | None = None
    call: int | None = None
    call_end: int | None = None
    quote: int | None = None


NO_MARKERS = Markers()
MARKERS = ("<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", '<|"|>')  # same order


class Text:
    """The tokenizer and chat template of a checkpoint.

    What is in a message is text throughout: a special token that is spelled out there becomes
    ordinary tokens, so nobody can forge a turn. Special tokens come from the template, or as ids.
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
        disguises = "|".join(map(chr, self._undisguise))
        self._disguised = re.compile(disguises or NOTHING)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text with its special tokens: no turn, no beginning-of-text token."""
        _check_writable(text)
        # verbose: else a long text makes transformers warn of a limit that is not this runtime's
        return list(self._tokenizer.encode(text, add_special_tokens=False, verbose=False))

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token ids, special tokens included."""
        return str(self._tokenizer.decode(list(tokens)))

    def chat(self, messages: Sequence[Message], **options: Any) -> list[int]:
        """Token ids of a conversation, ready for the model's next turn.

        options go to the checkpoint's chat template: `tools=[...]`, `enable_thinking=True` (off
        unless asked for). Thoughts that a model's message begins with, markers and all, are left
        out; other markers in messages and tools are plain text.
        Raises UsageError for what `check_messages` or the template refuses.
        """
        import jinja2

        template = self._tokenizer.chat_template
        if template is None:
            raise UsageError("this checkpoint has no chat template: give plain text or token ids")
        options = {"enable_thinking": False} | options
        if options["enable_thinking"] and "enable_thinking" not in str(template):
            raise UsageError("this checkpoint's chat template cannot switch thinking on")
        check_messages(messages)
        try:
            if "tools" in options:
                options["tools"] = self._in_disguise(options["tools"])
            written = self._tokenizer.apply_chat_template(
                [self._in_disguise(without_thoughts(message)) for message in messages],
                tokenize=False,
                add_generation_prompt=True,
                **options,
            )
        except (
            jinja2.TemplateError,
            TypeError,
            KeyError,
            ZeroDivisionError,
            RecursionError,
        ) as error:
            reason = one_line(error)
            raise UsageError(f"the chat template refuses these messages: {reason}") from None
        return self._encode_disguised(written)

    def prompt(self, prompt: str | Sequence[Message], *, thinking: bool = False) -> list[int]:
        """Token ids of a prompt. A string is one user turn where there is a chat template.

        thinking: have the template switch it on. Raises UsageError as `chat`, and where thinking
        is asked for without a template.
        """
        if not isinstance(prompt, str):
            return self.chat(prompt, enable_thinking=thinking)
        if self._tokenizer.chat_template is None and not thinking:
            beginning = list(self._tokenizer.encode(""))
            return beginning + self._encode_disguised(self._in_disguise(prompt))
        return self.chat([{"role": "user", "content": prompt}], enable_thinking=thinking)

    def stream(self, stop: Sequence[str] = ()) -> TextStream:
        """A fresh stream of text that ends at any of the stop strings."""
        return TextStream(self._tokenizer.detokenizer, stop, self.markers)

    def _in_disguise(self, value: Any) -> Any:
        """A value with every character of its strings disguised that a special token begins with.

        One character stands for one, so that templates may cut and trim as they do.
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
        """Token ids of a text in which special tokens are those that do not begin in disguise."""
        text = written.translate(self._undisguise)
        begun = (found.start() for found in self._disguised.finditer(written))
        # Encoded in parts, cut behind the first character of each one that only looks special.
        cuts = [at + 1 for at in begun if self._special.match(text, at)]
        ids: list[int] = []
        for start, end in pairwise([0, *cuts, len(text)]):
            ids += self.encode(text[start:end])
        return ids


def _markers(ids: Mapping[str, int]) -> Markers:
    """The markers among these tokens; one that opens counts only beside the one that closes."""
    channel, channel_end, call, call_end, quote = map(ids.get, MARKERS)
    if channel is None or channel_end is None:
        channel = channel_end = None
    if call is None or call_end is None:
        call = call_end = None
    return Markers(channel, channel_end, call, call_end, quote)


def _check_writable(text: str) -> None:
    """Raises UsageError for a text with halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError("the prompt is not valid UTF-8 text") from None


class TextStream:
    """Turns tokens into text piece by piece; a piece is final once it is out.

    Holds back what may yet become a stop string. `stopped` tells that one was met: it and
    everything after it are not part of the text.
    """

    markers = NO_MARKERS

    def __init__(
        self, detokenizer: Any, stop: Sequence[str], markers: Markers = NO_MARKERS
    ) -> None:
        self.markers = markers
        self._detokenizer = detokenizer
        self._stop = stop
        self._held = ""
        self.stopped = False

    def beside(self) -> TextStream:
        """A stream for text between parts of this one, without stop strings.

        They share what they read with: `finish` the one before the other goes on.
        """
        return TextStream(self._detokenizer, (), self.markers)

    def add(self, token: int) -> str:
        """The text that has become certain with this token."""
        self._detokenizer.add_token(token)
        return self._release(final=False)

    def finish(self) -> str:
        """What was still held back; bytes of an unfinished character become U+FFFD.

        More may come then, as another part of the text.
        """
        self._detokenizer.finalize()
        return self._release(final=True)

    def _release(self, *, final: bool) -> str:
        if self.stopped:
            return ""
        self._held += self._detokenizer.last_segment
        # Of several, the one complete first: how the text was cut into tokens must not matter.
        found = [(at + len(stop), at) for stop in self._stop if (at := self._held.find(stop)) >= 0]
        self.stopped = bool(found)
        certain = len(self._held) - (0 if final else self._undecided())
        end = min(found)[1] if found else certain
        piece, self._held = self._held[:end], self._held[end:]
        return piece

    def _undecided(self) -> int:
        """Length of the longest end of the held text that some stop string begins with."""
        longest = max((len(stop) - 1 for stop in self._stop), default=0)
        for size in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-size:]) for stop in self._stop):
                return size
        return 0
