"""Is drafting worth it here, and what to type: one verdict, computed from a record.

The tables, the first and the last line of a report, and `--share` all take it from here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from .record import Case, NumDrafts, Record, Spread, by_speed

LEAST_GAIN = 0.02  # a smaller gain over plain decoding doesn't count
BEHIND = 0.05  # auto is preferred to a fixed number up to this much faster
QUESTION = "Worth it here?"


class Finding(NamedTuple):
    """One batch: plain decoding, the best setting that drafts, and how much faster that is."""

    plain: Case
    drafted: Case
    gain: Spread

    @property
    def gains(self) -> bool:
        return gains(self.drafted)

    @property
    def answer(self) -> Literal["Yes", "No", "Unclear", "Idle"]:
        """Whether to draft. Unclear: faster, but not in every turn. Idle: auto didn't draft."""
        if self.gains:
            return "Yes"
        if self.drafted.drafted_per_round == 0:
            return "Idle"
        return "Unclear" if self.gain.median > 1 + LEAST_GAIN else "No"

    @property
    def use(self) -> Case:
        """The setting to use."""
        return self.drafted if self.gains else self.plain


def gains(case: Case) -> bool:
    """True if drafts made every turn faster than plain decoding, and the median clearly so."""
    found = case.speedup
    if found is None or case.drafted_per_round == 0:  # auto may choose not to draft
        return False
    return found.low > 1 and found.median > 1 + LEAST_GAIN


def best(cases: Sequence[Case]) -> Case | None:
    """The best setting with drafts: the fastest that gains, or the fastest if none does.

    auto has an advantage of BEHIND.
    """

    def rank(case: Case) -> tuple[bool, bool, float]:
        bonus = 1 / (1 - BEHIND) if case.num_draft_tokens == "auto" else 1
        return gains(case), case.drafted_per_round != 0, bonus * by_speed(case)

    return max((case for case in cases if case.num_draft_tokens != 0), key=rank, default=None)


def finding(cases: Sequence[Case]) -> Finding | None:
    """What one batch of ours shows; None if it wasn't measured both plainly and with drafts."""
    plain = next((case for case in cases if case.num_draft_tokens == 0), None)
    drafted = best(cases)
    if plain is None or drafted is None or drafted.speedup is None:
        return None
    return Finding(plain, drafted, drafted.speedup)


def verdict(record: Record) -> str:
    """The verdict on all batches that were measured plainly and with drafts, and what to type."""
    found = {batch: one for batch in record.batches if (one := finding(record.at(batch)))}
    if not record.cases:
        return f"{QUESTION} Not measured: the run ended too early."
    if not found:
        if record.subject.drafter_bytes is None:
            return f"{QUESTION} Not measured: the model has no drafter."
        compare = "type --num-draft-tokens 0,3,auto to compare"
        return f"{QUESTION} Not measured: this needs plain decoding and drafts; {compare}."
    # Batches with one answer share a sentence.
    alike: dict[tuple[str, NumDrafts], list[int]] = {}
    for batch, one in found.items():
        alike.setdefault((one.answer, one.use.num_draft_tokens), []).append(batch)
    said = [QUESTION]
    for (answer, count), batches in alike.items():
        where = f"at batch {_listed(map(str, batches))}"
        gains = [found[batch].gain for batch in batches]
        use = f"--num-draft-tokens {count}{', the default' * (count == 'auto')}"
        times = f"{_listed(f'{gain.median:.2f}' for gain in gains)} times as fast"
        if answer == "Yes":
            said.append(f"Yes {where}: {times} with {use}.")
        elif answer == "Unclear":
            spans = _listed(f"{gain.low:.2f}x to {gain.high:.2f}x" for gain in gains)
            said.append(f"Unclear {where}: the turns differ too much ({spans}), so use {use}.")
        elif answer == "Idle":
            said.append(f"No {where}: auto did not draft, so use {use}.")
        else:
            said.append(f"No {where}: at best {times}, so use {use}.")
    if drawn := accepts(record):
        said.append(f"This assumes that drafts are accepted at {drawn}.")
    return " ".join(said)


def _listed(parts: Iterable[str]) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


def reasons(record: Record) -> list[str]:
    """Why drafts don't gain, for each batch where they clearly don't."""
    found = []
    for batch in record.batches:
        one = finding(record.at(batch))
        if one is None or one.answer in ("Yes", "Unclear"):
            continue
        cost, tokens = one.drafted.round_ms.median, one.drafted.acceptance_length
        if tokens is None:
            found.append(f"batch {batch}: {one.drafted.setting} did not draft")
            continue
        found.append(
            f"batch {batch}: a round with {one.drafted.setting} takes "
            f"{cost / one.plain.round_ms.median:.2f}x as long as a plain one and yields "
            f"{tokens:.2f} tokens a row"
        )
    if found and record.stamp.backend == "cpu":
        found.append(
            "On a CPU, checking drafts costs almost as much as generating the tokens; GPUs differ"
        )
    return [f"{reason}." for reason in found]


class Duel(NamedTuple):
    """Our best and a peer's at one batch, from the same numbers of draft tokens."""

    ours: Case
    theirs: Case
    times: Spread  # ours over theirs


def duels(record: Record) -> list[Duel]:
    """A comparison for each batch and peer."""
    found = []
    for batch in record.batches:
        for engine in record.engines[1:]:
            theirs = record.fastest(batch, engine)
            tried = {case.num_draft_tokens for case in record.at(batch, engine)}
            same = [c for c in record.at(batch) if c.num_draft_tokens in tried or tried == {0}]
            if theirs is not None and same:
                ours = max(same, key=by_speed)
                rates = ([window.rate for window in case.windows] for case in (ours, theirs))
                found.append(Duel(ours, theirs, Spread.ratio(*rates)))
    return found


def accepts(record: Record) -> str:
    """The chances of drawn accepts; "" if they were real."""
    lists = [", ".join(map(str, one)) for one in record.plan.accept or []]
    return " / ".join(lists) + " (rows in turn)" * (len(lists) > 1)
