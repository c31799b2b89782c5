"""Which setting to use here, and why, in a sentence made of what was measured.

Knows nothing of how the controller's table is kept.
"""

from __future__ import annotations

from typing import NamedTuple

from mlx_gemma_mtp.bench.conclusions import gains
from mlx_gemma_mtp.bench.record import OURS, Case, Record

from mlx_gemma_mtp.errors import UsageError

BEHIND = 0.05  # of the best fixed number's speed: more, and auto is not recommended


class _Batch(NamedTuple):
    plain: Case
    auto: Case
    best: Case  # of the fixed numbers, 0 among them

    @property
    def lost(self) -> float:
        """What auto loses beside the best fixed number, as a share."""
        return 1 - _speed(self.auto) / _speed(self.best)


def recommend(record: Record) -> str:
    """The setting to use. Raises UsageError unless plain decoding, drafts and auto are there."""
    found = {batch: _batch(record, batch) for batch in sorted({c.batch for c in record.cases})}
    device = record.stamp.device
    if not any(gains(one.best) for one in found.values()):
        least = min(_gain(one, one.auto) for one in found.values())
        return (
            f"Decode plainly on this {device} (num_draft_tokens=0): {_nowhere(record, found)}. "
            f"auto comes to that by itself and keeps {least:.0%} of plain decoding's speed."
        )
    told = "; ".join(_told(batch, one) for batch, one in found.items())
    behind = {batch: one for batch, one in found.items() if one.lost > BEHIND}
    if not behind:
        return f"Leave num_draft_tokens at auto on this {device}: {told}."
    pinned = " and ".join(f"{one.best.drafts} at batch {batch}" for batch, one in behind.items())
    return f"Set num_draft_tokens to {pinned} on this {device}, else leave it at auto: {told}."


def _batch(record: Record, batch: int) -> _Batch:
    cases = [c for c in record.cases if (c.engine, c.batch) == (OURS, batch)]
    fixed = [case for case in cases if record.is_summary(case) and case.drafts != "auto"]
    plain, auto = record.find(batch, 0), record.find(batch, "auto")
    if plain is None or auto is None or len(fixed) < 2:
        raise UsageError("to recommend a setting, measure 0, auto and others: --drafts 0,3,auto")
    return _Batch(plain, auto, max(fixed, key=_speed))


def _speed(case: Case) -> float:
    return case.decode_tokens_per_second.median


def _gain(one: _Batch, case: Case) -> float:
    return _speed(case) / _speed(one.plain)


def _told(batch: int, one: _Batch) -> str:
    plain, auto = _speed(one.plain), _speed(one.auto)
    return (
        f"at batch {batch} auto is {auto / plain:.2f} x as fast as plain decoding "
        f"({plain:.1f} to {auto:.1f} tokens/s), the best fixed number, {one.best.drafts}, "
        f"{_gain(one, one.best):.2f} x"
    )


def _nowhere(record: Record, found: dict[int, _Batch]) -> str:
    best = []
    for batch, one in found.items():
        drafted = [
            case
            for case in record.cases
            if (case.engine, case.batch) == (OURS, batch)
            and record.is_summary(case)
            and case.drafts not in (0, "auto")
        ]
        fastest = max(drafted, key=_speed)
        best.append(
            f"at batch {batch} at best {_gain(one, fastest):.2f} x, {fastest.drafts} drafts"
        )
    return "drafts do not pay, " + ", ".join(best)
