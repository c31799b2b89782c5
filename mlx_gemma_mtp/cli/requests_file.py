"""The file of `mgm generate --batch-file`: one request per line, all checked before any work.

Knows nothing of engines and results.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlx_gemma_mtp.decode.params import SamplingParams
from mlx_gemma_mtp.errors import UsageError
from mlx_gemma_mtp.text.messages import Message, check_messages, with_system

SETTINGS = ("max_tokens", "temperature", "top_k", "top_p", "seed", "stop", "thinking")
KEYS = ("id", "prompt", "system", *SETTINGS)


@dataclass(frozen=True)
class Line:
    """A request: the number of its line, from 1, and its id, by default that number."""

    number: int
    id: Any
    prompt: str | Sequence[Message]
    params: SamplingParams

    def seeded(self, base: int) -> Line:
        """Return it with a seed made from `base` and its id, unless it has its own.

        So its answer depends neither on its place in the file nor on earlier runs.
        """
        if self.params.seed is not None:
            return self
        digest = hashlib.sha256(json.dumps([base, self.id], sort_keys=True).encode()).digest()
        seed = int.from_bytes(digest[:4], "big")
        return replace(self, params=replace(self.params, seed=seed))


def read(path: Path, params: SamplingParams, system: str | None) -> tuple[list[Line], str]:
    """Return the lines of a file, and the SHA-256 of its bytes. params and system: of all lines.

    A line is {"id", "prompt"} and any settings of KEYS: a prompt is text or a list of messages, an
    id is any JSON that no other line has. Blank lines are skipped. Raises UsageError with the
    reason of the first bad line and the numbers of the others.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    lines: list[Line] = []
    bad: dict[int, str] = {}
    numbers: dict[str, int] = {}  # of the lines, by their ids
    for number, written in enumerate(content.split(b"\n"), 1):
        if not written.removeprefix(codecs.BOM_UTF8).strip():
            continue
        try:
            line = _line(number, written, params, system)
            first = numbers.setdefault(json.dumps(line.id, sort_keys=True), number)
            if first != number:
                raise UsageError(f"line {first} has the same id: each line needs its own")
        except UsageError as error:
            bad[number] = str(error)
        else:
            lines.append(line)
    if bad:
        first, *others = bad
        named = ", ".join(map(str, others[:10])) + (", …" if others[10:] else "")
        more = f" (also bad: {named})" if others else ""
        raise UsageError(f"{path}, line {first}: {bad[first]}{more}")
    if not lines:
        raise UsageError(f'{path} has no requests: write {{"id": 1, "prompt": "…"}} lines')
    return lines, hashlib.sha256(content).hexdigest()


def _line(number: int, written: bytes, params: SamplingParams, system: str | None) -> Line:
    try:
        found = json.loads(written.decode("utf-8-sig"))
        # As it will be in the results: escapes can spell halves of characters.
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeError:
        raise UsageError("not UTF-8 text") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"not JSON ({error})") from None
    if not isinstance(found, dict):
        raise UsageError('not an object like {"id": 1, "prompt": "…"}')
    for key in found:
        if key not in KEYS:
            raise UsageError(f"unknown key {key!r}; known keys: {', '.join(KEYS)}")
    settings = {key: found[key] for key in SETTINGS if found.get(key) is not None}
    prompt = _prompt(found.get("prompt"), found.get("system"), system)
    return Line(number, found.get("id", number), prompt, replace(params, **settings))


def _prompt(prompt: Any, own: Any, system: str | None) -> str | Sequence[Message]:
    """Return the prompt of a line with its own system prompt, or the one of all lines."""
    if not isinstance(own, str | None):
        raise UsageError("system must be text")
    if isinstance(prompt, str):
        if not prompt.strip():
            raise UsageError("the prompt is empty")
    elif isinstance(prompt, list) and prompt:
        check_messages(prompt)
        if prompt[0]["role"] in ("system", "developer"):
            if own is not None:
                raise UsageError("both system and a system message: use one of them")
            return prompt
    else:
        raise UsageError('prompt must be text or a list of {"role", "content"} messages')
    return with_system(prompt, system if own is None else own)
