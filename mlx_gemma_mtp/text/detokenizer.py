"""The text of tokens, as soon as its bytes are complete.

Knows nothing of prompts, stop strings and what a token means.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mlx_gemma_mtp.errors import CheckpointError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPACE = "▁"  # stands for a space in the vocabulary
_NORMALIZER = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_SPLITTERS = {"Sequence", "Split", "Digits", "Punctuation"}
_DECODERS = [
    {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
]


def token_bytes(tokenizer: Tokenizer) -> dict[int, bytes]:
    """Return the bytes of every token. Raises CheckpointError unless it decodes as Gemma's does."""
    decoder = tokenizer.decoder and json.loads(tokenizer.decoder.__getstate__())
    if decoder != {"type": "Sequence", "decoders": _DECODERS}:
        raise CheckpointError("its decoder is not that of a Gemma tokenizer")
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    return {number: _bytes(content) for content, number in vocabulary.items()}


def keeps_all(tokenizer: Tokenizer) -> bool:
    """True if every character of a text is sure to be in one of its tokens, or in several."""
    from tokenizers.models import BPE

    normalizer, splitter = (
        part and part.__getstate__().decode()
        for part in (tokenizer.normalizer, tokenizer.pre_tokenizer)
    )
    model = tokenizer.model
    added = tokenizer.get_added_tokens_decoder().values()
    return (
        json.loads(normalizer or "null") == _NORMALIZER
        and {*re.findall(r'"type":"(\w+)"', splitter or "")} <= _SPLITTERS
        and "Removed" not in (splitter or "")
        and isinstance(model, BPE)
        and model.byte_fallback
        and all(tokenizer.token_to_id(f"<0x{byte:02X}>") is not None for byte in range(256))
        and not any(token.lstrip or token.rstrip for token in added)
    )


def _bytes(content: str) -> bytes:
    """Return the bytes of a token, which is one byte ("<0x0A>") or text."""
    if content.startswith("<0x") and content.endswith(">") and len(content) == 6:
        return bytes([int(content[3:5], 16)])
    return content.replace(SPACE, " ").encode()


class Detokenizer:
    """Turns tokens into text, one after another. An id without a token has no text."""

    def __init__(self, bytes_of: Mapping[int, bytes], silent: int | None = None) -> None:
        """bytes_of: the bytes of every token. silent: one that has no text."""
        self._silent = silent
        self._bytes_of = bytes_of
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        """Return the text that is complete with this token; U+FFFD for bytes that aren't text."""
        return self._decoder.decode(
            b"" if token == self._silent else self._bytes_of.get(token, b"")
        )

    def finish(self) -> str:
        """Return U+FFFD if the last character is not complete. Further tokens start over."""
        return self._decoder.decode(b"", final=True)
