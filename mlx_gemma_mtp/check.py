"""Is the output the same? With drafts as without, and in a batch as alone.

In float32 and from exact passes it must be; otherwise it may differ at a near tie.

One implementation for `mgm generate --check`, `mgm bench --check` and the self-test of
`mgm doctor`. Knows nothing of the command line.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import zip_longest
from typing import Any, Literal

import mlx.core as mx

from mlx_gemma_mtp.decode.params import SamplingParams
from mlx_gemma_mtp.engine.engine import Engine
from mlx_gemma_mtp.engine.pair import OpenPair, open_pair
from mlx_gemma_mtp.engine.results import Completion
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.errors import ModelNotFoundError
from mlx_gemma_mtp.files.weights import dtype_name
from mlx_gemma_mtp.margin import NEAR_ULPS, Margin, is_exact, margin
from mlx_gemma_mtp.text.tokenizer import Text

Drafts = int | Literal["auto"]

NUM_DRAFT_TOKENS = 3  # in place of auto, which may find that drafts do not pay here

# The self-test continues past the ends of these answers: there the drafter is often wrong.
PROMPTS = ("What is 17 + 25?", "Tell me a story.", "Spell the word elephant.", "Hi!")


@dataclass(frozen=True)
class Side:
    """How one of two completions continues: its next token and text; None at its end."""

    token: int | None
    text: str | None

    def __str__(self) -> str:
        if self.token is None:
            return "the end"
        text = "" if self.text is None else f" ({json.dumps(self.text, ensure_ascii=False)})"
        return f"token {self.token}{text}"


@dataclass(frozen=True)
class Difference:
    """The first difference of two completions: `position` tokens are the same.

    before: the end of their common text. margin: between the two tokens, if it was measured.
    """

    position: int
    before: str | None
    found: Side
    wanted: Side
    margin: Margin | None = None

    @property
    def is_fault(self) -> bool:
        """True unless rounding explains it, which it never does in float32: there bound is 0."""
        return self.margin is None or not 0 < self.margin.bound >= self.margin.size

    def __str__(self) -> str:
        verdict = "fault" if self.is_fault else "near tie"
        measured = f", {self.margin}" if self.margin else ""
        return f"after {self.position} tokens {self.found}, not {self.wanted}: {verdict}{measured}"


def difference(found: Sequence[int], wanted: Sequence[int], text: Text | None) -> Difference | None:
    """Return where two lists of tokens first differ, or None if they are the same."""

    def side(tokens: Sequence[int]) -> Side:
        return Side(next(iter(tokens), None), text.decode(tokens) if text and tokens else None)

    for at, (one, other) in enumerate(zip_longest(found, wanted)):
        if one != other:
            before = side(found[max(at - 8, 0) : at]).text
            return Difference(at, before, side(found[at : at + 4]), side(wanted[at : at + 4]))
    return None


@dataclass(frozen=True)
class Row:
    """One completion of a batch: how many of its tokens are the same, and its drafts.

    exact: both completions came from exact passes, so they must not differ.
    """

    tokens: int
    drafted: int
    accepted: int
    exact: bool
    difference: Difference | None


@dataclass(frozen=True)
class Comparison:
    """The rows of a batch, compared with the same batch without drafts.

    num_draft_tokens 0: generated without drafts, and compared with each prompt alone.
    """

    temperature: float
    batch: int
    num_draft_tokens: Drafts
    rows: list[Row]

    @property
    def settings(self) -> str:
        drafts = self.num_draft_tokens
        how = f"drafts {drafts}" if drafts else "no drafts, compared with each row alone"
        return f"temperature {self.temperature:g}, batch {self.batch}, {how}"

    @property
    def differences(self) -> list[tuple[int, Difference]]:
        return [(at, row.difference) for at, row in enumerate(self.rows) if row.difference]

    def __str__(self) -> str:
        same, tokens = self.batch - len(self.differences), sum(row.tokens for row in self.rows)
        line = f"{self.settings}: {same} of {self.batch} the same, {tokens:,} tokens"
        if self.num_draft_tokens:
            line += f", {sum(row.drafted for row in self.rows):,} drafted"
        if all(row.exact for row in self.rows):
            line += ", exact"
        return "\n".join([line, *(f"  row {at}: {one}" for at, one in self.differences)])


def compare(
    engine: Engine,
    pair: OpenPair,
    prompts: Callable[[int], list[list[int]]],
    batches: Sequence[int],
    drafts: Sequence[Drafts],
    max_tokens: int,
) -> Iterator[Comparison]:
    """Generate in every batch without and with drafts, at temperatures 0 and 1, and compare.

    pair: what the engine was made of. prompts: returns N different prompts. drafts: per round; 0 is
    skipped, as it is always compared. Row i has seed i and continues past the ends of turns, so
    that all rows run side by side. top_k and top_p are the model's own.

    Raises ModelNotFoundError without a drafter, and what ends a request.
    """
    if not engine.has_drafter:
        raise ModelNotFoundError("there is nothing to compare without a drafter: use --drafter")
    asked = [count for count in drafts if count != 0]
    for temperature in (0.0, 1.0):
        common = SamplingParams(max_tokens=max_tokens, temperature=temperature, ignore_eos=True)
        alone: dict[tuple[int, ...], Completion] = {}  # by row and prompt
        for batch in batches:
            rows = prompts(batch)
            plain = [replace(common, seed=row, num_draft_tokens=0) for row in range(batch)]
            for row, prompt in enumerate(rows):
                if (row, *prompt) not in alone:
                    [alone[row, *prompt]] = engine.generate([prompt], plain[row])
            wanted = [alone[row, *prompt] for row, prompt in enumerate(rows)]
            for count in asked if batch == 1 else [0, *asked]:
                params = [replace(one, num_draft_tokens=count) for one in plain]
                found = engine.generate(rows, params)
                both = zip(rows, plain, found, wanted, strict=True)
                yield Comparison(temperature, batch, count, [_row(pair, *one) for one in both])
                if count == 0:
                    wanted = found


def _row(
    pair: OpenPair, prompt: list[int], params: SamplingParams, found: Completion, wanted: Completion
) -> Row:
    """Compare two completions; with a margin, unless one of them ends at the difference."""
    exact = found.exact and wanted.exact
    one = difference(found.tokens, wanted.tokens, pair.text)
    if one and one.found.token is not None and one.wanted.token is not None:
        ids = [*prompt, *found.tokens[: one.position]]
        tokens = (one.found.token, one.wanted.token)
        measured = mlx_worker().run(partial(margin, pair, ids, tokens, params))
        one = replace(one, margin=replace(measured, bound=0.0) if exact else measured)
    num_same = one.position if one else len(found.tokens)
    return Row(num_same, found.stats.drafted, found.stats.accepted, exact, one)


@dataclass
class Report:
    """All comparisons of a pair. bound: of a near tie, in words. complete: none is missing.

    near_ties: False in float32, where completions must not differ.
    """

    bound: str
    near_ties: bool = False
    compared: list[Comparison] = field(default_factory=list)
    complete: bool = False

    @classmethod
    def of(cls, pair: OpenPair) -> Report:
        dtype = dtype_name(pair.target.dtype)
        if is_exact(pair.target):
            return cls(f"{dtype} throughout: completions must not differ")
        units = f"{NEAR_ULPS} units in the last place of the larger logit, over the temperature"
        bound = f"activations in {dtype}: a near tie is a margin of at most {units}"
        return cls(f"{bound}; those from exact passes must not differ", near_ties=True)

    @property
    def faults(self) -> list[str]:
        """The differences that rounding does not explain, in words."""
        rows = [(one.settings, *row) for one in self.compared for row in one.differences]
        return [f"{settings}, row {at}: {it}" for settings, at, it in rows if it.is_fault]

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON takes it. "schema" changes if a key goes or changes meaning."""
        return {"schema": 3, "faults": self.faults, **asdict(self)}

    @property
    def summary(self) -> str:
        """One line about all comparisons, with the first fault."""
        faults, total = self.faults, sum(one.batch for one in self.compared)
        num_ties = sum(len(one.differences) for one in self.compared)
        verdict = f"{total - num_ties} of {total} completions are the same"
        if faults:
            verdict = f"{len(faults)} of {total} completions are not the same, first: {faults[0]}"
        elif num_ties:
            verdict += f", {num_ties} differ at a near tie"
        if self.near_ties:
            num_exact = sum(row.exact for one in self.compared for row in one.rows)
            verdict += f"; {num_exact} of {total} from exact passes"
        return verdict if self.complete else f"{verdict}; stopped before the end"

    def __str__(self) -> str:
        return "\n".join([self.bound, *map(str, self.compared), self.summary])


@dataclass(frozen=True)
class SelfTest:
    """How many completions were compared, and their differences, in words: there must be none."""

    completions: int
    differences: list[str]
    acceptance_rate: float


def self_test() -> SelfTest:
    """Compare completions of the demo in float32, which is exact. Raises MgmError."""
    pair = open_pair("demo", force=True)._replace(fingerprint=None)
    assert pair.text is not None
    for model in filter(None, (pair.target, pair.drafter)):
        mlx_worker().run(partial(model.set_dtype, mx.float32))
    prompts = [pair.text.prompt(prompt) for prompt in PROMPTS]
    with Engine(pair) as engine:
        found = compare(engine, pair, lambda n: prompts[:n], (1, 4), [NUM_DRAFT_TOKENS], 24)
        report = Report("", compared=list(found))
    rows = [row for one in report.compared for row in one.rows]
    rate = sum(row.accepted for row in rows) / sum(row.drafted for row in rows)
    return SelfTest(len(rows), report.faults, rate)
