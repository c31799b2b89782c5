"""What the numbers of a benchmark say, in sentences: the best setting, and why drafts do not pay.

Every sentence is computed from the record and holds the numbers it rests on.
"""

from __future__ import annotations

from .columns import Row, case_row, number
from .group import Group, groups, is_drafted
from .record import Case, Record, Spread, setting

LEAST_GAIN = 0.02  # over plain decoding that counts as one


def conclusions(record: Record) -> list[str]:
    """One sentence per batch, then why where no drafts pay, tasks that differ, and the peers."""
    lines = []
    for group in groups(record):
        tail = f" ({group.label})" if group.label else ""
        found = [_best(record, group, batch) for batch in group.batches]
        found += _on_cpu(record, group) or _reasons(record, group)
        found += _tasks(record, group)
        found += [
            _beside(record, group, batch, peer) for batch in group.batches for peer in group.peers
        ]
        lines += [line + tail + "." for line in found if line]
    return lines


def gains(case: Case) -> bool:
    """Was it faster than plain decoding in every turn, and not just a little?"""
    found = case.speedup
    return found is not None and found.low > 1 and found.median - 1 > LEAST_GAIN


def best(group: Group, batch: int) -> Case | None:
    """The fastest of our cases at a batch; the plain one where none gains on it."""
    fastest, plain = group.fastest(batch), group.plain(batch)
    return plain if plain is not None and fastest is not None and not gains(fastest) else fastest


def _best(record: Record, group: Group, batch: int) -> str:
    """The best setting of a batch; auto, or what comes closest, beside it."""
    chosen = best(group, batch)
    if chosen is None:
        return ""
    cells = case_row(record, chosen)
    line = f"batch {batch}: {setting(chosen.drafts)}, {cells['decode_tokens_per_second']} tok/s"
    if chosen.drafts != 0 and chosen.speedup is not None:
        line += f", {_speedup(cells)}"
    if chosen.floor is not None:
        line += f", {cells['floor_share_percent']} % of what the memory's bandwidth allows"
    others = [case for case in group.at(batch) if case.drafts == "auto" and case is not chosen]
    drafted = group.fastest_drafted(batch)
    if drafted is not None and drafted is not chosen:
        others.insert(0, drafted)
    compared = [(case, case_row(record, case)) for case in others if case.speedup is not None]
    return "; ".join(
        [line, *(f"{setting(case.drafts)} {_speedup(found)}" for case, found in compared)]
    )


def _speedup(cells: Row) -> str:
    return f"{cells['speedup']} x plain ({cells['speedup_low']}–{cells['speedup_high']})"


def _reasons(record: Record, group: Group) -> list[str]:
    """For every batch with drafts of which none pay, why."""
    lines, tried = [], 0
    for batch in group.batches:
        plain, drafted = group.plain(batch), group.fastest_drafted(batch)
        if plain is None or drafted is None:
            continue
        tried += 1
        if not any(gains(case) for case in group.at(batch) if is_drafted(case)):
            lines.append(f"no drafts pay at batch {batch}: {_reason(record, plain, drafted)}")
    if lines and len(lines) == tried:
        lines.insert(0, "drafts pay at no batch measured here")
    return lines


def _reason(record: Record, plain: Case, drafted: Case) -> str:
    """What a round with drafts costs, against what it yields."""
    assert drafted.drafts != "auto"
    before, after = case_row(record, plain), case_row(record, drafted)
    parts = []
    if plain.split is not None and drafted.split is not None:
        cost = number(drafted.split.verify_ms / plain.split.verify_ms, 2)
        parts.append(
            f"a pass over {drafted.drafts + 1} tokens costs {cost} passes over one "
            f"({after['verify_ms']} ms against {before['verify_ms']} ms), "
            f"{setting(drafted.drafts)} another {after['draft_ms']} ms"
        )
    whole = _cost(plain, drafted)
    if drafted.speedup is not None:
        whole += f", {_speedup(after)}"
    return "; ".join([*parts, whole])


def _cost(plain: Case, drafted: Case) -> str:
    """What a round with drafts costs, and what comes of it."""
    cost = number(drafted.round_ms.median / plain.round_ms.median, 2)
    said = f"a round with {setting(drafted.drafts)} costs {cost} plain rounds"
    if drafted.acceptance_length is None:
        return said
    return f"{said} and yields {number(drafted.acceptance_length, 2)} tokens"


def _on_cpu(record: Record, group: Group) -> list[str]:
    """On MLX's CPU backend: what drafts cost there, and that a GPU is another matter."""
    if record.stamp.backend != "cpu":
        return []
    cells = []
    for batch in group.batches:
        plain, drafted = group.plain(batch), group.fastest_drafted(batch)
        if plain is not None and drafted is not None and drafted.acceptance_length is not None:
            cells.append(f"at batch {batch} {_cost(plain, drafted)}")
    if not cells:
        return []
    return [
        "drafting as a rule does not pay on MLX's CPU backend, which works a pass off nearly token "
        f"by token: {', '.join(cells)}; it gains only where texts are as easy to guess as to yield "
        "more than they cost; a GPU reads its weights once for all tokens of a pass, and none of "
        "these figures is about one"
    ]


def _tasks(record: Record, group: Group) -> list[str]:
    """Which text gains most and least, at the smallest batch and its best number of drafts.

    Nothing where that could be chance: where the two ranges overlap.
    """
    if not group.batches:
        return []
    batch = group.batches[0]
    drafted = group.fastest_drafted(batch)
    if drafted is None:
        return []
    by_task = [
        (case.speedup, case_row(record, case))
        for case in group.of_tasks(batch)
        if case.drafts == drafted.drafts and case.speedup is not None
    ]
    if not by_task:
        return []
    by_task.sort(key=lambda pair: pair[0])
    (low, least), (high, most) = by_task[0], by_task[-1]
    if low.high >= high.low:
        return []
    return [
        f"with {setting(drafted.drafts)} at batch {batch} {most['task']} gains most, "
        f"{_speedup(most)}, {least['task']} least, {_speedup(least)}"
    ]


def _beside(record: Record, group: Group, batch: int, peer: str) -> str:
    """Our best beside a peer's, turn by turn; of the same numbers of drafts where it drafts."""
    theirs = group.fastest(batch, peer)
    tried = {case.drafts for case in group.at(batch, peer)}
    same = [case for case in group.at(batch) if case.drafts in tried or tried == {0}]
    if theirs is None or not same:
        return ""
    ours = max(same, key=lambda case: case.decode_tokens_per_second.median)
    pairs = zip(ours.rates, theirs.rates, strict=True)
    times = [number(found, 2) for found in Spread.of([own / other for own, other in pairs])]
    cells = [case_row(record, case)["decode_tokens_per_second"] for case in (ours, theirs)]
    return (
        f"batch {batch} beside {peer}: {times[0]} x ({times[1]}–{times[2]}), {cells[0]} tok/s "
        f"with {setting(ours.drafts)} against {cells[1]} with {setting(theirs.drafts)}"
    )
