"""The file of `mgm generate --batch-file`: one request a line, all of them checked before any work.

Knows nothing of engines, nor of results.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from mlx_gemma_mtp.decode.params import SamplingParams
from mlx_gemma_mtp.errors import UsageError
from mlx_gemma_mtp.text.messages import Message, check_messages, with_system

SETTINGS = ("max_tokens", "temperature", "top_k", "top_p", "seed", "stop", "thinking")
KEYS = ("id", "prompt", "system", *SETTINGS)
MOST_NAMED = 10  # bad lines whose numbers are told


@dataclass(frozen=True)
class Line:
    """A request: the number of its line, from 1; its id, by default that number."""

    number: int
    id: Any
    prompt: str | Sequence[Message]
    params: SamplingParams

    def seeded(self, base: int) -> Line:
        """With a seed made of `base` and its id, unless it has one of its own.

        So its text depends neither on where in the file it stands nor on what was done before it.
        """
        if self.params.seed is not None:
            return self
        digest = hashlib.sha256(json.dumps([base, self.id], sort_keys=True).encode()).digest()
        seed = int.from_bytes(digest[:4], "big")
        return replace(self, params=replace(self.params, seed=seed))


class Requests(NamedTuple):
    """All lines of a file, and the SHA-256 of its bytes."""

    lines: list[Line]
    sha256: str


def read(path: Path, params: SamplingParams, system: str | None) -> Requests:
    """Read a file of requests; what a line does not set comes from params and system.

    A line is {"id", "prompt"} with the settings of KEYS beside them: a prompt is text or a list of
    messages, an id is anything that no other line has. Blank lines are skipped. Raises UsageError,
    naming the first bad line and the numbers of the others.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    lines: list[Line] = []
    bad: dict[int, str] = {}
    numbers: dict[str, int] = {}  # of the lines by their ids
    for number, written in enumerate(content.split(b"\n"), 1):
        if not written.strip():
            continue
        try:
            line = _line(number, written, params, system)
            first = numbers.setdefault(json.dumps(line.id, sort_keys=True), number)
            if first != number:
                raise UsageError(f"its id is that of line {first}: give each its own")
        except UsageError as error:
            bad[number] = str(error)
        else:
            lines.append(line)
    if bad:
        (number, reason), *others = bad.items()
        named = ", ".join(str(other) for other, _ in others[:MOST_NAMED])
        dots = ", …" if len(others) > MOST_NAMED else ""
        more = f" ({len(others)} more bad lines: {named}{dots})" if others else ""
        raise UsageError(f"{path}, line {number}: {reason}{more}")
    if not lines:
        raise UsageError(f'{path} has no requests: write {{"id": 1, "prompt": "…"}} lines')
    return Requests(lines, hashlib.sha256(content).hexdigest())


def _line(number: int, written: bytes, params: SamplingParams, system: str | None) -> Line:
    """One line's request. Raises UsageError."""
    try:
        found = json.loads(written.decode("utf-8-sig"))
        # As it will be in the results: escapes can spell halves of characters.
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeError:
        raise UsageError("it is not UTF-8 text") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"it is not JSON ({error})") from None
    if not isinstance(found, dict):
        raise UsageError('it is not an object like {"id": 1, "prompt": "…"}')
    unknown = [key for key in found if key not in KEYS]
    if unknown:
        raise UsageError(
            f"it has an unknown key {unknown[0]!r}; those there are: {', '.join(KEYS)}"
        )
    settings = {key: found[key] for key in SETTINGS if found.get(key) is not None}
    prompt = _prompt(found.get("prompt"), found.get("system"), system)
    return Line(number, found.get("id", number), prompt, replace(params, **settings))


def _prompt(prompt: Any, own: Any, system: str | None) -> str | Sequence[Message]:
    """A line's prompt with the system turn that is its own, or else the one for all lines."""
    if not isinstance(own, str | None):
        raise UsageError("its system is not text")
    if isinstance(prompt, str):
        if not prompt.strip():
            raise UsageError("its prompt is empty: give some text")
        return with_system(prompt, system if own is None else own)
    if not isinstance(prompt, list) or not prompt:
        raise UsageError('its prompt is neither text nor a list of {"role", "content"} messages')
    check_messages(prompt)
    if prompt[0]["role"] in ("system", "developer"):
        if own is not None:
            raise UsageError("it has a system beside messages that begin with one: give one")
        return prompt
    return with_system(prompt, system if own is None else own)
