"""The record of a run: the machine, the model, the settings, and a case for each combination.

This is the JSON that `--out` writes and `--from` reads; README.md explains each key. Doesn't know
how anything is measured or printed.
"""

from __future__ import annotations

import dataclasses
import json
import operator
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from mlx_gemma_mtp.decode.table import PassTable
from mlx_gemma_mtp.errors import UsageError
from mlx_gemma_mtp.files.atomic import write_whole

from .stamp import Stamp

SCHEMA = 6  # increases when a key is removed or changes its meaning
OURS = "mlx-gemma-mtp"
ALL = "all"  # the task of a case that adds up several tasks, each measured alone
WITHOUT = {what: f"no-{what}" for what in ("copies", "exact", "table")}  # engines of ours without
MIXED = "mixed"  # the task of a case whose rows belong to different tasks

NumDrafts = int | Literal["auto"]


@dataclass(frozen=True, order=True)
class Spread:
    """Median, lowest and highest of several turns."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(statistics.median(values), min(values), max(values))

    @classmethod
    def ratio(cls, values: Sequence[float], others: Sequence[float]) -> Spread:
        """Of two medians; low and high are those of single turns, each over its own."""
        turns = [value / other for value, other in zip(values, others, strict=True)]
        middle = statistics.median(values) / statistics.median(others)
        return cls(middle, min(turns), max(turns))


@dataclass(frozen=True)
class Window:
    """The timed part of one turn, and the prefill before it. Counts are of all rows together."""

    tokens: int
    rounds: int
    seconds: float
    prefill_tokens: int
    prefill_seconds: float

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds

    def __add__(self, other: Window) -> Window:
        return Window(*map(operator.add, vars(self).values(), vars(other).values()))


@dataclass(frozen=True)
class Case:
    """One engine, task, batch and number of draft tokens, measured in several turns."""

    engine: str
    task: str
    batch: int
    num_draft_tokens: NumDrafts
    prompt_tokens: list[int]
    windows: list[Window]
    tokens_per_second: Spread
    round_ms: Spread
    prefill_tokens_per_second: Spread
    first_token_ms: Spread | None = None
    token_gap_ms_p50: float | None = None
    token_gap_ms_p95: float | None = None
    token_gap_ms_max: float | None = None
    peak_gb: float | None = None
    speedup: Spread | None = None
    drafted_per_round: float | None = None
    drafted_by_row: list[float] | None = None
    tokens_per_pass: float | None = None
    copied_per_round: float | None = None
    copied_acceptance_rate: float | None = None
    acceptance_rate: float | None = None
    acceptance_length: float | None = None
    acceptance_by_position: list[float] | None = None
    accepted_histogram: list[int] | None = None
    allowed_round_gb: float | None = None
    allowed_tokens_per_second: float | None = None
    allowed_share: float | None = None
    draft_ms: float | None = None
    verify_ms: float | None = None
    host_ms: float | None = None

    @property
    def setting(self) -> str:
        """The number of draft tokens in words."""
        return in_words(self.num_draft_tokens)


@dataclass(frozen=True)
class Subject:
    """What was measured. random: random weights of a real size, with drawn accepts."""

    name: str
    dtype: str
    bits: str | None
    target_bytes: int
    drafter_bytes: int | None
    num_experts: int
    random: bool

    def __str__(self) -> str:
        bits = f", {self.bits} bits" if self.bits else ""
        return f"{self.name}, {self.dtype}{bits}{', random weights' * self.random}"


@dataclass(frozen=True)
class Plan:
    """What to measure. tokens: of each row, in a window.

    accept: chances of drawn accepts; rows take these lists in turn. without: what else of ours is
    measured, see WITHOUT.
    endless: rows continue after their turn has ended, for random weights and for peers.
    """

    batches: list[int]
    num_draft_tokens: list[NumDrafts]
    tokens: int
    repeat: int = 1
    delay: float = 0.0
    temperature: float = 0.0
    depth: int = 0
    endless: bool = False
    tasks: list[str] = field(default_factory=list)
    accept: list[list[float]] | None = None
    without: list[str] = field(default_factory=list)
    exact: Literal["auto", "on", "off"] = "auto"


@dataclass
class Record:
    """A run. complete: everything in the plan was measured. table: what engines started from."""

    command: str
    stamp: Stamp
    subject: Subject
    plan: Plan
    bandwidth_bytes_per_second: float
    cases: list[Case] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    complete: bool = False
    table: PassTable | None = None

    @property
    def batches(self) -> list[int]:
        """Batch sizes, ascending."""
        return sorted({case.batch for case in self.cases})

    @property
    def engines(self) -> list[str]:
        """Ours first, then the peers."""
        return list(dict.fromkeys([OURS, *(case.engine for case in self.cases)]))

    def is_summary(self, case: Case) -> bool:
        """True if the case covers all tasks of its batch."""
        tasks = {other.task for other in self.cases if other.batch == case.batch}
        return case.task == ALL or tasks == {case.task}

    def at(self, batch: int, engine: str = OURS) -> list[Case]:
        """The summaries of a batch by number of draft tokens, auto last."""
        found = [c for c in self.cases if (c.batch, c.engine) == (batch, engine)]
        return sorted(filter(self.is_summary, found), key=by_drafts)

    def plain(self, batch: int) -> Case | None:
        """Our summary without drafts."""
        return next((case for case in self.at(batch) if not case.num_draft_tokens), None)

    def fastest(self, batch: int, engine: str = OURS) -> Case | None:
        """The summary with the most tokens per second."""
        return max(self.at(batch, engine), key=by_speed, default=None)

    def fastest_drafted(self, batch: int) -> Case | None:
        """The fastest of ours with a fixed number of draft tokens above 0."""
        return max(filter(is_drafted, self.at(batch)), key=by_speed, default=None)

    def by_task(self, batch: int) -> list[Case]:
        """Our cases of single tasks, in the order measured."""
        found = [c for c in self.cases if (c.batch, c.engine) == (batch, OURS)]
        return [case for case in found if case.task not in (ALL, MIXED)]

    def to_json(self) -> dict[str, Any]:
        """As a JSON object, with the schema first."""
        return {"schema": SCHEMA, **dataclasses.asdict(self)}


def in_words(num_draft_tokens: NumDrafts) -> str:
    """A number of draft tokens."""
    if num_draft_tokens == "auto":
        return "auto"
    return {0: "plain decoding", 1: "1 draft"}.get(num_draft_tokens, f"{num_draft_tokens} drafts")


def by_drafts(case: Case) -> float:
    """A key to sort by: numbers, then auto."""
    return float("inf") if case.num_draft_tokens == "auto" else case.num_draft_tokens


def by_speed(case: Case) -> float:
    """A key to sort by."""
    return case.tokens_per_second.median


def is_drafted(case: Case) -> bool:
    """True for a fixed number of draft tokens above 0."""
    return case.num_draft_tokens not in (0, "auto")


def write_json(found: dict[str, Any], path: Path) -> None:
    """Replace the file in one step. Raises UsageError if it can't be written."""
    text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    try:
        write_whole(path, text.encode())
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None


def read(path: Path) -> Record:
    """The record in a file. Raises UsageError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
        schema = found.pop("schema")
        if "cases" in found and schema != SCHEMA:
            raise UsageError(f"{path} has schema {schema!r}, not {SCHEMA}: measure again")
        return _built(Record, found)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"{path} was not written by `mgm bench --out`") from None


def _built(kind: Any, found: Any) -> Any:
    """JSON as the dataclasses that it was made from."""
    if found is not None and get_origin(kind) is UnionType:
        kind = get_args(kind)[0]
    if kind is PassTable and found is not None:
        return PassTable.from_json(found)
    if get_origin(kind) is list:
        return [_built(get_args(kind)[0], one) for one in found]
    if dataclasses.is_dataclass(kind) and found is not None:
        hints = get_type_hints(kind)
        return kind(**{key: _built(hints[key], value) for key, value in found.items()})  # type: ignore[operator]
    return found
