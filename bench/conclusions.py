"""What a record says in sentences: is drafting worth it, why not, and which setting to use.

Every sentence is computed from the record and contains the numbers that it rests on.
"""

from __future__ import annotations

from mlx_gemma_mtp.errors import UsageError

from .record import Case, Record, Spread, by_speed
from .report import cells

BEHIND = 0.05  # of the best fixed number's speed: a slower auto is not recommended
COMPARED = "--recommend compares 0, auto and a number: use --drafts 0,3,auto"


def conclusions(record: Record) -> list[str]:
    """Whether drafting pays, then the best setting by batch, the reasons, and the peers."""
    if not record.batches:
        return []
    lines = [_verdict(record), *(_best(record, batch) for batch in record.batches)]
    for batch in record.batches:
        if not any(case.gains for case in record.at(batch)):
            lines.append(_reason(record, batch))
    if record.stamp.backend == "cpu" and lines[0]:
        lines.append(
            "on a CPU, checking drafts costs almost as much as generating the tokens, so drafting "
            "rarely helps; GPUs differ"
        )
    for batch in record.batches:
        lines += [_peer(record, batch, engine) for engine in record.engines[1:]]
    return [f"{line}." for line in lines if line]


def _verdict(record: Record) -> str:
    """Whether drafting is worth it here; "" if it wasn't measured."""
    best = [case for batch in record.batches if (case := record.best(batch)) and case.gains]
    if not best:
        drafted = any(record.fastest_drafted(batch) for batch in record.batches)
        return "drafting does not pay here" if drafted else ""
    most = max(best, key=lambda case: case.speedup or Spread(1, 1, 1))
    batches = ", ".join(str(case.batch) for case in best)
    return f"drafting pays here at batch {batches}: up to {_gain(most)}, {most.setting}"


def _gain(case: Case) -> str:
    row = cells(case)
    return f"{row['speedup']}x plain ({row['speedup_low']}–{row['speedup_high']})"


def _best(record: Record, batch: int) -> str:
    """The best setting, next to auto and the fastest fixed number."""
    chosen = record.best(batch)
    if chosen is None:
        return ""
    line = f"batch {batch}: {chosen.setting}, {cells(chosen)['tokens_per_second']} tok/s"
    if chosen.num_draft_tokens != 0 and chosen.speedup is not None:
        line += f", {_gain(chosen)}"
    if chosen.allowed_share is not None:
        line += f", {chosen.allowed_share:.1%} of what the memory bandwidth allows"
    others = [record.fastest_drafted(batch), _auto(record, batch)]
    known = [case for case in others if case and case is not chosen and case.speedup]
    return "; ".join([line, *(f"{case.setting} {_gain(case)}" for case in known)])


def _auto(record: Record, batch: int) -> Case | None:
    return next((case for case in record.at(batch) if case.num_draft_tokens == "auto"), None)


def _reason(record: Record, batch: int) -> str:
    """What a round with drafts costs, against what it yields."""
    plain, drafted = record.plain(batch), record.fastest_drafted(batch)
    if plain is None or drafted is None or drafted.acceptance_length is None:
        return ""
    cost = drafted.round_ms.median / plain.round_ms.median
    return (
        f"no gain at batch {batch}: a round with {drafted.setting} takes {cost:.2f}x a plain one "
        f"and yields {drafted.acceptance_length:.2f} tokens a row"
    )


def _peer(record: Record, batch: int, engine: str) -> str:
    """Our best compared with a peer's, turn by turn, from the same numbers of draft tokens."""
    theirs = record.fastest(batch, engine)
    tried = {case.num_draft_tokens for case in record.at(batch, engine)}
    same = [c for c in record.at(batch) if c.num_draft_tokens in tried or tried == {0}]
    if theirs is None or not same:
        return ""
    ours = max(same, key=by_speed)
    pairs = zip(ours.windows, theirs.windows, strict=True)
    times = Spread.of([own.rate / other.rate for own, other in pairs])
    return (
        f"batch {batch} compared with {engine}: {times.median:.2f}x ({times.low:.2f}–"
        f"{times.high:.2f}), {by_speed(ours):.1f} tok/s with {ours.setting}, "
        f"{by_speed(theirs):.1f} with {theirs.setting}"
    )


def recommend(record: Record) -> str:
    """The setting to use. Raises UsageError if 0, a number above 0 or auto is missing."""
    if not record.batches:
        raise UsageError("nothing to recommend: no batch was finished")
    said, pinned, kept, gained = [], [], 1.0, False
    for batch in record.batches:
        plain, drafted, auto = (
            record.plain(batch),
            record.fastest_drafted(batch),
            _auto(record, batch),
        )
        if not (plain and drafted and auto and drafted.speedup and auto.speedup):
            raise UsageError(COMPARED)
        best, gain = 1.0, auto.speedup.median  # turn by turn, as in the tables
        if drafted.gains:
            best, gained = drafted.speedup.median, True
        if gain < (1 - BEHIND) * best:
            count = drafted.num_draft_tokens if drafted.gains else 0
            pinned.append(f"{count} at batch {batch}")
        kept = min(kept, gain)
        said.append(
            f"at batch {batch} auto gives {gain:.2f}x plain decoding ({by_speed(plain):.1f} to "
            f"{by_speed(auto):.1f} tokens/s), {drafted.setting} {drafted.speedup.median:.2f}x"
        )
    device, found = record.stamp.device, "; ".join(said)
    if not gained:
        found += f"; auto keeps {kept:.0%} of the speed without drafts"
        return f"Turn drafting off on this {device}: --num-draft-tokens 0. {found}."
    if not pinned:
        return f"Leave --num-draft-tokens at auto on this {device}: {found}."
    return f"Use --num-draft-tokens {' and '.join(pinned)} on this {device}, else auto: {found}."
