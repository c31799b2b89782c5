"""Is drafting worth it here, and what to type: one verdict, computed from a record.

The tables, the first and the last line of a report, and `--share` all take it from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .record import Case, Record, Spread, by_speed

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


class Verdict(NamedTuple):
    """answer: a sentence, with the gains that it rests on. advice: what to type."""

    answer: str
    advice: str


def verdict(record: Record) -> Verdict:
    """The verdict on all batches that were measured plainly and with drafts."""
    found = {batch: one for batch in record.batches if (one := finding(record.at(batch)))}
    if not record.cases:
        return Verdict(f"{QUESTION} Not measured: the run ended too early.", "")
    if not found:
        if record.subject.drafter_bytes is None:
            return Verdict(f"{QUESTION} Not measured: the model has no drafter.", "")
        compared = "Type --num-draft-tokens 0,3,auto to compare."
        return Verdict(f"{QUESTION} Not measured: this needs plain decoding and drafts.", compared)
    paying = [batch for batch, one in found.items() if one.gains]
    answer = "Yes" if len(paying) == len(found) else "No"
    if 0 < len(paying) < len(found):
        answer = f"Only at batch {', '.join(map(str, paying))}"
    speeds: list[str] = []
    for batch, one in found.items():
        speeds.append(f"{one.gain.median:.2f}x {'the plain speed ' * (not speeds)}at batch {batch}")
        if one.gain.median > 1 + LEAST_GAIN and not one.gains:
            speeds[-1] += " but not reliably"
    condition = f", if drafts are accepted at {drawn}" if (drawn := accepts(record)) else ""
    return Verdict(f"{QUESTION} {answer}: {', '.join(speeds)}{condition}.", _advice(found))


def _advice(found: dict[int, Finding]) -> str:
    counts = {batch: one.use.num_draft_tokens for batch, one in found.items()}
    if len({*counts.values()}) > 1:
        by_batch = ", ".join(f"{count} at batch {batch}" for batch, count in counts.items())
        return f"Type --num-draft-tokens {by_batch}."
    count = next(iter(counts.values()))
    return f"Type --num-draft-tokens {count}{', the default' * (count == 'auto')}."


def reasons(record: Record) -> list[str]:
    """Why drafts don't gain, for each batch where they don't."""
    found = []
    for batch in record.batches:
        one = finding(record.at(batch))
        if one is None or one.gains:
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
    times: Spread  # ours over theirs, turn by turn


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
                pairs = zip(ours.windows, theirs.windows, strict=True)
                times = Spread.of([own.rate / other.rate for own, other in pairs])
                found.append(Duel(ours, theirs, times))
    return found


def accepts(record: Record) -> str:
    """The chances of drawn accepts; "" if they were real."""
    return ", ".join(map(str, record.plan.accept or []))
