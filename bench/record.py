"""What a benchmark found, as one document: the machine, what was asked, a case for every setting.

Written as JSON after every group of cases, so that nothing measured is lost; SCHEMA.md tells what
each key means. Knows nothing of how it was measured or is shown.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mlx_gemma_mtp.errors import UsageError
from mlx_gemma_mtp.files.atomic import write_whole

from .stamp import Stamp

SCHEMA = 2  # changes where a key goes or means something else
OURS = "mlx-gemma-mtp"
ALL = "all"  # a case over several tasks, each measured by itself
MIXED = "mixed"  # rows of several tasks side by side

Drafts = int | Literal["auto"]


def setting(drafts: Drafts) -> str:
    """A number of drafts, in words."""
    if drafts == "auto":
        return "auto"
    return f"{drafts} draft{'s' * (drafts > 1)}" if drafts else "plain decoding"


class Spread(NamedTuple):
    """Of several turns: the median, the lowest and the highest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(statistics.median(values), min(values), max(values))


class Split(NamedTuple):
    """Where a round's time goes, in ms, played in step: nothing overlaps, each part is waited for.

    draft and verify: until the device is done, the launching of their kernels included. host: what
    lies between two rounds: Python, scheduling, reading the tokens.
    """

    draft_ms: float
    verify_ms: float
    host_ms: float


class Ideal(NamedTuple):
    """What the bytes of a round allow at the bandwidth of the run, and the share of it reached."""

    round_bytes: float
    tokens_per_second: float
    share: float


@dataclass(frozen=True)
class Case:
    """One setting, measured in several turns. SCHEMA.md has the units."""

    engine: str
    task: str
    batch: int
    drafts: Drafts
    prompt_tokens: list[int]
    samples: list[dict[str, float]]
    decode_tokens_per_second: Spread
    round_ms: Spread
    prefill_tokens_per_second: Spread
    speedup: Spread | None = None
    accept: list[float] | None = None
    first_token_ms: Spread | None = None
    token_gap_ms: dict[str, float] | None = None
    acceptance_rate: float | None = None
    acceptance_length: float | None = None
    acceptance_by_position: list[float] | None = None
    accepted_histogram: list[int] | None = None
    drafted_per_round: float | None = None
    distinct_experts: float | None = None
    peak_bytes: int | None = None
    split: Split | None = None
    floor: Ideal | None = None

    @property
    def rates(self) -> list[float]:
        """Tokens per second of all rows, turn by turn."""
        return [sample["tokens"] / sample["seconds"] for sample in self.samples]


@dataclass(frozen=True)
class Turn:
    """The first token of a conversation's second turn: prefilled whole, and with a session."""

    task: str
    prompt_tokens: int
    reused_tokens: int
    first_token_ms: Spread
    reused_first_token_ms: Spread


@dataclass(frozen=True)
class Subject:
    """What was measured; as a string, in words.

    random: noise at a real size, so that accepts are drawn. drafter_bytes is None where there is no
    drafter.
    """

    name: str
    dtype: str
    bits: str | None
    target_bytes: int
    drafter_bytes: int | None
    num_experts: int
    random: bool

    def __str__(self) -> str:
        bits = "" if self.bits is None else f", {self.bits}"
        bits += " bits" if self.bits is not None and self.bits.isdigit() else ""
        return f"{self.name}, {self.dtype}{bits}" + (", random weights" if self.random else "")


@dataclass
class Record:
    """A run. `complete` is False until it has measured all that was asked for."""

    command: str
    stamp: Stamp
    subject: Subject
    settings: dict[str, Any]
    bandwidth_bytes_per_second: float
    cases: list[Case] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    recommendation: str | None = None
    complete: bool = False

    def is_summary(self, case: Case) -> bool:
        """Is it about all tasks of its batch, or about the only one?"""
        tasks = {other.task for other in self.cases if other.batch == case.batch}
        return case.task == ALL or tasks == {case.task}

    def to_json(self) -> dict[str, Any]:
        """As JSON takes it, "schema" first."""
        found = {"schema": SCHEMA} | dataclasses.asdict(self)
        found["cases"] = [_named(case) for case in self.cases]
        found["turns"] = [_named(turn) for turn in self.turns]
        return found

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Record:
        """What `to_json` made. Raises KeyError or TypeError for anything else."""
        rest = {key: value for key, value in found.items() if key != "schema"}
        rest["stamp"] = Stamp(**found["stamp"])
        rest["subject"] = Subject(**found["subject"])
        rest["cases"] = [Case(**_typed(case)) for case in found["cases"]]
        rest["turns"] = [Turn(**_typed(turn)) for turn in found["turns"]]
        return cls(**rest)


def write_json(found: dict[str, Any], path: Path) -> None:
    """Replace the file, whole or not at all. Raises UsageError where that cannot be done."""
    text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    try:
        write_whole(path, text.encode())
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from None


def read(path: Path) -> Record:
    """The record in a file. Raises UsageError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if "cases" in found and found["schema"] != SCHEMA:
            raise UsageError(
                f"{path} is of schema {found['schema']!r}, not {SCHEMA}: measure again"
            )
        return Record.from_json(found)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"{path} is no run that `mgm bench --out` wrote") from None


# Tuples with names are lists to `json`: they become objects here, and tuples again.
_PARTS: dict[str, Callable[..., Any]] = {
    "decode_tokens_per_second": Spread,
    "prefill_tokens_per_second": Spread,
    "round_ms": Spread,
    "speedup": Spread,
    "first_token_ms": Spread,
    "reused_first_token_ms": Spread,
    "split": Split,
    "floor": Ideal,
}


def _named(part: Case | Turn) -> dict[str, Any]:
    found = dataclasses.asdict(part)
    for key in _PARTS:
        if found.get(key) is not None:
            found[key] = getattr(part, key)._asdict()
    return found


def _typed(found: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _PARTS[key](**value) if key in _PARTS and value is not None else value
        for key, value in found.items()
    }
