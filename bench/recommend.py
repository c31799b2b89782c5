"""Which setting to use here, and why, in a sentence made of what was measured.

Knows nothing of how the controller's table is kept.
"""

from __future__ import annotations

from typing import NamedTuple

from mlx_gemma_mtp.errors import UsageError

from .conclusions import gains
from .group import Group, groups
from .record import Case, Record, setting

BEHIND = 0.05  # of the best fixed number's speed: more, and auto is not recommended


class _Batch(NamedTuple):
    plain: Case
    auto: Case
    drafted: Case  # the fastest fixed number above 0

    @property
    def best(self) -> Case:
        """The fastest fixed number, 0 among them."""
        return self.drafted if gains(self.drafted) else self.plain

    def gain(self, case: Case) -> float:
        """Over plain decoding, turn by turn, as the tables have it."""
        return case.speedup.median if case.speedup else _speed(case) / _speed(self.plain)

    @property
    def lost(self) -> float:
        """What auto loses beside the best fixed number, as a share."""
        return 1 - self.gain(self.auto) / self.gain(self.best)


def recommend(record: Record) -> str:
    """The setting to use. Raises UsageError unless plain decoding, drafts and auto are there."""
    group = groups(record)[0]
    found = {batch: _batch(group, batch) for batch in group.batches}
    device = record.stamp.device
    if not found:
        raise UsageError("there is nothing to recommend: no batch was measured to its end")
    if not any(gains(one.drafted) for one in found.values()):
        least = min(one.gain(one.auto) for one in found.values())
        return (
            f"Decode plainly on this {device} (num_draft_tokens=0): {_nowhere(found)}. "
            f"auto comes to that by itself and keeps {least:.0%} of plain decoding's speed."
        )
    told = "; ".join(_told(batch, one) for batch, one in found.items())
    behind = {batch: one for batch, one in found.items() if one.lost > BEHIND}
    if not behind:
        return f"Leave num_draft_tokens at auto on this {device}: {told}."
    pinned = " and ".join(f"{one.best.drafts} at batch {batch}" for batch, one in behind.items())
    return f"Set num_draft_tokens to {pinned} on this {device}, else leave it at auto: {told}."


def _batch(group: Group, batch: int) -> _Batch:
    plain, drafted = group.plain(batch), group.fastest_drafted(batch)
    auto = next((case for case in group.at(batch) if case.drafts == "auto"), None)
    if plain is None or drafted is None or auto is None:
        raise UsageError("to recommend a setting, measure 0, auto and others: --drafts 0,3,auto")
    return _Batch(plain, auto, drafted)


def _speed(case: Case) -> float:
    return case.decode_tokens_per_second.median


def _told(batch: int, one: _Batch) -> str:
    plain, auto = _speed(one.plain), _speed(one.auto)
    return (
        f"at batch {batch} auto is {one.gain(one.auto):.2f} x as fast as plain decoding "
        f"({plain:.1f} to {auto:.1f} tokens/s), the best fixed number, {one.best.drafts}, "
        f"{one.gain(one.best):.2f} x"
    )


def _nowhere(found: dict[int, _Batch]) -> str:
    best = (
        f"at batch {batch} at best {one.gain(one.drafted):.2f} x, {setting(one.drafted.drafts)}"
        for batch, one in found.items()
    )
    return "drafts do not pay, " + ", ".join(best)
