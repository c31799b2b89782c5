"""Between text and tokens: tokenizer, chat template, and text that streams.

Wraps mlx-lm's tokenizer, whose detokenizers yield text as soon as its bytes are complete. Knows
nothing of models, engines or terminals.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlx_gemma_mtp.errors import CheckpointError, UsageError

Message = dict[str, Any]
Prompt = str | Sequence[int] | Sequence[Message]


class Text:
    """The tokenizer and chat template of a checkpoint."""

    def __init__(self, folder: Path) -> None:
        from mlx_lm import tokenizer_utils  # pulls in transformers: about a second

        try:
            self._tokenizer = tokenizer_utils.load(folder)
        except Exception as error:  # tokenizers raises bare Exception for a broken file
            raise CheckpointError(f"{folder}: the tokenizer cannot be read: {error}") from error

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text, as it is: no turn, no beginning-of-text token."""
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UsageError("the prompt is not valid UTF-8 text") from None
        # verbose: else a long text makes transformers warn of a limit that is not this runtime's
        return list(self._tokenizer.encode(text, add_special_tokens=False, verbose=False))

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token ids, special tokens included."""
        return str(self._tokenizer.decode(list(tokens)))

    def chat(self, messages: Sequence[Message], **options: Any) -> list[int]:
        """Token ids of a conversation, ready for the model's next turn.

        options go to the checkpoint's chat template: `tools=[...]`, `enable_thinking=True` (off
        unless asked for).
        Raises UsageError for a conversation that the template refuses.
        """
        import jinja2

        if self._tokenizer.chat_template is None:
            raise UsageError("this checkpoint has no chat template: give plain text or token ids")
        try:
            text = self._tokenizer.apply_chat_template(
                list(messages),
                tokenize=False,
                add_generation_prompt=True,
                **{"enable_thinking": False} | options,
            )
        except (jinja2.TemplateError, TypeError, KeyError, ZeroDivisionError) as error:
            reason = " ".join(str(error).split())
            raise UsageError(f"the chat template refuses these messages: {reason}") from None
        return self.encode(text)

    def prompt(self, prompt: str | Sequence[Message]) -> list[int]:
        """Token ids of a prompt. A string is one user turn where there is a chat template."""
        if not isinstance(prompt, str):
            return self.chat(prompt)
        if self._tokenizer.chat_template is None:
            return list(self._tokenizer.encode(prompt))
        return self.chat([{"role": "user", "content": prompt}])

    def stream(self, stop: Sequence[str] = ()) -> TextStream:
        """A fresh stream of text that ends at any of the stop strings."""
        return TextStream(self._tokenizer.detokenizer, stop)


class TextStream:
    """Turns tokens into text piece by piece; a piece is final once it is out.

    Holds back what may yet become a stop string. `stopped` tells that one was met: it and
    everything after it are not part of the text.
    """

    def __init__(self, detokenizer: Any, stop: Sequence[str]) -> None:
        self._detokenizer = detokenizer
        self._stop = stop
        self._held = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """The text that has become certain with this token."""
        self._detokenizer.add_token(token)
        return self._release(final=False)

    def finish(self) -> str:
        """What was still held back; bytes of an unfinished character become U+FFFD."""
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
