"""Which checkpoint a short name such as "e4b" means on this machine.

One that is downloaded and fits in memory comes first, else the best of those to download. Reads
configs in the Hub's cache; asks no network.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from mlx_gemma_mtp import device
from mlx_gemma_mtp.files import hub_cache, published
from mlx_gemma_mtp.files.drafters import stem
from mlx_gemma_mtp.files.names import is_folder
from mlx_gemma_mtp.files.published import Size


class Choice(NamedTuple):
    """A checkpoint of the size that was asked for.

    name: what `load` takes, with `bits`, which are None to load it as it is stored. runs_in: the
    bits of most weights once loaded. needs, available: bytes.
    """

    asked: str
    name: str
    bits: int | None
    runs_in: int
    needs: int
    available: int

    @property
    def fits(self) -> bool:
        """True if this machine has the memory for it."""
        return self.needs <= self.available

    def __str__(self) -> str:
        stored = f", quantized to {self.bits} bits" if self.bits else ""
        room = f"needs {self.needs / 1e9:.1f} GB, {self.available / 1e9:.1f} GB available"
        return f"{self.asked}: {self.name}{stored} ({room})"


def choose(asked: str, *, bits: int | None = None, available: int | None = None) -> Choice | None:
    """Return the checkpoint for a short name; None if it is not a short name of a size.

    bits: 4 or 8 if it must run in these. If nothing fits, the smallest is chosen.
    """
    size = None if is_folder(asked) else published.size_of(asked)
    if size is None:
        return None
    have = device.available() if available is None else available
    choices = [
        Choice(asked, name, quantized, runs_in, size.needs(runs_in), have)
        for name, quantized, runs_in in _checkpoints(size, bits)
    ]
    smallest = min(choices, key=lambda one: one.needs)
    return next((one for one in choices if one.fits), smallest)


def _checkpoints(size: Size, bits: int | None) -> Iterator[tuple[str, int | None, int]]:
    """Yield names, the bits to quantize to, and the bits that it then runs in; best first."""
    instructed = stem(size.original)
    cached = [
        (model.name, model.bits or 16)
        for model in hub_cache.models()
        if model.kind == size.kind
        and not (model.is_drafter or model.problem)
        and stem(model.name) in (instructed, f"{instructed}-qat")
    ]
    cached.sort(key=lambda one: -one[1])
    for name, stored in cached:
        if bits in (None, stored):
            yield name, None, stored
    for fewer in (8, 4) if bits is None else (bits,):
        for name, stored in cached:
            if stored >= 16:
                yield name, fewer, fewer
    for fewer in (8, 4):
        if bits in (None, fewer):
            yield size.quantized(fewer), None, fewer
    if bits not in (None, 8, 4):
        yield size.original, bits, bits
