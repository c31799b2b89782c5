"""A call in an answer, for models that forget the marker that opens one.

Knows nothing of tokens, and of calls only how they start.
"""

from __future__ import annotations

from collections.abc import Collection

from mlx_gemma_mtp.text.call_reader import raw


class UnmarkedCall:
    """Holds back an answer from a line that starts as a call of a known tool.

    Only the marker that completes calls can show that it is one. That is a token, so no text that
    a model repeats becomes a call. `held` has MARK for each quote token.
    """

    def __init__(self, names: Collection[str]) -> None:
        """names: of the tools that may be called."""
        self._starts = [f"call:{name}{{" for name in names]
        self._at_line_start = True
        self.held = ""

    @property
    def is_call(self) -> bool:
        """True if what is held only needs its end to be a call."""
        return any(self.held.startswith(start) for start in self._starts)

    def add(self, text: str) -> str:
        """Return the text that is certainly part of the answer."""
        starts = self._at_line_start or self.held != ""
        text = self.held + text
        at = 0 if starts and self._may_start(text) else text.rfind("\n") + 1 or len(text)
        if not self._may_start(text[at:]):
            at = len(text)
        answer, self.held = text[:at], text[at:]
        if answer:
            self._at_line_start = answer.endswith("\n")
        return raw(answer)

    def release(self) -> str:
        """Return what was held: it is part of the answer. A new line starts."""
        held, self.held, self._at_line_start = self.held, "", True
        return raw(held)

    def _may_start(self, line: str) -> bool:
        return any(line.startswith(start) or start.startswith(line) for start in self._starts)
